"""optax's learning-rate schedules over rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import flat, linear_loss, standard_promotion, zeros
from tests.reference import Server

ROUNDS, DECAY = 6, 4
KEY, LOCAL = jax.random.key(0), fs.LocalTraining(2, 4, shuffle=False)


def cosine(rate):
    return optax.cosine_decay_schedule(rate, decay_steps=DECAY, alpha=0.1)


def reference(clients, data, sampler, rate):
    server = Server("fedavg", clients, [len(y) for _, y in clients], 5, rate)
    for t in range(ROUNDS):
        done = min(t, DECAY) / DECAY
        server.lr = rate * (0.9 * (1 + np.cos(np.pi * done)) / 2 + 0.1)
        ids = np.asarray(sampler.sample(KEY, t, data).client_ids)
        ones = np.ones(len(ids))
        server.round("selected", ids, ones, ones, None, ones, 2, 4, "epochs")
    return server.w


def final(data, sampler, rate):
    schedule = cosine(rate)
    algorithm = fs.fedavg(linear_loss, lambda round: optax.sgd(schedule(round)), LOCAL)
    round_fn, state = fs.make_round(algorithm), fs.init(algorithm, zeros(), data)
    return fs.run(round_fn, KEY, state, data, sampler, ROUNDS)[0].params


@pytest.mark.parametrize("sampler", [fs.sampling.everyone(), fs.sampling.uniform(4)])
def test_a_schedule_of_optax_in_a_run_and_a_sweep_of_its_first_rate(clients, data, sampler):
    rates = np.array([0.01, 0.03, 0.06], np.float32)
    with standard_promotion():  # which optax's schedules rely on
        both = jax.jit(jax.vmap(lambda rate: final(data, sampler, rate)))(jnp.asarray(rates))
        alone = jax.jit(lambda: final(data, sampler, float(rates[1])))()
    for i, rate in enumerate(rates):
        expected = reference(clients, data, sampler, float(rate))
        got = flat(jax.tree.map(lambda x, i=i: x[i], both))
        np.testing.assert_allclose(got, expected, atol=2e-5)
        if i == 1:
            np.testing.assert_allclose(flat(alone), expected, atol=2e-5)
