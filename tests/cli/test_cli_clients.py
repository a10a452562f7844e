"""`fedjax-sim run` of clients with their own models: what is measured, told, kept and drawn."""

import re

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.cli import main
from fedjax_sim.report import reading
from fedjax_sim.results import clients
from fedjax_sim.settings import build, splits
from fedjax_sim.settings.setting import Setting

SMALL = ["--clients", "6", "--rounds", "3", "--fraction", "0.5", "--epochs", "1"]


def call(*words):
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def ditto(tmp_path_factory):
    out = tmp_path_factory.mktemp("ditto") / "out"
    options = ("--partition", "labels", "--evaluate-every", 2, "--fine-tune", 1)
    call("run", "--algorithm", "ditto", *SMALL, *options, "--out", out)
    return out


def by_hand(out):
    """Accuracy [K] of the global model and of each client's own, client by client."""
    setting = Setting(
        clients=6, rounds=3, fraction=0.5, epochs=1, partition="labels", algorithm="ditto"
    ).resolved()
    experiment, parts = build.experiment(setting), splits.parts_of_clients(setting.data)
    state = fs.simulate(experiment, 0).state
    loss_fn = build.problem(setting).loss_fn
    own = fs.personal_params(experiment.algorithm, state)
    rows = []
    for k in range(6):
        first, size = int(parts.test.offsets[k]), int(parts.test.num_examples[k])
        batch = {name: x[first : first + size] for name, x in parts.test.examples.items()}
        models = (state.params, jax.tree.map(lambda x, k=k: x[k], own))
        rows.append([float(np.mean(loss_fn(w, batch, None)[1]["accuracy"])) for w in models])
    return np.array(rows).T


def test_each_client_has_a_row_that_is_its_own(ditto):
    table = clients.read(ditto / "clients.csv")
    assert table.names == tuple("012345")
    assert [*table.columns] == [
        f"{model}_{metric}"
        for model in ("global", "personal", "tuned")
        for metric in ("accuracy", "loss")
    ]
    of_global, of_own = by_hand(ditto)
    np.testing.assert_allclose(table.columns["global_accuracy"], of_global, atol=1e-6)
    np.testing.assert_allclose(table.columns["personal_accuracy"], of_own, atol=1e-6)
    assert (table.columns["tuned_loss"] < table.columns["personal_loss"]).sum() >= 4


def test_what_is_measured_by_round_ends_with_those_values(ditto):
    folder = reading.load(ditto)
    (run,) = folder.results.runs
    assert run.rounds["evaluated"].tolist() == [False, True, True]
    for model in ("global", "personal"):
        values = folder.clients.by_model("accuracy")[model]
        mean, worst = (
            run.rounds[f"{model}_accuracy_{name}"][-1] for name in ("mean", "worst_tenth")
        )
        assert mean == pytest.approx(values.mean(), abs=1e-6)
        assert worst == pytest.approx(values.min(), abs=1e-6)  # the worst of six


def test_a_line_says_it_and_a_card_draws_it(ditto, tmp_path, capsys):
    call("run", "--resume", "--out", ditto)
    told = " ".join(capsys.readouterr().out.split())
    table = clients.read(ditto / "clients.csv").by_model("accuracy")
    expected = (
        "Accuracy of a client on its part of the test set, which is dealt as the training set is, "
        f"mean of 6: global model {table['global'].mean():.4f} "
        f"(worst tenth {table['global'].min():.4f}), own models {table['personal'].mean():.4f}"
    )
    assert expected in told
    call("report", ditto, "--out", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "accuracy of 6 clients" in text
    row = re.search(r'<th scope="row">personal</th>(.*?)</tr>', text).group(1)
    own = table["personal"]
    numbers = [own.mean(), own.min(), *np.percentile(own, (10, 50, 90))]
    assert re.findall(r">([0-9.]+)</td>", row) == [f"{number:.3f}" for number in numbers]


@pytest.mark.slow
def test_a_model_in_parts_has_no_global_one_and_a_new_run_removes_the_file(tmp_path, capsys):
    out = tmp_path / "out"
    own_parts = ("--model", "mlp", "--personal", "layers_3")
    call("run", "--algorithm", "fedper", *own_parts, *SMALL, "--out", out)
    assert "no global model is measured, since clients keep a part of it" in " ".join(
        capsys.readouterr().out.split()
    )
    assert {name.split("_")[0] for name in clients.read(out / "clients.csv").columns} == {
        "personal"
    }
    call("run", *SMALL, "--overwrite", "--out", out)
    assert not (out / "clients.csv").exists()


def test_a_sweep_chooses_by_the_personal_score(tmp_path, capsys):
    metric = "personal_accuracy_worst_tenth"
    grid = ("--grid", "lam=0,10", "--metric", metric)
    call("sweep", "--algorithm", "ditto", *SMALL, *grid, "--out", tmp_path / "out")
    assert metric in capsys.readouterr().out
    results = reading.load(tmp_path / "out").results
    values = {run.configuration["lam"]: run.rounds[metric][-1] for run in results.runs}
    best = results.best(metric)
    assert values[best.configuration["lam"]] == max(values.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--algorithm", "fedsgd", "--fine-tune", "1"], "fedsgd, whose clients take no local"),
        (["--fine-tune", "0"], "fine.tune"),
    ],
)
def test_fine_tuning_that_cannot_be_is_refused(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        main(["run", *options, "--out", str(tmp_path / "out")])
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
def test_states_on_disk_are_those_in_memory(tmp_path):
    options = ("run", "--algorithm", "scaffold", *SMALL, "--model", "logistic")
    call(*options, "--out", tmp_path / "memory")
    call(*options, "--client-states", "disk", "--out", tmp_path / "disk")
    assert (tmp_path / "disk" / "client_states").exists()
    assert 'client_states = "disk"' in (tmp_path / "disk" / "configuration.toml").read_text()
    in_memory, on_disk = (fs.load(tmp_path / name).params for name in ("memory", "disk"))
    for x, y in zip(jax.tree.leaves(in_memory), jax.tree.leaves(on_disk), strict=True):
        np.testing.assert_array_equal(x, y)
    call("run", "--resume", "--rounds", "5", "--out", tmp_path / "disk")


def test_states_on_disk_of_clients_that_keep_nothing_are_refused(tmp_path, capsys):
    words = ["run", *SMALL, "--client-states", "disk", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(words)
    message = capsys.readouterr().err
    assert '--client-states must be "memory" where the algorithm' in message
    assert not (tmp_path / "out").exists()
