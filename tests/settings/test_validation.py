"""Choosing by examples held out of training, and not by the test set."""

import csv
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.cli import show
from fedjax_sim.cli.parser import main
from fedjax_sim.compare import measured
from fedjax_sim.compare.comparison import Comparison
from fedjax_sim.report import page
from fedjax_sim.results import Results, Run
from fedjax_sim.settings import build as problem
from fedjax_sim.settings import splits
from fedjax_sim.settings.setting import Setting

KEY = jax.random.key(0)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32 - 1),
    st.randoms(use_true_random=False),
)
def test_each_client_holds_back_its_share(sizes, share, seed, random):
    rows = [k for k, n in enumerate(sizes) for _ in range(n)]
    random.shuffle(rows)
    client_ids = np.array(rows, np.int32)
    key = jax.random.key(seed)
    room = np.maximum(np.array(sizes) - 1, 0)
    wanted = round(share * len(rows))
    if not rows or not room.sum() or not wanted:
        if rows and not (wanted and room.sum()):
            with pytest.raises(ValueError, match="share must hold back at least one"):
                fs.partition.holdout(key, client_ids, share)
        return
    held = fs.partition.holdout(key, client_ids, share)
    np.testing.assert_array_equal(held, fs.partition.holdout(key, client_ids, share))
    kept = np.bincount(client_ids[~held], minlength=len(sizes))
    back = np.bincount(client_ids[held], minlength=len(sizes))
    np.testing.assert_array_equal(kept + back, sizes)
    assert (kept[np.array(sizes) > 0] >= 1).all()
    exact = share * np.array(sizes)
    assert (back <= np.ceil(exact + 1e-9)).all()
    assert (back >= np.minimum(np.floor(exact - 1e-9), room)).all()
    # The total is met wherever each client has room for the next whole number.
    if (np.ceil(exact - 1e-9) <= room).all():
        assert back.sum() == wanted


def test_what_is_held_back_is_drawn_at_random():
    client_ids = np.repeat([0, 1], 200)
    draws = [fs.partition.holdout(jax.random.key(i), client_ids, 0.25) for i in range(200)]
    shares = np.mean(draws, axis=0)
    assert abs(shares.mean() - 0.25) < 1e-12
    assert np.abs(shares - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 200)
    assert np.mean(draws[0] == draws[1]) < 0.8


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan"), "half"])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=r"share must be .*\(0, 1\)"):
        fs.partition.holdout(KEY, np.zeros(10, int), share)
    if not isinstance(share, str):
        with pytest.raises(ValueError, match=r"validation must be .*\(0, 1\)"):
            Setting(validation=share).resolved()


def test_a_setting_holds_back_of_each_client_and_changes_no_split():
    setting = Setting.of({"clients": 10, "alpha": 1.0}).resolved()
    whole, part = (splits.split(x.data) for x in (setting, replace(setting, validation=0.2)))
    assert whole.dataset.validation is None
    examples = {
        k: {x.tobytes() for x in whole.dataset.train["x"][whole.client_ids == k]} for k in range(10)
    }
    held = {x.tobytes() for x in part.dataset.validation["x"]}
    for k, there in examples.items():
        here = [x.tobytes() for x in part.dataset.train["x"][part.client_ids == k]]
        assert set(here) <= there
        assert len(there - set(here)) == pytest.approx(0.2 * len(there), abs=1)
        assert there - set(here) <= held
    assert len(part.dataset.validation["y"]) + len(part.client_ids) == len(whole.client_ids)
    np.testing.assert_array_equal(part.dataset.test["x"], whole.dataset.test["x"])
    again = splits.split(replace(setting, validation=0.2).data)
    np.testing.assert_array_equal(again.dataset.validation["x"], part.dataset.validation["x"])
    other = splits.split(replace(setting, validation=0.2, seed=7).data)  # one for all seeds
    np.testing.assert_array_equal(other.dataset.validation["x"], part.dataset.validation["x"])


def test_the_score_is_of_the_validation_set():
    setting = Setting(validation=0.1)
    resolved = setting.resolved()
    assert (resolved.score, resolved.test_score) == ("validation_accuracy", "test_accuracy")
    assert replace(setting, dataset="wind").score == "validation_r2"
    assert Setting().score == "test_accuracy"
    assert setting.resolved().values()["validation"] == 0.1
    assert "validation" not in Setting().resolved().values()


@pytest.mark.parametrize("dataset", [pytest.param("digits", marks=pytest.mark.slow), "wind"])
def test_what_is_measured_is_the_models_on_each_set(dataset):
    setting = Setting(dataset=dataset, clients=5, validation=0.3).resolved()
    given = problem.problem(setting)
    experiment = problem.experiment(setting)
    params = given.init(KEY)
    found = experiment.evaluate(params)
    assert set(problem.metrics(experiment)) >= {setting.score, setting.test_score}
    parts = splits.split(setting.data).dataset
    for part in ("validation", "test"):
        y = getattr(parts, part)["y"]
        losses = given.loss_fn(params, getattr(parts, part), None)
        losses, values = losses if isinstance(losses, tuple) else (losses, {})
        assert found[f"{part}_loss"] == pytest.approx(float(np.mean(losses)), rel=1e-5)
        if dataset == "digits":
            expected = float(np.mean(values["accuracy"]))
        else:
            expected = 1 - float(np.mean(losses) / np.var(y))
        assert found[setting.score.replace("validation", part)] == pytest.approx(expected, rel=1e-4)
    assert given.data.total_num_examples == len(parts.train["y"])


def test_an_evaluator_needs_a_set():
    with pytest.raises(ValueError, match="evaluator must be given test, clients, validation"):
        fs.evaluator(lambda params, batch, key: batch)
    data = fs.FederatedData.from_clients([np.array([1.0, 3.0])])
    found = fs.evaluator(lambda params, batch, key: batch - params, validation=data)(1.0)
    assert {name: float(x) for name, x in found.items()} == {"validation_loss": 1.0}


def chosen():
    """Two configurations: one better on the validation set, the other on the test set."""

    def run(lr, seed, validation, test):
        rounds = {
            "validation_accuracy": np.array([0.1, validation + 0.01 * seed]),
            "test_accuracy": np.array([0.1, test + 0.01 * seed]),
        }
        return Run({"lr": lr}, seed, rounds, {}, 2)

    return Results(
        tuple(
            run(lr, seed, v, t)
            for lr, v, t in ((0.1, 0.8, 0.7), (0.2, 0.6, 0.9))
            for seed in (0, 1)
        )
    )


def test_the_page_says_the_test_score_of_the_one_chosen(tmp_path):
    results = chosen()
    results.save(tmp_path, {"kind": "sweep", "score": "validation_accuracy"})
    page.write([tmp_path], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Best final validation_accuracy" in text
    assert f"its test_accuracy is {page.tables.interval(results.mean('test_accuracy')[0])}" in text
    assert results.best().configuration == {"lr": 0.1}


@pytest.mark.slow
def test_a_sweep_on_the_command_line(tmp_path, capsys):
    assert (
        main(
            [
                "sweep",
                "--grid",
                "client_lr=0.001,0.1",
                "--clients",
                "5",
                "--rounds",
                "3",
                "--epochs",
                "1",
                "--validation",
                "0.2",
                "--seeds",
                "2",
                "--target",
                "0.3",
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = [float(row["test_accuracy"]) for row in rows if row["client_lr"] == "0.1"]
    (line,) = [line for line in said.splitlines() if line.strip().startswith("best")]
    assert f"{np.mean(best):.4f} ±" in line
    (other,) = [line for line in said.splitlines() if " 0.001 " in line and "±" in line]
    assert other.count("±") == 1
    assert "test_accuracy: of the best, which validation_accuracy chose." in said
    assert json.loads((tmp_path / "summary.json").read_text())["score"] == "validation_accuracy"
    assert "validation = 0.2" in (tmp_path / "configuration.toml").read_text()
    with pytest.raises(SystemExit):
        main(["run", "--validation", "1", "--out", str(tmp_path / "other")])
    assert "validation must be finite and in (0, 1); got 1" in capsys.readouterr().err


def test_a_comparison_shows_both():
    setting = Comparison(
        base=Setting(validation=0.2), fractions=(0.3,), modes=("selected",), seeds=2
    ).resolved()
    rounds = {
        name: np.ones(2) for name in ("bytes_down", "bytes_up", "reporting_share", "train_loss")
    }
    runs = [
        run._replace(
            configuration={"fraction": 0.3, "mode": "selected"}, rounds=run.rounds | rounds
        )
        for run in chosen().runs[:2]
    ]
    results = Results(tuple(runs))
    (row,) = measured.rows(setting, measured.curves(setting, results), fs.Communication(1, 1))
    assert (row.score_mean, row.test_mean) == (pytest.approx(0.805), pytest.approx(0.705))
    assert row.test_std == pytest.approx(0.01 / np.sqrt(2))
    from fedjax_sim.cli.commands import compare

    table = compare._table(setting, [row])
    assert [column.header for column in table.columns][3:5] == ["accuracy", "test accuracy"]
    assert [*table.columns[4].cells] == ["0.705 ± 0.007"]
    assert "on the validation set" in compare._legend(setting, [row])[0]


def test_a_sweep_prints_the_test_score_of_the_one_chosen():
    from fedjax_sim.cli import sweep_plan
    from fedjax_sim.cli.commands import sweep

    grid = {"client_lr": [0.1, 0.2]}
    plan = sweep_plan.plan_of({"validation": 0.2, "seeds": 2, "grid": grid})
    results = Results(
        tuple(
            run._replace(configuration={"client_lr": run.configuration["lr"]})
            for run in reversed(chosen().runs)
        )
    )
    table, *lines = sweep._after(plan, results)
    cells = {column.header: [*column.cells] for column in table.columns}
    assert (cells[""], cells["client_lr"]) == (["best", ""], ["0.1", "0.2"])
    assert cells["validation_accuracy"] == ["0.8050", "0.6050"]
    assert cells["test_accuracy"] == ["0.7050 ± 0.0635", ""]
    assert lines[-1] == "test_accuracy: of the best, which validation_accuracy chose."
    by_test = sweep_plan.plan_of({"seeds": 2, "grid": grid})
    table, *lines = sweep._after(by_test, results)
    assert [column.header for column in table.columns].count("test_accuracy") == 1
    assert [*table.columns[1].cells] == ["0.2", "0.1"]
    with pytest.raises(ValueError, match="validation cannot be an axis"):
        sweep_plan.plan_of({"grid": {"validation": [0.1, 0.2]}})


def test_an_interval_in_words():
    (mean, _) = chosen().mean("test_accuracy")
    assert show.interval(mean).startswith("0.7050 ± 0.0635")
