"""Dropout of a flax linen module: in local steps, by their keys, and nowhere else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import fedjax_sim as fs

KEY = jax.random.key(5)
EXAMPLES = {"x": np.ones((6, 4), np.float32), "y": np.arange(6) % 3}


class ByTrain(linen.Module):
    rate: float = 0.5

    @linen.compact
    def __call__(self, x, train=True):
        x = linen.Dropout(self.rate)(linen.Dense(64)(x), deterministic=not train)
        return linen.Dense(3)(x)


class ByDeterministic(linen.Module):
    rate: float = 0.5

    @linen.compact
    def __call__(self, x, deterministic=None):
        x = linen.Dropout(self.rate)(linen.Dense(64)(x), deterministic=deterministic)
        return linen.Dense(3)(x)


MODULES = {ByTrain: ({"train": True}, {"train": False})}
MODULES[ByDeterministic] = ({"deterministic": False}, {"deterministic": True})
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


@pytest.mark.parametrize("kind", MODULES)
def test_a_loss_drops_where_it_has_a_key(kind):
    module, (training, inference) = kind(), MODULES[kind]
    model = fs.models.from_flax(module, (4,))
    params = model.init(jax.random.key(0))
    variables = {"params": params}
    loss_fn = fs.models.cross_entropy(model.apply)
    outputs = module.apply(variables, EXAMPLES["x"], **inference)
    dropped = module.apply(variables, EXAMPLES["x"], **training, rngs={"dropout": KEY})
    assert not np.allclose(outputs, dropped)
    np.testing.assert_array_equal(model.apply(params, EXAMPLES["x"]), outputs)
    for key, expected in ((None, outputs), (KEY, dropped)):
        losses, metrics = loss_fn(params, EXAMPLES, key)
        np.testing.assert_allclose(losses, cross_entropy(expected, EXAMPLES["y"]), rtol=1e-6)
        np.testing.assert_array_equal(metrics["accuracy"], jnp.argmax(expected, 1) == EXAMPLES["y"])
    squared = fs.models.squared_error(model.apply)
    targets = {"x": EXAMPLES["x"], "y": np.zeros((6, 3), np.float32)}
    np.testing.assert_allclose(
        squared(params, targets, KEY), np.mean(np.square(dropped), 1), rtol=1e-6
    )


def losses_of_rounds(rate, algorithm=fs.fedavg, of_loss=lambda loss_fn: loss_fn, adapted=False):
    """The training losses of two rounds, and the last model's on the examples."""
    model = fs.models.from_flax(ByTrain(rate), (4,))
    loss_fn, params = fs.models.cross_entropy(model.apply), model.init(jax.random.key(0))
    if adapted:
        adapter = fs.models.trained_part(params, "*/bias")
        loss_fn, params = adapter.loss(loss_fn), adapter.init(jax.random.key(1))
    data = fs.FederatedData.from_clients([EXAMPLES, jax.tree.map(lambda x: x[:4], EXAMPLES)])
    experiment = fs.Experiment(
        algorithm(of_loss(loss_fn), optax.sgd(0.1), fs.LocalTraining(2, 3)),
        params,
        data,
        fs.sampling.everyone(),
        num_rounds=2,
        evaluate=lambda params: fs.evaluate(loss_fn, params, data).mean,
    )
    history = fs.simulate(experiment, jax.random.key(2)).history
    return history.rounds.train["loss"], history.evaluation["loss"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"algorithm": partial(fs.fedlc, tau=1.0)},
        {"of_loss": fs.models.mixed_precision},
        {"adapted": True},
        {"adapted": True, "of_loss": fs.models.mixed_precision},
    ],
    ids=["fedavg", "fedlc", "mixed", "adapted", "mixed-adapted"],
)
def test_local_steps_drop_and_evaluations_do_not(options):
    without, _ = losses_of_rounds(0.0, **options)
    with_dropout, _ = losses_of_rounds(0.5, **options)
    assert not np.allclose(without, with_dropout, rtol=1e-3)
    again, evaluated = losses_of_rounds(0.5, **options)
    np.testing.assert_array_equal(again, with_dropout)
    assert np.isfinite(evaluated).all()


def test_a_model_that_drops_all_learns_its_last_bias_alone():
    """All of the hidden layer is dropped, so that no gradient reaches what is before it."""
    model = fs.models.from_flax(ByTrain(1.0), (4,))
    params = model.init(jax.random.key(0))
    loss_fn = fs.models.cross_entropy(model.apply)
    slopes = jax.grad(lambda p: loss_fn(p, EXAMPLES, KEY)[0].mean())(params)
    assert not np.any(slopes["Dense_0"]["kernel"])
    assert np.any(slopes["Dense_1"]["bias"])
    np.testing.assert_allclose(loss_fn(params, EXAMPLES, KEY)[0], np.log(3), rtol=1e-6)
