"""Runs of plain values whose clients have their own models: who is tested on what, and by what."""

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.cli import main
from fedjax_sim.settings import build, splits
from fedjax_sim.settings.setting import Setting

SMALL = Setting(clients=10, rounds=2, partition="labels", fraction=0.3, epochs=1)
FEDPER = SMALL.but(algorithm="fedper", personal="layers_3", model="mlp", validation=0.25)


@pytest.fixture(scope="module")
def run():
    experiment = build.experiment(FEDPER.resolved())
    return experiment, fs.simulate(experiment, 0)


def test_a_client_is_tested_on_the_classes_that_it_trains_on():
    chosen = FEDPER.resolved().data
    data = build.problem(FEDPER.resolved()).data
    parts = splits.parts_of_clients(chosen)
    dataset = splits.split(chosen).dataset
    assert parts.test.num_clients == parts.validation.num_clients == 10
    assert parts.test.total_num_examples == len(dataset.test["y"])
    assert not parts.has_own_test
    assert parts.client_names is None
    for part in (parts.test, parts.validation):
        for k in range(10):
            own, other = (
                np.asarray(each.examples["y"])[
                    int(each.offsets[k]) : int(each.offsets[k] + each.num_examples[k])
                ]
                for each in (data, part)
            )
            assert {*other} <= {*own}
            assert len({*own}) == 2
    assert splits.parts_of_clients(chosen) is parts


def test_natural_clients_have_their_own_test_examples():
    resolved = Setting(dataset="synthetic", clients=5, rounds=1).resolved()
    dataset = splits.split(resolved.data).dataset
    parts = splits.parts_of_clients(resolved.data)
    assert parts.validation is None
    assert parts.has_own_test
    expected = np.bincount(dataset.test_client_ids, minlength=5)
    np.testing.assert_array_equal(parts.test.num_examples, expected)


@pytest.mark.slow
def test_the_score_is_of_each_clients_own_model(run):
    experiment, simulation = run
    measured = simulation.history.evaluation
    parts = splits.parts_of_clients(FEDPER.resolved().data)
    loss_fn = build.problem(FEDPER.resolved()).loss_fn
    own = fs.personal_params(experiment.algorithm, simulation.state)
    right = number = 0
    for k in range(10):
        model = jax.tree.map(lambda x, k=k: x[k], own)
        first, size = int(parts.test.offsets[k]), int(parts.test.num_examples[k])
        batch = {name: x[first : first + size] for name, x in parts.test.examples.items()}
        right += float(np.sum(loss_fn(model, batch, None)[1]["accuracy"]))
        number += size
    assert float(measured["test_accuracy"][-1]) == pytest.approx(right / number, abs=1e-6)
    assert build.metrics(experiment) == (
        "personal_accuracy_mean",
        "personal_accuracy_worst_tenth",
        "personal_loss_mean",
        "personal_loss_worst_tenth",
        "test_accuracy",
        "test_loss",
        "validation_accuracy",
        "validation_loss",
        "train_accuracy",
        "train_loss",
    )


def test_ifca_begins_with_as_many_models_as_are_asked_for():
    setting = SMALL.but(algorithm="ifca", num_models=3).resolved()
    experiment = build.experiment(setting)
    params = experiment.params(jax.random.key(4))
    assert {x.shape[0] for x in jax.tree.leaves(params)} == {3}
    draw = build.problem(setting).init
    for place, key in enumerate(jax.random.split(jax.random.key(4), 3)):
        one = jax.tree.map(lambda x, i=place: x[i], params)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(draw(key)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    columns = experiment.evaluate(experiment.start(jax.random.key(0))).keys()
    assert {"test_accuracy", "test_loss", "personal_accuracy_worst_tenth"} <= columns
    assert not any(name.startswith("global_") for name in columns)  # it is three models


def test_a_regression_has_its_r2_of_clients_own_models():
    values = {"dataset": "wind", "rounds": 1, "algorithm": "fedper", "personal": "layers_5"}
    setting = Setting.of(values).resolved()
    experiment = build.experiment(setting)
    values = experiment.evaluate(experiment.start(jax.random.key(0)))
    variance = build.problem(setting).variances["test"]
    assert float(values["test_r2"]) == pytest.approx(1 - float(values["test_loss"]) / variance)


def test_which_parameters_are_personal_must_be_said(capsys, tmp_path):
    with pytest.raises(ValueError, match="personal must be given to fedper: paths or patterns"):
        SMALL.but(algorithm="fedper").resolved()
    assert SMALL.but(algorithm="fedbn").resolved().options.get("personal") is None
    out = str(tmp_path / "out")
    with pytest.raises(SystemExit):
        main(["run", "--algorithm", "fedper", "--personal", "head", "--rounds", "1", "--out", out])
    told = capsys.readouterr().err
    assert "personal 'head' names no parameter; there are layers_1/bias, layers_1/kernel" in told
    with pytest.raises(SystemExit):
        main(["run", "--algorithm", "lgfedavg", "--rounds", "1", "--out", out])
    assert "--personal must be given to lgfedavg" in capsys.readouterr().err
