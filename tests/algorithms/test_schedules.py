"""optax's learning-rate schedules over rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import flat, linear_loss, standard_promotion, zeros
from tests.helpers.reference import Server

ROUNDS, DECAY = 6, 4
KEY, LOCAL = jax.random.key(0), fs.LocalTraining(2, 4, shuffle=False)


def cosine(rate):
    return optax.cosine_decay_schedule(rate, decay_steps=DECAY, alpha=0.1)


def reference(clients, data, sampler, rate, algorithm="fedavg"):
    server = Server(algorithm, clients, [len(y) for _, y in clients], 5, rate)
    for t in range(ROUNDS):
        done = min(t, DECAY) / DECAY
        server.lr = rate * (0.9 * (1 + np.cos(np.pi * done)) / 2 + 0.1)
        ids = np.asarray(sampler.sample(KEY, t, data).client_ids)
        ones = np.ones(len(ids))
        server.round("selected", ids, ones, ones, None, ones, 2, 4, "epochs")
    return server.w


def final(data, sampler, rate, algorithm="fedavg"):
    schedule = cosine(rate)
    algorithm = {
        "fedavg": lambda: fs.fedavg(linear_loss, lambda round: optax.sgd(schedule(round)), LOCAL),
        "scaffold": lambda: fs.scaffold(linear_loss, schedule, LOCAL),
    }[algorithm]()
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


def test_scaffolds_rate_by_round_against_numpy(clients, data):
    """c_k+ divides by the rate of its own round; the reference has another rate in each."""
    sampler = fs.sampling.uniform(4)
    with standard_promotion():
        got = flat(jax.jit(lambda rate: final(data, sampler, rate, "scaffold"))(0.03))
    expected = reference(clients, data, sampler, 0.03, "scaffold")
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert np.abs(expected - reference(clients, data, sampler, 0.03)).max() > 1e-3


def test_scaffold_at_rate_zero_stands_still_and_keeps_its_control_variates(data):
    """A schedule that has ended near 0: what is left of the model's move is no gradient."""
    rates = jnp.array([0.05, 0.05, 0.0, 1e-12, 1e-30, 1e-40])
    algorithm = fs.scaffold(linear_loss, lambda round: rates[round], LOCAL)
    step = jax.jit(fs.make_round(algorithm))
    state = fs.init(algorithm, zeros(), data)
    cohort = fs.Cohort(jnp.array([1, 4, 5]))
    for _ in range(2):
        state, _ = step(KEY, state, data, cohort)
    after = state
    for _ in rates[2:]:
        after, _ = step(KEY, after, data, cohort)
        for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            assert np.isfinite(x).all()
            if x.ndim:
                np.testing.assert_array_equal(x, y)
    assert np.abs(jax.tree.leaves(state.clients)[0]).max() > 0
    assert np.abs(state.server.control["w"]).min() > 1e-3  # which a move of 0 would take off c_k


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (lambda round: jnp.ones(2), r"client_lr must be a number, or .*returns float32\[2\]"),
        (lambda round: round, r"client_lr must be a number, or .*returns int32\[\]"),
        (optax.sgd, "client_lr must be a number, or a function of the round that returns one; of"),
        (lambda: 0.1, "client_lr must be a number, or a function of the round that returns one"),
    ],
)
def test_what_is_no_rate_by_round_is_refused_by_init(data, rate, message):
    with pytest.raises(ValueError, match=message):
        fs.init(fs.scaffold(linear_loss, rate, LOCAL), zeros(), data)
