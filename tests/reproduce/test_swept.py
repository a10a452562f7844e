"""Cells that are one sweep each: claims, NIID-Bench's and PFLlib's tables, tiny."""

import json

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import cli
from fedjax_sim.reproduce import accuracies, personal, sections, selection, swept
from fedjax_sim.reproduce.accuracies import AccuracyTable, accuracy_cell
from fedjax_sim.reproduce.claims import CLAIMS, fairness, label_skew, local_work, objective
from fedjax_sim.reproduce.claims.claim import tuned
from fedjax_sim.reproduce.niid_bench import NIID_BENCH
from fedjax_sim.reproduce.personal import PERSONAL
from fedjax_sim.reproduce.swept import Record, SweptRun
from fedjax_sim.settings import build
from fedjax_sim.settings.setting import Setting
from fedjax_sim.settings.splits import parts_of_clients

SETTING = Setting(
    model="logistic", clients=4, partition="labels", sampler="everyone", epochs=1, batch_size=64,
    client_lr=0.1, rounds=2, options={"classes_per_client": 3},
)  # fmt: off
CELL = accuracy_cell(
    "tiny-labels",
    "digits, 3 labels",
    {"FedAvg": SETTING, "FedNova": SETTING.but(algorithm="fednova", momentum=0.9)},
    {"a record": {"FedAvg": "81.5 ± .2", "FedNova": "90.0"}},
)
TABLE = AccuracyTable("tiny", "Tiny", "A note.", (CELL,), ordered=True)


def quiet(progress):
    pass


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder with the tiny cell's record, of two seeds."""
    out = tmp_path_factory.mktemp("swept")
    assert swept.run(CELL.cell, out, 2, None, quiet)
    return out


# FedNova's quadratic


@pytest.mark.parametrize("algorithm", objective.ALGORITHMS)
def test_the_quadratic_is_exact(algorithm):
    """A float64 loop over the clients' gradient steps, and the closed form of where it ends."""
    rate, w, after_three = 0.05, 0.0, 0.0
    for round in range(2000):
        moves = []
        for centre, steps in zip((-1.0, 0.0, 2.0, 5.0), (1, 2, 4, 8), strict=True):
            own = w
            for _ in range(steps):
                own -= rate * (own - centre)
            moves.append((own - w, steps))
        if algorithm == "fedavg":
            w += sum(move for move, _ in moves) / 4
        else:
            w += sum(steps for _, steps in moves) / 4 * sum(m / steps for m, steps in moves) / 4
        if round == 2:
            after_three = w
    assert objective.limit(algorithm, rate) == pytest.approx(w, abs=1e-9)
    experiment = objective.experiment(algorithm, rate)._replace(num_rounds=3, evaluate=None)
    state, _ = experiment.run(jax.random.key(0))
    np.testing.assert_allclose(float(state.params), after_three, rtol=1e-5)


def test_the_quadratics_limits_as_the_rate_vanishes():
    """(-1 + 0 + 8 + 40) / 15 and (-1 + 0 + 2 + 5) / 4."""
    assert objective.limit("fedavg", 1e-7) == pytest.approx(47 / 15, abs=1e-5)
    assert objective.limit("fednova", 1e-7) == pytest.approx(1.5, abs=1e-5)


def record_of(rows):
    """A record of (configuration, seed, {column: values}), measured after every second round."""
    runs = []
    for configuration, seed, measured in rows:
        count = len(next(iter(measured.values())))
        at = 2 * np.arange(1, count + 1)
        columns = {name: np.array(values, float) for name, values in measured.items()}
        runs.append(SweptRun(configuration, seed, 2 * count, at, columns))
    return Record(tuple(runs), 60.0, {"jax": "1"})


def test_the_quadratic_is_judged_by_its_limits():
    def verdict(off=0.0, to=None):
        return objective.judge(
            record_of(
                ({"algorithm": name, "client_lr": rate}, 0, {"model": [to or w + off]})
                for name in objective.ALGORITHMS
                for rate in objective.RATES
                for w in [objective.limit(name, rate)]
            )
        )

    assert verdict().holds
    assert "fedavg ends at 3.1305 (closed form 3.1305)" in verdict().ours
    assert not verdict(off=0.002).holds
    assert not verdict(to=1.5).holds


# Rounds to a target, and what is made of them


def test_the_best_rate_is_that_of_all_seeds():
    record = record_of(
        ({"algorithm": "a", "rate": rate}, seed, {"test_accuracy": scores})
        for rate, of_seeds in {
            0.1: ([0.5, 0.7, 0.9], [0.5, 0.9, 0.9]),  # reach 0.8 in 5 and in 3.5 rounds
            1.0: ([0.8, 0.8, 0.8], [0.1, 0.1, 0.1]),  # in 2, and never
        }.items()
        for seed, scores in enumerate(of_seeds)
    )
    best = tuned(record, 0.8, algorithm="a")
    assert best.rounds == pytest.approx((5 + 3.5) / 2)
    assert best.best == {"rate": 0.1}
    never = tuned(record, 0.95, algorithm="a")
    assert never.rounds is None
    assert str(never) == "> 6"


def curve(rounds):
    """Scores that reach 0.95 after so many rounds, of 40 measured after every second one."""
    return {"test_accuracy": [0.95 if at >= rounds else 0.1 for at in range(2, 41, 2)]}


def test_epochs_are_judged():
    def verdicts(scaffold, fedavg):
        record = record_of(
            ({"algorithm": name, "epochs": epochs, "client_lr": 0.1}, 0, curve(rounds))
            for name, by_epochs in (("scaffold", scaffold), ("fedavg", fedavg))
            for epochs, rounds in zip(local_work.EPOCHS, by_epochs, strict=True)
        )
        return [claim.judge(record).holds for claim in local_work.CLAIMS]

    assert verdicts((4, 4, 4, 4), (8, 10, 12, 14)) == [True, True]
    assert verdicts((4, 4, 4, 4), (14, 12, 10, 8)) == [True, False]
    assert verdicts((4, 12, 4, 4), (8, 10, 12, 14)) == [False, True]


def test_label_skew_is_judged():
    def verdict(**rounds):
        return label_skew.judge(
            record_of(
                ({"method": method, "labels": labels, "client_lr": 0.1}, 0, curve(each))
                for method in label_skew.METHODS
                for labels, each in zip((1, 2), rounds[method.split(",")[0]], strict=True)
            )
        ).holds

    assert verdict(fedavg=(20, 10), scaffold=(8, 6), feddyn=(8, 6))
    assert not verdict(fedavg=(20, 10), scaffold=(99, 6), feddyn=(8, 6))
    assert not verdict(fedavg=(20, 10), scaffold=(8, 6), feddyn=(8, 12))


def test_fairness_is_judged():
    def verdict(worst, mean):
        rows = zip(fairness.POWERS, worst, mean, strict=True)
        return fairness.judge(
            record_of(
                ({"q": q}, 0, {"worst_tenth": [w], "mean": [m], "std": [0.1]}) for q, w, m in rows
            )
        )

    assert verdict((0.188, 0.311), (0.808, 0.790)).holds
    assert (
        "worst tenth 18.8% to 31.1%, mean 80.8% to 79.0%"
        in verdict((0.188, 0.311), (0.808, 0.79)).ours
    )
    assert not verdict((0.188, 0.2), (0.808, 0.79)).holds
    assert not verdict((0.3, 0.2), (0.7, 0.8)).holds


# Tables of accuracies


def test_a_cells_accuracies_are_those_of_its_runs(out):
    setting = CELL.settings["FedNova"].resolved()
    state, _ = jax.jit(build.experiment(setting).run)(jax.random.key(1))
    parts = build.problem(setting)
    logits = np.asarray(parts.test.examples["x"]).reshape(-1, 64) @ np.asarray(
        state.params["layers_1"]["kernel"]
    ) + np.asarray(state.params["layers_1"]["bias"])
    accuracy = np.mean(logits.argmax(1) == np.asarray(parts.test.examples["y"]))
    ours = accuracies.accuracies(CELL, swept.load(CELL.cell, out), "FedNova")
    assert len(ours) == 2
    assert ours[1] == pytest.approx(100 * accuracy, abs=0.01)


def test_the_rows_by_hand():
    record = record_of(
        ({"method": method}, seed, {"test_accuracy": [0.1, 0.9, score + 0.01 * seed]})
        for method, score in (("FedAvg", 0.5), ("FedNova", 0.6))
        for seed in (0, 1)
    )
    heading, _, published, ours, *orders = accuracies.rows(TABLE, {CELL.cell.name: record})
    assert heading == "| data and split | whose | FedAvg | FedNova | seeds | minutes |"
    assert published == "| digits, 3 labels | a record | 81.5 ± .2 | 90.0 | | |"
    assert ours == "| digits, 3 labels | ours | 50.50 ± 0.71 | 60.50 ± 0.71 | 2 | 1 |"
    assert orders[1:] == [
        "- digits, 3 labels, ours: FedNova > FedAvg",
        "- digits, 3 labels, a record: FedNova > FedAvg",
    ]


def test_a_record_is_of_its_cell_alone(out, tmp_path):
    assert swept.is_through(CELL.cell, out, 2)
    assert not swept.is_through(CELL.cell, tmp_path, 2)
    assert not (out / "swept" / CELL.cell.name).exists()
    with pytest.raises(ValueError, match="holds runs of 2 seeds, and is not given more; got"):
        swept.is_through(CELL.cell, out, 3)
    with pytest.raises(ValueError, match=r"is of another cell: .*rounds"):
        swept.load(CELL.cell._replace(facts={"rounds": 9}), out)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "tiny-labels.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        swept.load(CELL.cell, tmp_path)


def test_an_interrupted_cell_goes_on(out, tmp_path, monkeypatch):
    """Its first sweep ends before the second method; the next one runs that, and writes all."""

    def whole(folder):
        runs = json.loads((folder / "cells" / "tiny-labels.json").read_text())["runs"]
        return sorted(runs, key=lambda run: (run["configuration"]["method"], run["seed"]))

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.runs == 2:
            raise Stop

    with pytest.raises(fs.InterruptedRun):
        swept.run(CELL.cell, tmp_path, 2, None, stop)
    assert swept.load(CELL.cell, tmp_path) is None
    assert swept.run(CELL.cell, tmp_path, 2, None, quiet)
    assert whole(tmp_path) == whole(out)
    assert np.isnan(swept.load(CELL.cell, tmp_path).seconds)


def test_fedbabu_is_measured_fine_tuned():
    setting = SETTING.but(
        model="mlp", algorithm="fedbabu", personal="layers_3", validation=0.25, evaluate_every=2
    )
    experiment = personal.experiment(setting)
    state, history = jax.jit(experiment.run)(jax.random.key(0))
    parts, own = build.problem(setting.resolved()), parts_of_clients(setting.resolved().data)
    tuning = fs.FineTuning(optax.sgd(0.1), fs.LocalTraining(1, 64))
    tuned_clients = fs.evaluate_clients(
        parts.loss_fn, experiment.algorithm, state, parts.data, test=own.validation,
        fine_tune=tuning,
    )  # fmt: off
    measured = float(history.evaluation["validation_accuracy"][-1])
    after, before = (float(x.mean["accuracy"]) for x in (tuned_clients.after, tuned_clients.before))
    assert measured == pytest.approx(after, abs=1e-5)
    assert measured != pytest.approx(before, abs=1e-3)


def test_every_cell_resolves_and_holds_what_is_published():
    cells = [each for table in selection.ACCURACIES.values() for each in table.cells]
    names = [each.cell.name for each in cells] + [claim.cell.name for claim in CLAIMS[:1]]
    assert len(set(names)) == len(names)
    for each in cells:
        for setting in each.settings.values():
            assert setting.resolved().score == each.score
    by_name = {each.cell.name: each for each in cells}
    assert len(NIID_BENCH.cells) == 20
    cifar = by_name["niid-bench-cifar10-dirichlet"].published
    assert [figures["SCAFFOLD"] for figures in cifar.values()] == ["68.1 ± 1.0", "69.8"]
    one_label = by_name["niid-bench-mnist-labels1"].published["Flower's `niid_bench`"]
    assert one_label["FedNova"] == "52.6 ± 14.1"
    skewed = by_name["personal-dirichlet"].published["PFLlib, 2000 rounds"]
    assert [skewed[name] for name in ("FedAvg", "Ditto", "FedBABU")] == ["85.85", "97.47", "97.46"]
    assert len(PERSONAL.cells[0].settings) == 10


# The command


def test_the_command_estimates_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    cell = accuracy_cell("tiny-labels", CELL.place, {"FedAvg": SETTING}, CELL.published)
    table = TABLE._replace(cells=(cell,), ordered=False)
    for module in (selection, sections):
        monkeypatch.setattr(module, "ACCURACIES", {"tiny": table})
    command = ["reproduce", "tiny", "--seeds", "1", "--cores", "1", "--out", str(tmp_path)]
    assert cli.main([*command, "--estimate"]) == 0
    estimate_text = capsys.readouterr().out
    assert "tiny-labels: about" in estimate_text
    assert "1 of 1 sweeps to run: about" in estimate_text
    assert not (tmp_path / "cells").exists()
    assert cli.main(command) == 0
    page = (tmp_path / "PAPERS.md").read_text()
    assert "| digits, 3 labels | a record | 81.5 ± .2 | | |" in page
    assert "    fedjax-sim reproduce tiny" in page
    capsys.readouterr()
    monkeypatch.setattr(swept, "sweep", None)
    assert cli.main(command) == 0
    assert "0 of 1 sweeps to run: all are there." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([*command[:3], "2", *command[4:]])
    assert "holds runs of 1 seeds, and is not given more" in capsys.readouterr().err


def test_the_command_refuses_before_it_compiles(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEDJAX_SIM_DATA", str(tmp_path))
    monkeypatch.setattr(build, "experiment", None)
    for names, message in (
        (["niid-bench"], "data set mnist is not in"),
        (["niid-bensh"], "got 'niid-bensh' (nearest: niid-bench"),
        (["claims-scaffold"], "nearest: claims-scaffold-epochs"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["reproduce", *names, "--cores", "1", "--out", str(tmp_path / "out")])
        assert message in capsys.readouterr().err


def test_the_list_names_every_cell(capsys):
    assert cli.main(["reproduce", "--list"]) == 0
    text = capsys.readouterr().out
    for each in (*NIID_BENCH.cells, *PERSONAL.cells):
        assert f"  {each.cell.name}: FedAvg, FedProx" in text
    for claim in CLAIMS:
        assert f"  {claim.cell.name}, about" in text


def test_the_list_is_of_what_is_named(capsys):
    named = ["fedprox", "claims-label-skew", "table1-2nn-iid-C0-E1-B10"]
    assert cli.main(["reproduce", *named, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first_words = [line.split()[0].strip(",:") for line in lines]
    assert first_words == ["table1-2nn", named[2], named[0], "claims", named[1]]
