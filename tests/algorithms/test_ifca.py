"""IFCA: FedAvg of one model, clusters that it finds, and the models to begin with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import flat, linear_loss, several_models, zeros

KEY, COHORT = jax.random.key(0), fs.Cohort([1, 4, 5, 7])
# What compiles fastest: the contract has the other strategies and orders.
LOCAL, EXECUTION = fs.LocalTraining(2, 4, shuffle=False), fs.execution.vmapped()


def after_a_round(algorithm, params, data):
    state = fs.init(algorithm, params, data)
    return fs.make_round(algorithm, execution=EXECUTION)(KEY, state, data, COHORT)[0].params


def test_one_model_is_fedavg(data):
    optimizer = optax.sgd(0.02, 0.9)
    fedavg = fs.fedavg(linear_loss, optimizer, LOCAL)
    clustered = fs.ifca(linear_loss, optimizer, LOCAL, num_models=1)
    single = jax.tree.map(lambda w: w[None], zeros())
    simpler, params = jax.jit(
        lambda: (after_a_round(fedavg, zeros(), data), after_a_round(clustered, single, data))
    )()
    np.testing.assert_allclose(flat(params)[0], flat(simpler), atol=1e-6)


def test_a_sweep_is_its_configurations_one_by_one(data):
    def end(rate):
        # A learning rate that falls by the round, which the message then carries.
        clustered = fs.ifca(linear_loss, lambda round: optax.sgd(rate / (1 + round)), LOCAL, 2)
        return after_a_round(clustered, several_models(), data)

    grid = jnp.array([0.01, 0.02, 0.05])
    with jax.numpy_dtype_promotion("standard"):
        swept = jax.jit(jax.vmap(end))(grid)
        one_by_one = jax.jit(lambda rates: jax.lax.map(end, rates))(grid)
    for many, one in zip(jax.tree.leaves(swept), jax.tree.leaves(one_by_one), strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)


def loss_of_two(w, batch, key):
    return (batch["x"] @ w - batch["y"]) ** 2


def test_it_finds_the_clusters():
    rng = np.random.default_rng(0)
    truth = np.array([[2.0, -1.0], [-2.0, 1.0]])
    clients = []
    for k in range(6):
        x = rng.normal(size=(20, 2)).astype(np.float32)
        clients.append({"x": x, "y": (x @ truth[k % 2]).astype(np.float32)})
    data = fs.FederatedData.from_clients(clients)
    algorithm = fs.ifca(loss_of_two, optax.sgd(0.05), LOCAL, num_models=3)
    # The third has diverged, so that its loss is NaN and nobody chooses it.
    start = np.array([[0.1, 0.0], [-0.1, 0.0], [np.nan, 0.0]], np.float32)
    state = fs.init(algorithm, start, data)
    sampler = fs.sampling.uniform(4)
    round_fn = fs.make_round(algorithm, execution=EXECUTION)
    state, _ = jax.jit(lambda state: fs.run(round_fn, KEY, state, data, sampler, 30))(state)
    np.testing.assert_allclose(state.params[:2], truth, atol=1e-2)
    np.testing.assert_array_equal(state.params[2], start[2])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (zeros(), r"num_models = 2 models, leaves \[2, ...\], as jax.vmap .*got float32\[\] at"),
        (several_models(3), r"got float32\[3\] at params\['b'\]"),
        (jax.tree.map(lambda w: np.stack([w, w]), zeros()), "models 0 and 1 are equal"),
    ],
)
def test_models_to_begin_with(data, params, message):
    algorithm = fs.ifca(linear_loss, optax.sgd(0.1), fs.LocalTraining(), num_models=2)
    with pytest.raises(ValueError, match=message):
        fs.init(algorithm, params, data)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_models": 0}, "num_models must be a whole number, at least 1; got 0"),
        ({"num_models": 2.0}, "num_models must be a whole number"),
        ({"client_optimizer": 0.1}, "client_optimizer must be an optax transformation"),
    ],
)
def test_refusals(wrong, message):
    right = {"client_optimizer": optax.sgd(0.1), "local": fs.LocalTraining(), "num_models": 2}
    with pytest.raises(ValueError, match=message):
        fs.ifca(linear_loss, **(right | wrong))
