"""What the server is told of a round, and that it may act where nobody reports."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import MESH, SIZES, linear_loss, zeros
from tests.helpers.rules import any_rule

LOCAL = fs.LocalTraining(1, 4, shuffle=False)
COHORT = fs.Cohort(
    jnp.array([1, 4, 5, 2]),
    reports=jnp.array([True, True, False, True]),
    inclusion=jnp.array([0.5, 0.25, 0.5, 0.5]),
)
SIZE = np.array([SIZES[1], SIZES[4]], float)  # of the two that report and have examples


def noisy(acts_when_empty=False):
    """A model that moves by the mean update and the server's noise."""
    base = fs.fedavg(linear_loss, optax.sgd(0.02), LOCAL)

    def server_update(server, update, total, context):
        # Uniform, because a normal number is rounded as the loop around it is compiled.
        noise = jax.tree.map(lambda u: jax.random.uniform(context.key, u.shape), update)
        moved = base.server_update(server, jax.tree.map(jnp.add, update, noise), total, context)
        return moved._replace(optimizer=(noise["w"], *moved.optimizer[1:]))

    def init(params):
        return base.init(params)._replace(optimizer=(jnp.zeros(4), optax.EmptyState()))

    return base._replace(init=init, server_update=server_update, acts_when_empty=acts_when_empty)


def test_noise_differs_by_round_and_not_by_strategy(data):
    strategies = [
        fs.execution.vmapped(),
        fs.execution.packed(2),
        fs.execution.sharded(MESH, fs.execution.packed(1)),
    ]
    algorithm, drawn = noisy(), []
    for execution in strategies:
        state = fs.init(algorithm, zeros(), data)
        round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
        noises = []
        # Two rounds, then the second again with another cohort, and with another seed.
        state, _ = round_fn(jax.random.key(0), state, data, COHORT)
        noises.append(state.server.optimizer[0])
        others = COHORT._replace(client_ids=jnp.array([5, 7, 0, 3]))
        for seed, cohort in ((0, COHORT), (0, others), (1, COHORT)):
            later, _ = round_fn(jax.random.key(seed), state, data, cohort)
            noises.append(later.server.optimizer[0])
        drawn.append(np.array(noises))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])
    first, second, of_others, of_another_seed = drawn[0]
    np.testing.assert_array_equal(second, of_others)
    assert not np.isclose(first, second).any()
    assert not np.isclose(second, of_another_seed).any()


def test_acts_when_empty(data):
    """Where nobody reports, its step is taken with an update of zeros, and only there."""
    nobody = COHORT._replace(reports=jnp.zeros(4, bool))
    for acts in (False, True):
        algorithm = noisy(acts)
        state = fs.init(algorithm, zeros(), data)
        round_fn = jax.jit(fs.make_round(algorithm, execution=fs.execution.vmapped()))
        after, metrics = round_fn(jax.random.key(0), state, data, nobody)
        assert bool(metrics.empty)
        assert np.isnan(metrics.update_norm)
        # The noise alone, from a model of zeros; or nothing at all.
        np.testing.assert_array_equal(after.params["w"], after.server.optimizer[0])
        assert after.params["w"].any() == acts
        full, metrics = round_fn(jax.random.key(0), state, data, COHORT)
        assert not bool(metrics.empty)
        assert not np.array_equal(full.params["w"], full.server.optimizer[0])
    with pytest.raises(ValueError, match="acts_when_empty must be True or False; got 1"):
        fs.make_round(noisy(1))


def test_what_was_divided_by(data):
    """By hand: clients of 12 and 7 of 60 examples report; a client has no examples."""
    n = sum(SIZES)
    unbiased = SIZE / n / np.array([0.5, 0.25])
    by_rule = {
        "selected": (SIZE.sum(), SIZE.sum(), SIZE.max()),
        "all_clients": (n, SIZE.sum(), SIZE.max()),
        "uniform": (2, 2, 1),
        "unbiased": (1, unbiased.sum(), unbiased.max()),
    }
    base = fs.fedsgd(linear_loss, optax.sgd(0.02))

    def server_update(server, update, total, context):
        told = context.denominator, context.weight_sum, context.largest_weight
        return server._replace(optimizer=told)

    algorithm = base._replace(
        init=lambda params: base.init(params)._replace(optimizer=(jnp.float32(0),) * 3),
        server_update=server_update,
    )
    state = fs.init(algorithm, zeros(), data)

    @jax.jit
    def told(number):
        round_fn = fs.make_round(algorithm, any_rule(number), fs.execution.vmapped())
        return round_fn(jax.random.key(0), state, data, COHORT)[0].server.optimizer

    for number, rule in enumerate(fs.aggregation.RULES):
        np.testing.assert_allclose(told(number), by_rule[rule], rtol=1e-6, err_msg=rule)
