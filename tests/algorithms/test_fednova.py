"""FedNova: its weights, its simpler selves, and what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import flat, linear_loss, zeros
from tests.helpers.reference import gradient_weights

KEY, COHORT = jax.random.key(0), fs.Cohort([1, 4, 5, 7])
# What compiles fastest: the contract has the other strategies and orders.
LOCAL, EXECUTION = fs.LocalTraining(2, 4, shuffle=False), fs.execution.vmapped()


def after_a_round(algorithm, data):
    state = fs.init(algorithm, zeros(), data)
    return fs.make_round(algorithm, execution=EXECUTION)(KEY, state, data, COHORT)[0].params


def test_the_weights_are_those_of_the_docstring():
    steps, lr, momentum, mu = 7, 0.1, 0.9, 3.0
    assert np.sum(gradient_weights(steps, lr, 0.0, 0.0)) == steps
    np.testing.assert_allclose(
        np.sum(gradient_weights(steps, lr, 0.0, mu)), (1 - (1 - lr * mu) ** steps) / (lr * mu)
    )
    np.testing.assert_allclose(
        np.sum(gradient_weights(steps, lr, momentum, 0.0)),
        (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum),
    )


@pytest.mark.parametrize("kind", ["momentum", "proximal"])
def test_of_clients_with_as_many_steps_it_is_fedavg_or_fedprox(data, kind):
    local = fs.LocalTraining(3, None)
    if kind == "momentum":
        simpler = fs.fedavg(linear_loss, optax.sgd(0.02, 0.9), local)
        nova = fs.fednova(linear_loss, 0.02, local, momentum=0.9)
    else:
        simpler = fs.fedprox(linear_loss, optax.sgd(0.02), local, mu=5.0)
        nova = fs.fednova(linear_loss, 0.02, local, mu=5.0)
    ends = jax.jit(lambda: [after_a_round(algorithm, data) for algorithm in (simpler, nova)])()
    np.testing.assert_allclose(flat(ends[1]), flat(ends[0]), rtol=1e-5, atol=1e-6)


def test_a_sweep_is_its_configurations_one_by_one(data):

    def end(client_lr, momentum, mu, server_lr):
        nova = fs.fednova(linear_loss, client_lr, LOCAL, momentum, mu, server_lr)
        return after_a_round(nova, data)

    grid = jnp.array([[0.02, 0.0, 0.0, 1.0], [0.05, 0.9, 0.0, 0.5], [0.03, 0.5, 4.0, 1.0]])
    swept = jax.jit(jax.vmap(lambda row: end(*row)))(grid)
    one_by_one = jax.jit(lambda rows: jax.lax.map(lambda row: end(*row), rows))(grid)
    for many, one in zip(jax.tree.leaves(swept), jax.tree.leaves(one_by_one), strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"client_lr": 0.0}, "client_lr must be finite and positive; got 0.0"),
        ({"client_lr": optax.sgd(0.1)}, "client_lr must be a number, positive"),
        ({"momentum": 1.0}, r"momentum must be finite and in \[0, 1\); got 1.0"),
        ({"mu": -1.0}, "mu must be finite and at least 0; got -1.0"),
        ({"mu": 11.0}, "mu must be at most 1 / client_lr = 10, or a step leaps over .*got 11"),
        ({"server_lr": float("nan")}, "server_lr must be finite and at least 0"),
        ({"local": 3}, "local must be an fs.LocalTraining"),
    ],
)
def test_refusals(wrong, message):
    right = {"client_lr": 0.1, "local": fs.LocalTraining()}
    with pytest.raises(ValueError, match=message):
        fs.fednova(linear_loss, **(right | wrong))


def test_it_sends_two_numbers_more_than_fedavg(data):
    local = fs.LocalTraining()
    nova = fs.communication(fs.fednova(linear_loss, 0.1, local), zeros(), data)
    fedavg = fs.communication(fs.fedavg(linear_loss, optax.sgd(0.1), local), zeros(), data)
    assert (nova.down, nova.up) == (fedavg.down, fedavg.up + 2 * 4)
