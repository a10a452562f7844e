"""q-FedAvg: FedAvg at q = 0, and losses that have no powers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import flat, linear_loss, zeros

KEY, COHORT = jax.random.key(0), fs.Cohort([1, 4, 5, 7])
# What compiles fastest: the contract has the other strategies and orders.
LOCAL, EXECUTION = fs.LocalTraining(2, 4, shuffle=False), fs.execution.vmapped()


def after_a_round(algorithm, data):
    state = fs.init(algorithm, zeros(), data)
    round_fn = fs.make_round(algorithm, fs.aggregation.uniform, EXECUTION)
    return round_fn(KEY, state, data, COHORT)[0].params


def test_with_q_0_it_is_fedavg(data):
    algorithms = (
        fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL),
        fs.qfedavg(linear_loss, 0.05, LOCAL, q=0.0),
    )
    simpler, params = jax.jit(lambda: [after_a_round(one, data) for one in algorithms])()
    np.testing.assert_allclose(flat(params), flat(simpler), atol=1e-6)


def test_a_sweep_is_its_configurations_one_by_one(data):
    def end(client_lr, q):
        fair = fs.qfedavg(linear_loss, client_lr, LOCAL, q)
        return after_a_round(fair, data)

    grid = jnp.array([[0.02, 0.0], [0.05, 0.3], [0.03, 2.0]])
    swept = jax.jit(jax.vmap(lambda row: end(*row)))(grid)
    one_by_one = jax.jit(lambda rows: jax.lax.map(lambda row: end(*row), rows))(grid)
    for many, one in zip(jax.tree.leaves(swept), jax.tree.leaves(one_by_one), strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)


def test_clients_without_any_loss_leave_the_model(data):
    """Of a loss of 0 neither F^(q - 1) nor 0 / 0 is taken, in the round or in its derivative."""
    data = fs.FederatedData.from_clients([np.zeros(2), np.zeros(1), np.full(2, 3.0)])

    def end(q, ids):
        fair = fs.qfedavg(lambda w, batch, key: (w - batch) ** 2, 0.1, fs.LocalTraining(1, None), q)
        round_fn = fs.make_round(fair, fs.aggregation.uniform, EXECUTION)
        state, metrics = round_fn(KEY, fs.init(fair, 0.0, data), data, fs.Cohort(ids))
        return state.params, metrics.nonfinite

    values = jax.jit(jax.vmap(jax.value_and_grad(end, has_aux=True), (0, None)))
    qs = jnp.array([0.0, 0.5, 1.0, 2.0])
    (still, nonfinite), slopes = values(qs, jnp.array([0, 1]))
    np.testing.assert_array_equal(still, 0)
    np.testing.assert_array_equal(nonfinite, 0)
    np.testing.assert_array_equal(slopes, 0)
    # With client 2, by hand: F = 9 and its gradient -6, of the other F = 0 and its gradient 0.
    (moved, _), slopes = values(qs, jnp.array([0, 2]))
    for q, w, slope in zip(np.asarray(qs), moved, slopes, strict=True):
        h = q * 9.0 ** (q - 1) * 36 + 9.0**q / 0.1 + (1 / 0.1 if q == 0 else 0)
        np.testing.assert_allclose(w, 9.0**q * 6 / h, rtol=1e-5)
        assert np.isfinite(slope)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"client_lr": -0.1}, "client_lr must be finite and positive; got -0.1"),
        ({"q": -1.0}, "q must be finite and at least 0; got -1.0"),
        ({"q": [1.0]}, "q must be a number, at least 0"),
        ({"local": fs.LocalTraining(0)}, "epochs must be a whole number, at least 1"),
    ],
)
def test_refusals(wrong, message):
    right = {"client_lr": 0.1, "local": fs.LocalTraining(), "q": 1.0}
    with pytest.raises(ValueError, match=message):
        fs.qfedavg(linear_loss, **(right | wrong))


def test_a_loss_that_needs_its_key_is_refused(data):
    def noisy(params, batch, key):
        return linear_loss(params, batch, key) * jax.random.uniform(key, batch["y"].shape)

    several = jax.tree.map(lambda w: np.stack([w, w + 1]), zeros())
    for algorithm, params in (
        (fs.qfedavg(noisy, 0.1, fs.LocalTraining(), 1.0), zeros()),
        (fs.ifca(noisy, optax.sgd(0.1), fs.LocalTraining(), 2), several),
    ):
        with pytest.raises(ValueError, match="loss_fn must take None as its key"):
            fs.init(algorithm, params, data)


def test_a_model_of_float16_does_not_overflow():
    """Of F = 400 and |g| = 40, F^2 g is 6.4e6, and the largest number of float16 is 65504."""
    data = fs.FederatedData.from_clients([np.full(1, 20, np.float16)])
    fair = fs.qfedavg(lambda w, y, key: (w - y) ** 2, 1e-3, fs.LocalTraining(1, None), 2.0)
    state = fs.init(fair, jnp.zeros((), jnp.float16), data)
    round_fn = jax.jit(fs.make_round(fair, execution=EXECUTION))
    state, _ = round_fn(KEY, state, data, fs.Cohort(jnp.array([0])))
    g = -2 * 20
    by_hand = -(400**2) * g / (2 * 400 * g**2 + 400**2 / 1e-3)
    np.testing.assert_allclose(float(state.params), by_hand, rtol=2e-3)
