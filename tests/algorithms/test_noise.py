"""Optimizers that carry a key of their own are refused; what is told to do instead works."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import fedjax_sim as fs
from tests.conftest import linear_loss, standard_promotion, zeros

LOCAL = fs.LocalTraining(1, None)


class RawKey(NamedTuple):
    rng: jax.Array


def noisy_with(make_key):
    """Noise from a key of the caller's kind, in the optimizer's state."""

    def update(grads, state, params=None):
        return grads, state

    return optax.GradientTransformation(lambda params: RawKey(make_key()), update)


def noisy():
    return optax.noisy_sgd(0.1, key=0)


KEYED = {
    "add_noise": lambda: optax.add_noise(0.1, 0.5, 0),
    "noisy_sgd": noisy,
    "private": lambda: optax.contrib.differentially_private_aggregate(1.0, 1.0, 0),
    "chain": lambda: optax.chain(optax.clip(1.0), optax.chain(noisy(), optax.scale(0.5))),
    "masked": lambda: optax.masked(noisy(), {"w": True, "b": False}),
    "multi_transform": lambda: optax.multi_transform(
        {"plain": optax.sgd(0.1), "noisy": noisy()}, {"w": "plain", "b": "noisy"}
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.noisy_sgd)(
        0.1, key=jax.random.key(0)
    ),
    "multi_steps": lambda: optax.MultiSteps(noisy(), 2).gradient_transformation(),
    "raw": lambda: noisy_with(lambda: jax.random.PRNGKey(0)),
    "raw rbg": lambda: noisy_with(lambda: jax.random.PRNGKey(0, impl="rbg")),
    "many raw": lambda: noisy_with(lambda: jax.random.split(jax.random.PRNGKey(0), 3)),
    "counter": lambda: noisy_with(lambda: jnp.uint32(7)),
}


@pytest.mark.parametrize("role", ["client_optimizer", "scheduled", "server_optimizer", "fedsgd"])
@pytest.mark.parametrize("name", KEYED)
def test_a_key_in_an_optimizers_state_is_refused(data, role, name):
    optimizer = KEYED[name]()
    algorithm = {
        "client_optimizer": lambda: fs.fedavg(linear_loss, optimizer, LOCAL),
        "scheduled": lambda: fs.fedprox(linear_loss, lambda round: optimizer, LOCAL, 0.1),
        "server_optimizer": lambda: fs.fedavg(linear_loss, optax.sgd(0.1), LOCAL, optimizer),
        "fedsgd": lambda: fs.fedsgd(linear_loss, optimizer),
    }[role]()
    argument = "client" if role in ("client_optimizer", "scheduled") else "server"
    message = f"{argument}_optimizer must not carry a key.*got one"
    with pytest.raises(ValueError, match=message), standard_promotion():
        fs.init(algorithm, zeros(), data)


def test_optimizers_without_a_key_are_taken(data):
    """Integer counters, and parameters that are called as keys are, are no keys."""
    params = {"key": np.zeros((4, 2), np.float32), "rng": np.zeros(2, np.float32)}

    def loss_fn(params, batch, key):
        return (batch["x"] @ params["key"]).sum(axis=1) + params["rng"].sum()

    with standard_promotion():
        for optimizer in (
            optax.adam(0.1),
            optax.adafactor(0.1),
            optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.bfloat16),
            optax.inject_hyperparams(optax.adam)(optax.cosine_decay_schedule(0.1, 5)),
            optax.MultiSteps(optax.yogi(0.1), 2).gradient_transformation(),
        ):
            fs.init(fs.fedavg(loss_fn, optimizer, LOCAL, optimizer), params, data)


def test_noise_from_the_losss_key_is_added_to_the_gradient_and_differs_everywhere():
    """What the refusal says of clients: by client, round and seed other noise, of this std."""
    size, clients = 2000, 3
    data = fs.FederatedData.from_clients([{"x": np.ones(2, np.float32)}] * clients)

    def loss_fn(w, batch, key):
        noise = jnp.vdot(0.5 * jax.random.normal(key, w.shape), w)
        return 0 * batch["x"] + w.sum() + noise

    algorithm = fs.fedavg(loss_fn, optax.sgd(1.0), LOCAL)
    state = fs.init(algorithm, np.zeros(size, np.float32), data)
    step = jax.jit(fs.make_round(algorithm))
    moves = []
    for seed in (0, 1):
        for t in (0, 1):
            at = jax.tree.map(
                jnp.asarray,
                state.__class__(state.server, state.clients, jnp.int32(t), state.get_params),
            )
            for client in range(clients):
                after, _ = step(jax.random.key(seed), at, data, fs.Cohort(jnp.array([client])))
                moves.append(-np.asarray(after.params))
    noise = np.array(moves) - 1  # the gradient without it is 1
    np.testing.assert_allclose(noise.std(axis=1), 0.5, rtol=0.1)
    others = np.corrcoef(noise) - np.eye(len(noise))
    assert np.abs(others).max() < 0.15


@pytest.mark.parametrize(
    "make",
    [
        lambda: fs.fedavg(linear_loss, optax.sgd(0.1), LOCAL),
        lambda: fs.fedsgd(linear_loss, optax.sgd(0.1)),
    ],
    ids=["fedavg", "fedsgd"],
)
def test_noise_from_the_key_of_finish_is_in_the_update(data, make):
    """What the refusal says of the server: other noise by seed, none where its std is 0."""
    base = make()

    def noisy(std):
        def finish(*arguments):
            output, key = base.client.finish(*arguments), arguments[-1]
            return output._replace(
                update=jax.tree.map(
                    lambda u: u + std * jax.random.normal(key, u.shape), output.update
                )
            )

        return base._replace(client=base.client._replace(finish=finish), pooled_gradient=None)

    @jax.jit
    def params(seed, std):
        algorithm = noisy(std)
        state = fs.init(algorithm, zeros(), data)
        cohort = fs.Cohort(jnp.array([1, 5]))
        after, _ = fs.make_round(algorithm)(jax.random.key(seed), state, data, cohort)
        return after.params["w"]

    np.testing.assert_array_equal(params(0, 0.0), params(1, 0.0))
    assert np.abs(params(0, 1.0) - params(1, 1.0)).min() > 1e-3
