"""Clients' weights of any size: only their ratios matter, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fedjax_sim as fs
from tests.conftest import MESH

VALUES = np.array([3.0, 5.0, 7.0, 11.0], np.float32)
CLIENTS = [np.full(2, v, np.float32) for v in VALUES]
FULL = fs.LocalTraining(1, None)


def square_loss(w, batch, key):
    return (w - batch) ** 2 / 2


@given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4),
    exponent=st.integers(-1000, 1000),
)
@example(weights=[1, 2, 3, 4], exponent=-120)  # 1e-36
@example(weights=[1, 2, 3, 4], exponent=127)  # whose sum overflows float32
def test_a_federation_keeps_the_ratios_and_ordinary_weights_as_they_are(weights, exponent):
    scaled = np.ldexp(np.array(weights, np.float64), exponent)
    kept = np.asarray(fs.FederatedData.from_clients(CLIENTS, scaled).client_weights)
    plain = np.asarray(weights, np.float32)
    assert np.isfinite(kept.sum())
    factor = kept[0] / plain[0]
    assert np.frexp(factor)[0] == 0.5  # a power of two
    np.testing.assert_array_equal(kept, plain * factor)
    if abs(exponent) < 40:
        np.testing.assert_array_equal(kept, scaled.astype(np.float32))


def test_weights_that_cannot_stand_beside_each_other_are_refused():
    for weights in ([1, 1e-39], [1e300, 1e100], [1e-300, 1e-200]):
        with pytest.raises(ValueError, match="client_weights must fit float32 beside each other"):
            fs.FederatedData.from_clients(CLIENTS[:2], weights)
    for weights in ([1, 1e-37], [1e36, 0.1], [5e-324, 5e-324], [1.7e308] * 2, [0, 1e-310]):
        kept = fs.FederatedData.from_clients(CLIENTS[:2], weights).client_weights
        ratio = np.float64(weights[0]) / weights[1]
        np.testing.assert_allclose(np.float64(kept[0]) / np.float64(kept[1]), ratio, rtol=1e-6)


STRATEGIES = {
    "vmapped": fs.execution.vmapped(),
    "packed": fs.execution.packed(1),
    "sharded": fs.execution.sharded(MESH, fs.execution.packed(1)),
}
ROUNDS = {
    (name, kind): jax.jit(fs.make_round(made, execution=STRATEGIES[name]))
    for kind, made in (
        ("fedavg", fs.fedavg(square_loss, optax.sgd(0.5), FULL)),
        ("fedsgd", fs.fedsgd(square_loss, optax.sgd(0.5))),
    )
    for name in STRATEGIES
    if (name, kind) != ("sharded", "fedsgd")
}


@pytest.mark.parametrize(("name", "kind"), ROUNDS)
def test_a_round_is_the_same_whatever_the_weights_are_multiplied_with(name, kind):
    """Alone or among clients of much more weight, at the build's scale or handed in by a rule."""
    made = {
        "fedavg": fs.fedavg(square_loss, optax.sgd(0.5), FULL),
        "fedsgd": fs.fedsgd(square_loss, optax.sgd(0.5)),
    }[kind]
    weights = np.array([3.0, 0.7, 1.1, 5.0])

    def params(weights, ids):
        data = fs.FederatedData.from_clients(CLIENTS, weights)
        state = fs.init(made, 1.0, data)
        state, metrics = ROUNDS[name, kind](jax.random.key(0), state, data, fs.Cohort(ids))
        assert not bool(metrics.empty)
        return np.asarray(state.params)

    ids = jnp.array([0, 1, 2])
    expected = params(weights, ids)
    exact = 1 + 0.5 * (np.average(VALUES[:3], weights=weights[:3]) - 1)
    np.testing.assert_allclose(expected, exact, rtol=1e-6)
    for exponent in (-122, -1000, 126, 1000):
        np.testing.assert_array_equal(params(np.ldexp(weights, exponent), ids), expected)
    # Client 3 has nearly all the weight and takes no part.
    heavy = np.ldexp(weights, [-115, -115, -115, 0])
    np.testing.assert_array_equal(params(heavy, ids), expected)


def test_tiny_weights_of_a_rule_move_the_model():
    data = fs.FederatedData.from_clients(CLIENTS)
    made = fs.fedavg(square_loss, optax.sgd(1.0), FULL)

    def rule(cohort, client_weights, all_client_weights):
        return client_weights * 1e-37, jnp.sum(all_client_weights) * 1e-37

    def state_of(scaled):
        round_fn = fs.make_round(made, scaled, fs.execution.vmapped())
        cohort = fs.Cohort(jnp.array([0, 1]))
        return jax.jit(round_fn)(jax.random.key(0), fs.init(made, 1.0, data), data, cohort)[0]

    np.testing.assert_allclose(state_of(rule).params, 1 + (2 * 2 + 2 * 4) / 8, rtol=1e-6)


def test_what_the_server_is_told_is_not_scaled():
    told = []
    made = fs.fedavg(square_loss, optax.sgd(1.0), FULL)

    def server_update(server, update, total, context):
        told.append((context.weight_sum, context.reporting_share))
        return made.server_update(server, update, total, context)

    data = fs.FederatedData.from_clients(CLIENTS, [3.0, 0.75, 1.25, 5.0])
    round_fn = fs.make_round(
        made._replace(server_update=server_update), execution=fs.execution.vmapped()
    )
    round_fn(jax.random.key(0), fs.init(made, 1.0, data), data, fs.Cohort(jnp.array([0, 2])))
    assert float(told[0][0]) == 4.25
    np.testing.assert_allclose(told[0][1], 0.425)
