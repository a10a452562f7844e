"""Examples that a model has no class for are refused wherever they are measured on."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.cli import main
from fedjax_sim.settings import build as problem

FEATURES = 2


def loss_of(classes):
    """Cross-entropy of a linear model with so many classes."""
    return fs.models.cross_entropy(lambda w, x: x @ w), jnp.zeros((FEATURES, classes))


def labelled(labels):
    return {"x": np.ones((len(labels), FEATURES), np.float32), "y": np.array(labels, np.int32)}


WAYS = {
    "data": lambda loss, w, data: fs.evaluate(loss, w, data),
    "test": lambda loss, w, data: fs.evaluator(loss, test=data)(w),
    "clients": lambda loss, w, data: fs.evaluator(loss, clients=data)(w),
}


@settings(max_examples=40)
@given(
    classes=st.integers(2, 12),
    labels=st.lists(st.integers(-2, 14), min_size=1, max_size=8),
    way=st.sampled_from(sorted(WAYS)),
)
def test_a_label_is_refused_exactly_if_it_is_no_class(classes, labels, way):
    loss, w = loss_of(classes)
    data = fs.FederatedData.from_clients([labelled(labels)])
    wrong = [y for y in labels if not 0 <= y < classes]

    def measure(w):  # traced, and so neither compiled nor computed
        return WAYS[way](loss, w, data)

    if not wrong:
        jax.eval_shape(measure, w)
        return
    says = (
        rf'{way}: labels \("y"\) must lie in \[0, {classes}\), the classes of the model; got '
        rf"{wrong[0]} \({len(wrong)} of {len(labels)} are out of range\)"
    )
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(measure, w)


@pytest.mark.parametrize("way", ["test", "clients"])
def test_local_evaluation_refuses_it(way):
    loss, w = loss_of(10)
    models = jnp.stack([w, w])
    good, bad = (fs.FederatedData.from_clients([labelled([0]), labelled(y)]) for y in ([9], [26]))
    jax.eval_shape(lambda models: fs.baselines.evaluate_local(loss, models, **{way: good}), models)
    with pytest.raises(ValueError, match=rf"{way}: labels .* \[0, 10\).*got 26 \(1 of 2"):
        fs.baselines.evaluate_local(loss, models, **{way: bad})


@pytest.mark.parametrize("drive", ["simulate", "sweep", "run"])
def test_a_run_is_refused_before_anything_compiles(drive, monkeypatch):
    loss, w = loss_of(10)
    data = fs.FederatedData.from_clients([labelled([0, 1]), labelled([9])])
    test = fs.FederatedData.from_clients([labelled([3, 26])])
    compiled = []
    for module in ("fedjax_sim.host.prepared", "fedjax_sim.sweeps.batch"):
        monkeypatch.setattr(
            sys.modules[module], "compile_program", lambda *given, **more: compiled.append(given)
        )

    def experiment(lr):
        algorithm = fs.fedavg(loss, optax.sgd(lr), fs.LocalTraining())
        evaluate = fs.evaluator(loss, test)
        return fs.Experiment(algorithm, w, data, fs.sampling.uniform(1), 2, evaluate=evaluate)

    begin = {
        "simulate": lambda: fs.simulate(experiment(0.1), jax.random.key(0)),
        "sweep": lambda: fs.sweep(experiment, {"lr": [0.1]}, keys=[0]),
        "run": lambda: experiment(0.1).run(jax.random.key(0)),
    }[drive]
    with pytest.raises(ValueError, match=r"test: labels .*got 26 \(1 of 2"):
        begin()
    assert not compiled


def test_targets_and_tokens_of_another_form_are_refused_alike():
    """The kind: all that a loss of fs.models refuses of what is trained on."""
    squared = fs.models.squared_error(lambda w, x: x @ w)
    two = fs.FederatedData.from_clients(
        [{"x": np.ones((3, FEATURES), np.float32), "y": np.ones((3, 2), np.float32)}]
    )
    with pytest.raises(ValueError, match=r'test: targets \("y"\) must have shape'):
        fs.evaluator(squared, two)(jnp.zeros((FEATURES, 1)))
    model = fs.models.character_lstm(10, length=3)
    loss, params = fs.models.cross_entropy(model.apply), jax.eval_shape(model.init, KEY)
    beyond = {"x": np.full((2, 3), 11, np.int32), "y": np.zeros((2, 3), np.int32)}
    with pytest.raises(ValueError, match=r"test: x must lie in \[0, 10\), the vocab.*got 11"):
        fs.evaluator(loss, fs.FederatedData.from_clients([beyond]))(params)


KEY = jax.random.key(0)


def test_the_command_line_says_so(monkeypatch, tmp_path, capsys):
    """A test set with a class more than the training set."""
    split = problem.split

    def with_another_class(setting):
        found = split(setting)
        test = {**found.dataset.test, "y": found.dataset.test["y"].copy()}
        test["y"][:3] = 26
        return found._replace(dataset=found.dataset._replace(test=test))

    monkeypatch.setattr(problem, "split", with_another_class)
    problem._problem.cache_clear()
    try:
        with pytest.raises(SystemExit):
            main(["run", "--clients", "5", "--rounds", "2", "--out", str(tmp_path / "run")])
    finally:
        problem._problem.cache_clear()
    assert "got 26 (3 of 360 are out of range)" in capsys.readouterr().err
