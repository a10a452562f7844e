"""An algorithm whose server is given examples without labels, by settings."""

import json

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.cli.parser import main
from fedjax_sim.settings import build, splits
from fedjax_sim.settings.setting import Setting

SETTING = Setting(
    algorithm="feddf",
    clients=6,
    fraction=0.5,
    epochs=1,
    rounds=2,
    options={"distill_steps": 3, "distill_lr": 0.01, "distill_batch": 32},
)


def run(values):
    return fs.simulate(build.experiment(Setting.of(values).resolved()), key=0)


def test_the_server_has_what_clients_have_not():
    """A fifth of each client's examples, without labels; every example is somewhere once."""
    choice = SETTING.but(unlabelled=0.2, validation=0.25).resolved().data
    held = splits.split(choice)
    plain = splits.split(Setting(clients=6, fraction=0.5).resolved().data)
    sizes = np.bincount(plain.client_ids, minlength=6)
    of_clients = np.bincount(held.client_ids, minlength=6) + np.bincount(held.validation_ids)
    np.testing.assert_allclose(sizes - of_clients, 0.2 * sizes, atol=1)
    assert set(held.unlabelled) == {"x"}
    parts = (held.dataset.train["x"], held.dataset.validation["x"], held.unlabelled["x"])
    total = len(plain.client_ids)
    together = np.sort(np.concatenate(parts).reshape(total, -1), axis=0)
    everything = np.sort(plain.dataset.train["x"].reshape(total, -1), axis=0)
    np.testing.assert_array_equal(together, everything)
    np.testing.assert_array_equal(held.dataset.test["x"], plain.dataset.test["x"])


def test_it_is_the_algorithm_of_python():
    setting = SETTING.but(unlabelled=0.3, client_lr=0.1)
    experiment = build.experiment(setting.resolved())
    parts = build.problem(setting.resolved())
    assert parts.data.num_examples.sum() == 1437 - round(0.3 * 1437)
    algorithm = fs.feddf(
        parts.loss_fn,
        optax.sgd(0.1),
        fs.LocalTraining(1, 10),
        parts.unlabelled,
        steps=3,
        lr=0.01,
        batch_size=32,
    )
    by_hand = experiment._replace(algorithm=algorithm)
    states = [fs.simulate(each, key=3).state for each in (experiment, by_hand)]
    jax.tree.map(np.testing.assert_array_equal, *(state.params for state in states))
    other = build.experiment(setting.but(unlabelled=0.1).resolved())
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(
            *(jax.tree.leaves(s.params) for s in (states[0], fs.simulate(other, key=3).state)),
            strict=True,
        )
    )


def test_without_steps_it_is_fedavg_on_what_the_clients_keep():
    resolved = SETTING.but(distill_steps=0, client_lr=0.1).resolved()
    assert resolved.unlabelled == 0.1
    experiment = build.experiment(resolved)
    loss_fn = build.problem(resolved).loss_fn
    fedavg = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining(1, 10))
    ours, expected = (
        fs.simulate(each, key=0).state.params
        for each in (experiment, experiment._replace(algorithm=fedavg))
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"unlabelled": 0.0}, r"unlabelled must be finite and in \(0, 1\)"),
        ({"unlabelled": 1.0}, r"unlabelled must be finite and in \(0, 1\)"),
        ({"algorithm": "fedavg", "unlabelled": 0.1}, "unlabelled belongs to algorithm feddf"),
        ({"unlabelled": 1e-6}, "unlabelled: share must hold back at least one example"),
        ({"validation": 1e-6}, "validation: share must hold back at least one example"),
        ({"mode": "median"}, "its server combines all models itself"),
    ],
)
def test_what_cannot_be_is_refused(values, says):
    options = {} if "algorithm" in values else SETTING.options
    base = {name: x for name, x in SETTING.values().items() if name not in SETTING.options}
    with pytest.raises(ValueError, match=says):
        run(base | options | values)


@pytest.mark.slow
def test_from_the_command_line(tmp_path):
    words = ["run", "--algorithm", "feddf", "--unlabelled", "0.2", "--distill-steps", "2"]
    words += ["--clients", "6", "--fraction", "0.5", "--epochs", "1", "--rounds", "2"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["configuration"]["unlabelled"] == 0.2
    assert main(["run", "--resume", "--out", str(tmp_path / "run")]) == 0
    grid = ["--grid", "distill_lr=0.001,0.01", "--grid", "unlabelled=0.1,0.2"]
    words = [word for word in words[3:] if word not in ("--unlabelled", "0.2")]
    words = ["sweep", "--algorithm", "feddf", *words]
    assert main([*words, *grid, "--out", str(tmp_path / "sweep")]) == 0
