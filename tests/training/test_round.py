"""One round: hand-computed numbers, identities, compilation, odd updates, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from tests.conftest import MESH, SIZES, flat, linear_loss, slow_after, standard_promotion, zeros
from tests.helpers.reference import Server, blocks, gradient

K = len(SIZES)
FULL = fs.LocalTraining(epochs=1, batch_size=None)


def square_loss(w, batch, key):
    return (w - batch) ** 2 / 2  # a step of SGD at rate 1 goes to the mean of the batch


def mean_clients(*values):
    """One client for each list; a full-batch step at rate 1 goes to its mean."""
    return fs.FederatedData.from_clients([np.array(v, np.float32) for v in values])


def cohort_of(ids, mask=None, **fields):
    mask = jnp.ones(len(ids), bool) if mask is None else mask
    return fs.Cohort(jnp.asarray(ids, jnp.int32), mask, **fields)


def one_round(rule, data, cohort, algorithm=None, start=1.0, **options):
    algorithm = algorithm or fs.fedavg(square_loss, optax.sgd(1.0), FULL)
    round_fn = jax.jit(fs.make_round(algorithm, getattr(fs.aggregation, rule), **options))
    return round_fn(jax.random.key(0), fs.init(algorithm, start, data), data, cohort)


# Clients of 1, 2 and 5 examples with means 2, 4 and 8; w_0 = 1; clients 0 and 1 selected.
HAND = {
    "selected": (1 * 2 + 2 * 4) / 3,
    "all_clients": (1 * 2 + 2 * 4 + 5 * 1) / 8,
    "uniform": (2 + 4) / 2,
    "unbiased": 1 + (1 / 8) / (2 / 3) * (2 - 1) + (2 / 8) / (2 / 3) * (4 - 1),
}


@pytest.mark.parametrize("rule", HAND)
def test_hand_computed(rule):
    data = mean_clients([2.0], [3.0, 5.0], [8.0] * 5)
    cohort = cohort_of([0, 1], inclusion=jnp.full(2, 2 / 3))
    state, metrics = one_round(rule, data, cohort)
    assert float(state.params) == pytest.approx(HAND[rule], abs=1e-6)
    # The loss before the step, over the examples: 0.5 ((1-2)^2 + (1-3)^2 + (1-5)^2) / 3.
    assert float(metrics.train["loss"]) == pytest.approx(0.5 * (1 + 4 + 16) / 3)
    assert float(metrics.reporting_share) == pytest.approx(3 / 8)
    assert (int(metrics.client_steps), int(metrics.reporting)) == (2, 2)
    assert int(metrics.receivers) == (3 if rule == "all_clients" else 2)
    assert int(metrics.senders) == 2


@pytest.mark.parametrize(
    "local", slow_after(1, [fs.LocalTraining(2, 4), FULL, fs.LocalTraining(3, None)])
)
def test_identity_of_the_modes(data, local):
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), local)
    state = fs.init(algorithm, {"w": np.ones(4, np.float32), "b": np.float32(1)}, data)
    one = jax.jit(fs.make_round(algorithm, fs.aggregation.selected))
    both = jax.jit(fs.make_round(algorithm, fs.aggregation.all_clients))
    sampler = fs.sampling.uniform(3)
    for t in range(5):
        cohort = sampler.sample(jax.random.key(5), t, data)
        selected, metrics = one(jax.random.key(1), state, data, cohort)
        everyone, _ = both(jax.random.key(1), state, data, cohort)
        w = flat(state.params)
        share = float(metrics.reporting_share)
        expected = w + share * (flat(selected.params) - w)
        np.testing.assert_allclose(flat(everyone.params), expected, atol=3e-7)
        state = selected


@pytest.mark.parametrize("rule", ["selected", "all_clients"])
@pytest.mark.parametrize(
    "local",
    [fs.LocalTraining(3, None), fs.LocalTraining(3, 4, shuffle=False)],
    ids=["full", "minibatches"],
)
def test_ten_rounds_against_numpy(clients, data, rule, local):
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), local)
    round_fn = jax.jit(fs.make_round(algorithm, getattr(fs.aggregation, rule)))
    state = fs.init(algorithm, zeros(), data)
    reference = Server("fedavg", clients, SIZES, 5, 0.05)
    sampler, key, ones = fs.sampling.uniform(4), jax.random.key(2), np.ones(4)
    for t in range(10):
        cohort = sampler.sample(key, t, data)
        state, _ = round_fn(key, state, data, cohort)
        ids = np.asarray(cohort.client_ids)
        reference.round(rule, ids, ones, ones, ones, ones, 3, local.batch_size, "epochs")
        np.testing.assert_allclose(flat(state.params), reference.w, atol=1e-5)
    assert np.abs(reference.w).max() > 0.3


@pytest.mark.parametrize(
    ("rule", "kind"),
    [pytest.param("selected", "scaffold", marks=pytest.mark.slow), ("all_clients", "fedavg")],
)
@pytest.mark.parametrize(
    "execution", slow_after(1, [fs.execution.packed(3), fs.execution.vmapped()])
)
@standard_promotion()
def test_masked_over_all_equals_gathered(data, rule, kind, execution):
    local = fs.LocalTraining(2, 4)
    algorithm = {
        "fedavg": fs.fedavg(linear_loss, optax.adam(0.05), local),
        "scaffold": fs.scaffold(linear_loss, 0.05, local),
    }[kind]
    state = fs.init(algorithm, zeros(), data)
    key, exact = jax.random.key(4), execution == fs.execution.packed(3)
    round_fn = jax.jit(fs.make_round(algorithm, getattr(fs.aggregation, rule), execution))
    gathered = masked = state
    for t in range(3):
        ids = np.sort(np.asarray(fs.sampling.uniform(4).sample(key, t, data).client_ids))
        mask = np.zeros(K, bool)
        mask[ids] = True
        whole = fs.Cohort(jnp.arange(K, dtype=jnp.int32), jnp.asarray(mask))
        gathered, small = round_fn(key, gathered, data, cohort_of(ids))
        masked, large = round_fn(key, masked, data, whole)
        if exact:
            np.testing.assert_array_equal(flat(gathered.params), flat(masked.params))
        np.testing.assert_allclose(flat(gathered.params), flat(masked.params), atol=1e-6)
        if not exact:  # idle slots step along
            assert int(large.lane_steps) == int(small.lane_steps) * K / 4
            large = large._replace(lane_steps=small.lane_steps)
        for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(large), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("execution", [fs.execution.vmapped(), fs.execution.packed(2)])
def test_one_trace_one_executable_no_callback(data, execution):
    traces = []

    def loss_fn(params, batch, key):
        traces.append(1)
        return linear_loss(params, batch, key)

    algorithm = fs.scaffold(loss_fn, 0.05, fs.LocalTraining(2, 4))
    state = fs.init(algorithm, zeros(), data)
    round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
    rng = np.random.default_rng(0)
    counts = set()
    traces.clear()
    for i in range(50):
        cohort = fs.Cohort(
            jnp.asarray(rng.permutation(K)[:5], jnp.int32), jnp.asarray(rng.random(5) < 0.7)
        )
        state, _ = round_fn(jax.random.key(i), state, data, cohort)
        counts.add(len(traces))
    assert len(counts) == 1  # nothing was traced after the first call
    assert round_fn._cache_size() == 1

    arguments = (jax.random.key(0), state, data, cohort)
    jaxpr = str(jax.make_jaxpr(fs.make_round(algorithm, execution=execution))(*arguments))
    assert "scan" in jaxpr or "while" in jaxpr
    assert "callback" not in jaxpr
    text = round_fn.lower(*arguments).compile().as_text()
    assert text.count("HloModule") == 1
    assert "custom-call" not in text or "callback" not in text


@pytest.mark.slow
def test_jit_equals_no_jit(data):
    for execution in (fs.execution.vmapped(), fs.execution.packed(2)):
        algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), fs.LocalTraining(1, 8))
        round_fn = fs.make_round(algorithm, execution=execution)
        state, key = fs.init(algorithm, zeros(), data), jax.random.key(0)
        plain, _ = round_fn(key, state, data, cohort_of([1, 4, 6]))
        jitted, _ = jax.jit(round_fn)(key, state, data, cohort_of([1, 4, 6]))
        np.testing.assert_allclose(flat(plain.params), flat(jitted.params), atol=1e-6)


@standard_promotion()
def test_empty_round_keeps_momentum_bit_for_bit(data):
    algorithm = fs.fedavg(
        linear_loss, optax.sgd(0.05), FULL, server_optimizer=optax.adam(0.1, b1=0.9)
    )
    round_fn = jax.jit(fs.make_round(algorithm))
    key, state = jax.random.key(0), fs.init(algorithm, zeros(), data)
    state, metrics = round_fn(key, state, data, cohort_of([0, 1, 4]))
    assert not bool(metrics.empty)
    nobody = fs.Cohort(jnp.arange(3, dtype=jnp.int32), jnp.zeros(3, bool))
    after, metrics = round_fn(key, state, data, nobody)
    assert bool(metrics.empty)
    assert np.isnan(metrics.train["loss"])
    assert int(after.round) == int(state.round) + 1
    for old, new in zip(jax.tree.leaves(state.server), jax.tree.leaves(after.server), strict=True):
        np.testing.assert_array_equal(old, new)


def test_zero_weights_change_nothing():
    data = fs.FederatedData.from_clients(
        [np.ones(2, np.float32), np.ones(3, np.float32)], client_weights=[0, 1]
    )
    for rule in ("selected", "all_clients"):
        state, metrics = one_round(rule, data, cohort_of([0]), start=5.0)
        assert float(state.params) == 5.0
        assert bool(metrics.empty)


@pytest.mark.parametrize(
    "execution", slow_after(1, [fs.execution.packed(2), fs.execution.vmapped()])
)
@pytest.mark.parametrize("algorithm", ["fedavg", "fedsgd", "scaffold"])
def test_nonfinite_is_counted_and_dropped(execution, algorithm):
    data = mean_clients([2.0], [4.0, 4.0], [0.0], [3.0])

    def loss_fn(w, batch, key):  # client 2 diverges: its gradient is infinite
        return jnp.where(batch == 0, jnp.inf, 1.0) * (w - batch) ** 2 / 2

    made = {
        "fedavg": fs.fedavg(loss_fn, optax.sgd(1.0), FULL),
        "fedsgd": fs.fedsgd(loss_fn, optax.sgd(1.0)),
        "scaffold": fs.scaffold(loss_fn, 1.0, FULL),
    }[algorithm]
    cohort = cohort_of([0, 1, 2])
    kept, metrics = one_round("selected", data, cohort, made, execution=execution)
    assert not np.isfinite(float(kept.params))
    assert (int(metrics.nonfinite), int(metrics.reporting)) == (1, 3)
    state, metrics = one_round(
        "selected", data, cohort, made, execution=execution, nonfinite="drop"
    )
    assert float(state.params) == pytest.approx((1 * 2 + 2 * 4) / 3)
    assert (int(metrics.nonfinite), int(metrics.reporting)) == (1, 2)
    assert int(metrics.senders) == 3  # it did send
    assert np.isfinite(jax.tree.leaves(state.clients)).all()


def test_repeated_draws_count_each_but_send_once():
    data = mean_clients([2.0], [4.0], [8.0], [1.0])
    cohort = cohort_of([1, 1, 0], inclusion=jnp.full(3, 3 / 4))
    for rule in ("selected", "uniform", "unbiased"):  # w_0 = 0; p_k/pi_k = (1/4)/(3/4)
        state, metrics = one_round(rule, data, cohort, start=0.0)
        assert float(state.params) == pytest.approx((4 + 4 + 2) / 3)
        assert (int(metrics.receivers), int(metrics.senders), int(metrics.reporting)) == (2, 2, 3)


def test_all_clients_counts_a_repeated_draw_once():
    data = mean_clients([2.0] * 9, [4.0])
    state, _ = one_round("all_clients", data, cohort_of([0, 0, 0]), start=0.0)
    assert float(state.params) == pytest.approx(1.8)


@pytest.mark.parametrize("execution", [fs.execution.vmapped(), fs.execution.packed(1)])
def test_all_clients_counts_the_draw_that_does_something(execution):
    """Client 0 is drawn twice, and the first draw completes no step: w_1 = 9/10 2."""
    data = mean_clients([2.0] * 9, [4.0])
    cohort = cohort_of([0, 0], work=jnp.array([0.0, 1.0]))
    state, metrics = one_round("all_clients", data, cohort, start=0.0, execution=execution)
    assert float(state.params) == pytest.approx(1.8)
    assert (int(metrics.reporting), bool(metrics.empty)) == (1, False)


@pytest.mark.parametrize("execution", [fs.execution.vmapped(), fs.execution.packed(1)])
def test_fedsgd_counts_repeated_draws_as_fedavg_does(execution):
    """w_1 = 1 - (g_1 + g_1 + g_0) / 3, with each draw's loss before the step."""
    data = mean_clients([2.0], [4.0], [8.0] * 5)
    cohort = cohort_of([1, 1, 2, 0], mask=jnp.array([True, True, False, True]))
    for made in (fs.fedsgd(square_loss, optax.sgd(1.0)), None):
        state, metrics = one_round("uniform", data, cohort, made, execution=execution)
        assert float(state.params) == pytest.approx((4 + 4 + 2) / 3)
        assert float(metrics.train["loss"]) == pytest.approx((9 + 9 + 1) / 2 / 3)
        assert (int(metrics.reporting), int(metrics.examples)) == (3, 3)


@pytest.mark.parametrize("execution", [fs.execution.vmapped(), fs.execution.packed(1)])
def test_both_draws_of_a_client_whose_loss_is_infinite_are_marked(execution):
    data = mean_clients([2.0], [0.0])

    def loss_fn(w, batch, key):
        return jnp.where(batch == 0, jnp.inf, 1.0) * (w - batch) ** 2 / 2

    made = fs.fedsgd(loss_fn, optax.sgd(1.0))
    _, metrics = one_round("selected", data, cohort_of([1, 0, 1]), made, execution=execution)
    assert (int(metrics.nonfinite), int(metrics.reporting)) == (2, 3)


def test_fedsgd_of_more_draws_than_32_bits_count():
    """40 000 draws of one client of 70 000 examples, 2.8e9: the mean is still 2."""
    data = mean_clients([2.0] * 70_000)
    made = fs.fedsgd(square_loss, optax.sgd(1.0))
    cohort = cohort_of(np.zeros(40_000))
    state, metrics = one_round("uniform", data, cohort, made, execution=fs.execution.packed())
    assert float(state.params) == pytest.approx(2, rel=1e-5)
    assert float(metrics.train["loss"]) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("rule", ["selected", "unbiased"])
def test_fedsgd_in_16_bits_overflows_no_sum_and_loses_no_weight(dtype, rule):
    """A block's sum of gradients, -300 x 512, is outside of float16, a weight 1e-5 / 512 below."""

    def loss_fn(w, batch, key):
        return (w - batch.astype(w.dtype)) * jnp.asarray(-300, w.dtype)

    data = mean_clients([1.0] * 1024)
    made = fs.fedsgd(loss_fn, optax.sgd(1.0))
    cohort = cohort_of([0], inclusion=jnp.full(1, 100.0))
    start = jnp.zeros((), dtype)
    state, _ = one_round(rule, data, cohort, made, start)
    expected = 300 if rule == "selected" else 3
    assert float(state.params) == pytest.approx(expected, rel=1e-2)


# Clients of 1, 2 and 5 examples; blocks of 2 and two epochs: 2, 2 and 6 steps.
@pytest.mark.parametrize(
    ("execution", "lane_steps"),
    [
        (fs.execution.vmapped(), 3 * 6),
        (fs.execution.packed(1), 2 + 2 + 6),
        # Two lanes side by side, 2 + 6 together up to the first end, then 2 beside what is left:
        # 2 x 2, 2 x 2, and the last client's last two steps alone.
        (fs.execution.packed(2), 2 * 2 + 2 * 2 + 2),
        (fs.execution.sharded(MESH, fs.execution.vmapped()), 2 * 2 * 6),
        pytest.param(
            fs.execution.sharded(MESH, fs.execution.packed(1)), 2 + 2 + 6, marks=pytest.mark.slow
        ),
    ],
)
def test_the_ledger_by_hand(execution, lane_steps):
    data = mean_clients([2.0], [3.0, 5.0], [8.0] * 5)
    local = fs.LocalTraining(2, 2)
    made = fs.fedavg(square_loss, optax.sgd(1.0), local)
    _, metrics = one_round("selected", data, cohort_of([0, 1, 2]), made, execution=execution)
    assert int(metrics.client_steps) == 2 + 2 + 6
    assert int(metrics.lane_steps) == lane_steps
    assert int(metrics.examples) == 2 * (1 + 2 + 5)
    # A step at rate 1 goes to the block's mean: 2, 4 and 8, from 1.
    assert float(metrics.update_norm) == pytest.approx((1 * 1 + 2 * 3 + 5 * 7) / 8)


def test_update_norm_is_that_of_all_leaves_and_of_nothing_nan():
    data = mean_clients([1.0, 1.0], [3.0])

    def loss_fn(w, batch, key):  # gradients -3 and -4
        return -3 * w["a"] * jnp.ones_like(batch) - 4 * w["b"][0]

    made = fs.fedavg(loss_fn, optax.sgd(0.5), FULL)
    start = {"a": jnp.zeros(()), "b": jnp.zeros(2)}
    _, metrics = one_round("all_clients", data, cohort_of([0]), made, start)
    assert float(metrics.update_norm) == pytest.approx(2 / 3 * 0.5 * 5)
    nobody = cohort_of([0], reports=jnp.zeros(1, bool))
    _, metrics = one_round("selected", data, nobody, made, start)
    assert np.isnan(metrics.update_norm)
    assert (int(metrics.examples), int(metrics.client_steps)) == (0, 0)


def test_update_norm_of_a_round_that_moves_nothing_has_a_gradient():
    def norm(lr):
        made = fs.fedavg(square_loss, optax.sgd(lr), FULL)
        round_fn = fs.make_round(made, execution=fs.execution.vmapped())
        data = mean_clients([1.0])
        state = fs.init(made, 1.0, data)
        return round_fn(jax.random.key(0), state, data, cohort_of([0]))[1].update_norm

    assert float(jax.jit(jax.grad(norm))(0.5)) == 0


@pytest.mark.parametrize(
    "local",
    slow_after(
        2,
        [
            fs.LocalTraining(2, 4, order="blocks"),
            fs.LocalTraining(3, None),
            fs.LocalTraining(3, 4),
            fs.LocalTraining(1, 1),
        ],
    ),
)
def test_examples_of_a_round_against_numpy(data, local):
    """Stragglers in eighths of their steps; client 2 is empty, the last slot is padding."""
    ids, mask = [5, 1, 2, 7], [True, True, True, False]
    made = fs.fedavg(linear_loss, optax.sgd(0.01), local)
    round_fn = jax.jit(fs.make_round(made, execution=fs.execution.vmapped()))
    state = fs.init(made, zeros(), data)

    @given(work=st.lists(st.integers(0, 8), min_size=4, max_size=4))
    @settings(max_examples=10)
    def check(work):
        shares = jnp.asarray(np.array(work) / 8, jnp.float32)
        cohort = fs.Cohort(jnp.array(ids), jnp.array(mask), work=shares)
        _, metrics = round_fn(jax.random.key(0), state, data, cohort)
        seen = 0
        for k, takes_part, eighths in zip(ids, mask, work, strict=True):
            steps = blocks(SIZES[k], local.epochs, local.batch_size, local.order)
            seen += takes_part * sum(map(len, steps[: len(steps) * eighths // 8]))
        assert int(metrics.examples) == seen
        if seen:  # the loss's own count says the same
            assert np.isfinite(metrics.train["loss"])

    check()


@pytest.mark.parametrize("rule", slow_after(1, ["all_clients", "selected"]))
def test_a_client_of_weight_0_does_no_harm(rule):
    weights = [1.0, 0.0]
    data = fs.FederatedData.from_clients([np.array([2.0]), np.array([0.0])], weights)

    def loss_fn(w, batch, key):  # client 1 diverges
        return jnp.where(batch == 0, jnp.inf, 1.0) * (w - batch) ** 2 / 2

    for execution in (fs.execution.vmapped(), fs.execution.packed(1)):
        for made in (fs.fedavg(loss_fn, optax.sgd(1.0), FULL), fs.fedsgd(loss_fn, optax.sgd(1.0))):
            state, _ = one_round(rule, data, cohort_of([0, 1]), made, execution=execution)
            assert float(state.params) == 2


def test_signed_weights_with_a_denominator_of_their_own():
    data = mean_clients([2.0], [5.0])
    algorithm = fs.fedavg(square_loss, optax.sgd(1.0), FULL)
    for execution in (fs.execution.vmapped(), fs.execution.packed(2)):
        round_fn = fs.make_round(
            algorithm, lambda cohort, w, all_w: (np.array([1.0, -1.0]), 1.0), execution
        )
        state, metrics = jax.jit(round_fn)(
            jax.random.key(0), fs.init(algorithm, 0.0, data), data, cohort_of([0, 1])
        )
        assert float(state.params) == -3
        assert not bool(metrics.empty)


@pytest.mark.parametrize(
    "execution", slow_after(1, [fs.execution.packed(2), fs.execution.vmapped()])
)
def test_a_repeated_client_in_a_trace_keeps_one_state(data, execution):
    algorithm = fs.scaffold(linear_loss, 0.05, fs.LocalTraining(2, 4))
    round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
    state = fs.init(algorithm, zeros(), data)
    state, metrics = round_fn(jax.random.key(0), state, data, cohort_of([4, 1, 4]))
    p = np.array(SIZES) / sum(SIZES)
    for c, c_k in zip(
        jax.tree.leaves(state.server.control), jax.tree.leaves(state.clients), strict=True
    ):
        np.testing.assert_allclose(c, np.tensordot(p, np.asarray(c_k), 1), atol=1e-6)
    assert int(metrics.reporting) == 2


def test_a_python_number_is_a_model_of_one_trace():
    traces = []

    def loss_fn(w, batch, key):
        traces.append(1)
        return square_loss(w, batch, key)

    data = mean_clients([2.0], [3.0])
    algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), FULL)
    round_fn, state = jax.jit(fs.make_round(algorithm)), fs.init(algorithm, 0.0, data)
    traces.clear()
    state, _ = round_fn(jax.random.key(0), state, data, cohort_of([0]))
    once = len(traces)
    round_fn(jax.random.key(0), state, data, cohort_of([1]))
    assert len(traces) == once


def test_donating_the_state_leaves_the_callers_params_alone(data):
    algorithm = fs.scaffold(linear_loss, 0.05, FULL)
    params = jax.tree.map(jnp.asarray, zeros())
    state = fs.init(algorithm, params, data)
    round_fn = jax.jit(fs.make_round(algorithm), donate_argnums=1)
    for _ in range(2):
        state, _ = round_fn(jax.random.key(0), state, data, cohort_of([0, 1]))
    assert float(params["b"]) == 0
    fs.init(algorithm, params, data)


def test_a_state_that_changes_its_shape_is_refused():
    data = mean_clients([2.0], [3.0])
    base = fs.fedavg(square_loss, optax.sgd(0.1), FULL)

    def finish(*arguments):
        return base.client.finish(*arguments)._replace(client_state=jnp.zeros(()))

    algorithm = base._replace(
        init_client=lambda params: jnp.zeros(2, jnp.int32),
        client=base.client._replace(finish=finish),
    )
    state = fs.init(algorithm, 0.0, data)
    for execution in (fs.execution.vmapped(), fs.execution.packed(1)):
        with pytest.raises(ValueError, match=r"client_state must keep the structure"):
            fs.make_round(algorithm, execution=execution)(
                jax.random.key(0), state, data, cohort_of([0])
            )


@pytest.mark.parametrize("execution", [fs.execution.vmapped(), fs.execution.packed(2)])
def test_a_client_whose_state_alone_is_not_finite_is_dropped(execution):
    data = mean_clients([2.0], [4.0])
    base = fs.fedavg(square_loss, optax.sgd(1.0), FULL)

    def finish(carry, message, client_state, num_examples, num_steps, key):
        output = base.client.finish(carry, message, client_state, num_examples, num_steps, key)
        bad = carry.params > 3  # client 1
        return output._replace(client_state=jnp.where(bad, jnp.nan, 1.0))

    algorithm = base._replace(
        init_client=lambda params: jnp.zeros(()), client=base.client._replace(finish=finish)
    )
    state, metrics = one_round(
        "selected", data, cohort_of([0, 1]), algorithm, 0.0, execution=execution, nonfinite="drop"
    )
    assert float(state.params) == 2
    assert state.clients.tolist() == [1, 0]
    assert int(metrics.nonfinite) == 1
    assert float(metrics.train["loss"]) == 2  # (0 - 2)^2 / 2: the dropped client's is left out


@pytest.mark.parametrize("execution", [fs.execution.vmapped(), fs.execution.packed(2)])
def test_training_loss_is_the_mean_over_all_local_steps(clients, data, execution):
    local = fs.LocalTraining(3, 4, shuffle=False)
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.02), local)
    round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
    ids = [5, 3, 1, 2]
    state = fs.init(algorithm, zeros(), data)
    _, metrics = round_fn(jax.random.key(0), state, data, cohort_of(ids))
    total = count = 0.0
    for k in ids:
        v = np.zeros(5)
        x, y = clients[k]
        for rows in blocks(len(y), 3, 4, "epochs"):
            total += ((x[rows] @ v[:-1] + v[-1] - y[rows]) ** 2).sum()
            count += len(rows)
            v = v - 0.02 * gradient(v, x[rows], y[rows])
    assert float(metrics.train["loss"]) == pytest.approx(total / count, rel=1e-5)


@standard_promotion()
def test_bytes_are_exact(data):
    params = {"w": np.zeros(4, np.float32), "b": np.zeros((), np.float32)}
    local = fs.LocalTraining()
    size = 5 * 4
    avg = fs.communication(fs.fedavg(linear_loss, optax.sgd(0.1), local), params, data)
    assert avg == (size, size)
    assert (
        fs.communication(fs.fedprox(linear_loss, optax.adam(0.1), local, 0.1), params, data) == avg
    )
    assert fs.communication(fs.fedsgd(linear_loss, optax.sgd(0.1)), params, data) == avg
    twice = fs.communication(fs.scaffold(linear_loss, 0.1, local), params, data)
    assert twice == (2 * size, 2 * size)
    scheduled = fs.fedavg(linear_loss, lambda t: optax.sgd(0.1 / (1 + t)), local)
    assert fs.communication(scheduled, params, data) == (size + 4, size)  # the round is sent
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    assert (
        fs.communication(fs.fedavg(linear_loss, optax.sgd(0.1), local), half, data)[0] == size // 2
    )

    # Receivers and senders: 4 given the model, client 2 has no examples, one drops out.
    cohort = fs.Cohort(
        jnp.array([1, 2, 4, 5, 7]),
        mask=jnp.array([True, True, True, True, False]),
        reports=jnp.array([True, True, False, True, True]),
        inclusion=jnp.full(5, 0.5),
    )
    for rule in ("selected", "all_clients"):  # by hand for each rule in test_hand_computed
        algorithm = fs.fedavg(linear_loss, optax.sgd(0.1), local)
        round_fn = jax.jit(fs.make_round(algorithm, getattr(fs.aggregation, rule)))
        _, metrics = round_fn(jax.random.key(0), fs.init(algorithm, params, data), data, cohort)
        assert int(metrics.receivers) == (K if rule == "all_clients" else 4)
        assert int(metrics.senders) == 2


def test_learning_rate_schedule_over_rounds():
    data = mean_clients([2.0, 2.0])
    algorithm = fs.fedavg(square_loss, lambda t: optax.sgd(jnp.where(t < 1, 0.0, 1.0)), FULL)
    round_fn = jax.jit(fs.make_round(algorithm))
    state = fs.init(algorithm, 0.0, data)
    state, _ = round_fn(jax.random.key(0), state, data, cohort_of([0]))
    assert float(state.params) == 0
    state, _ = round_fn(jax.random.key(0), state, data, cohort_of([0]))
    assert float(state.params) == 2


def test_custom_rule_is_a_function():
    data = mean_clients([2.0], [4.0], [8.0])

    def largest_only(cohort, weights, all_weights):
        return jnp.array([0.0, 1.0]), None

    algorithm = fs.fedavg(square_loss, optax.sgd(1.0), FULL)
    state, _ = fs.make_round(algorithm, largest_only)(
        jax.random.key(0), fs.init(algorithm, 0.0, data), data, cohort_of([0, 2])
    )
    assert float(state.params) == 8


def test_low_precision_models_are_averaged_in_float32():
    data = mean_clients([1.0], [1.0], [1.0])
    algorithm = fs.fedavg(lambda w, b, key: (w - b.astype(w.dtype)) ** 2 / 2, optax.sgd(1.0), FULL)
    state = fs.init(algorithm, jnp.zeros((), jnp.bfloat16), data)
    state, _ = jax.jit(fs.make_round(algorithm))(
        jax.random.key(0), state, data, cohort_of([0, 1, 2])
    )
    assert state.params.dtype == jnp.bfloat16
    assert float(state.params) == 1


# Refusals.


def fedavg(loss_fn=linear_loss, optimizer=None, local=FULL, **kwargs):
    return fs.fedavg(loss_fn, optimizer or optax.sgd(0.1), local, **kwargs)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fedavg(local=fs.LocalTraining(epochs=0)), "epochs must be a whole number.*got 0"),
        (lambda: fedavg(local=fs.LocalTraining(epochs=1.5)), "epochs must be .*got 1.5"),
        (lambda: fedavg(local=fs.LocalTraining(batch_size=0)), "batch_size must be .*got 0"),
        (lambda: fedavg(local=fs.LocalTraining(order="rows")), "order must be .*got 'rows'"),
        (lambda: fedavg(local=3), "local must be an fs.LocalTraining; got 3"),
        (lambda: fedavg(optimizer=0.1), "client_optimizer must be an optax.*got 0.1"),
        (lambda: fedavg(optimizer=optax.sgd), "got optax.sgd itself: call it"),
        (lambda: fedavg(server_optimizer=optax.adam), "got optax.adam itself: call it"),
        (lambda: fs.make_round(linear_loss), "algorithm must be made by fs.fedavg"),
        (lambda: fs.make_round(fedavg(), execution=fs.execution.packed), "packed itself: call it"),
        (lambda: fs.scaffold(linear_loss, optax.sgd(0.1), FULL), "client_lr must be a number"),
        (lambda: fedavg(server_optimizer=0.1), "server_optimizer must be an optax.*got 0.1"),
        (lambda: fs.fedprox(linear_loss, optax.sgd(0.1), FULL, mu=-1), "mu must be .*got -1"),
        (lambda: fs.fedprox(linear_loss, optax.sgd(0.1), FULL, mu=jnp.ones(2)), "mu must be a sc"),
        (lambda: fs.scaffold(linear_loss, 0.0, FULL), "client_lr must be .*positive; got 0"),
        (lambda: fs.scaffold(linear_loss, np.nan, FULL), "client_lr must be finite"),
        (lambda: fs.make_round(fedavg(), "selected"), "aggregation must be .*'selected'"),
        (lambda: fs.make_round(fedavg(), execution="vmap"), "execution must be .*'vmap'"),
        (lambda: fs.make_round(fedavg(), nonfinite="skip"), "nonfinite must be .*'skip'"),
        (lambda: fs.execution.packed(0), "lanes must be .*got 0"),
    ],
)
def test_refused_when_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("algorithm", "params", "message"),
    [
        (lambda: fedavg(lambda p, b, k: linear_loss(p, b, k).mean()), None, r"\(3,\); got shape"),
        (lambda: fedavg(lambda p, b, k: (linear_loss(p, b, k), {"a": 1.0})), None, "return one a"),
        (lambda: fedavg(lambda p, b, k: (linear_loss(p, b, k), 1.0)), None, "got a tuple with a"),
        (lambda: fedavg(lambda p, b: 0), None, r"loss_fn must take \(params, batch, key\)"),
        (fedavg, {"w": np.zeros(4, int), "b": 0.0}, r"floating arrays; got int32 at params\['w'\]"),
        (
            lambda: fedavg(optimizer=optax.multi_transform({"a": optax.sgd(0.1)}, {"x": "a"})),
            None,
            "client_optimizer does not fit params",
        ),
        (
            lambda: fedavg(
                server_optimizer=optax.multi_transform({"a": optax.sgd(0.1)}, {"x": "a"})
            ),
            None,
            "server_optimizer does not fit params",
        ),
        (lambda: fedavg(optimizer=lambda t: 0.1), None, "what client_optimizer returns must be"),
    ],
)
def test_refused_by_init(data, algorithm, params, message):
    with pytest.raises(ValueError, match=message):
        fs.init(algorithm(), zeros() if params is None else params, data)


def test_refused_by_the_round(data):
    algorithm = fs.scaffold(linear_loss, 0.1, FULL)
    round_fn = fs.make_round(algorithm)
    state, key = fs.init(algorithm, zeros(), data), jax.random.key(0)

    def refused(message, key=key, state=state, data=data, cohort=None, round_fn=round_fn):
        with pytest.raises(ValueError, match=message):
            round_fn(key, state, data, cohort_of([0, 1]) if cohort is None else cohort)

    refused("must not repeat a client.*got client 4 2 times", cohort=cohort_of([4, 1, 4]))
    refused(r"client_ids must lie in \[0, 8\); got 8", cohort=cohort_of([1, 8]))
    wide = fs.Cohort(np.array([1, 2**32 + 1]))  # 1 and 1, if cast before it is looked at
    refused(r"client_ids must lie in \[0, 8\); got 4294967297", cohort=wide)
    refused("client_ids must be integers", cohort=fs.Cohort(jnp.ones(2), jnp.ones(2, bool)))
    refused("reports must be booleans; got float", cohort=cohort_of([0, 1], reports=jnp.ones(2)))
    refused("mask must have shape", cohort=fs.Cohort(jnp.arange(2), jnp.ones(3, bool)))
    refused("work must lie in", cohort=cohort_of([0, 1], work=jnp.array([0.5, 1.5])))
    refused("inclusion must be positive", cohort=cohort_of([0, 1], inclusion=jnp.array([0.5, 0])))
    refused("cohort must be an fs.Cohort", cohort=[0, 1])
    refused("key must be a typed key", key=jax.random.PRNGKey(0))
    refused("key must be one key", key=jax.random.split(key))
    refused("wrong under vmap", key=jax.random.key(0, impl="rbg"))
    refused("state must come from fs.init; got dict", state=zeros())
    other = fs.init(fedavg(), zeros(), data)
    refused("another structure", state=other)
    refused("state must come from fs.init with this federation of 2", data=mean_clients([1], [2]))
    refused(
        "unbiased rule needs the probability pi_k of each client",
        round_fn=fs.make_round(algorithm, fs.aggregation.unbiased),
    )
    refused(
        "aggregation must return weights",
        round_fn=fs.make_round(algorithm, lambda cohort, w, all_w: (all_w, None)),
    )
    refused(
        "aggregation must return .*got Array",
        round_fn=fs.make_round(algorithm, lambda cohort, w, all_w: w),
    )
    refused("data must be an fs.FederatedData; got dict", data={"x": np.ones(3)})
    with pytest.raises(ValueError, match="algorithm must be made by"):
        fs.init(zeros(), algorithm, data)
    # Lists will do, and a cohort without a mask is given the model as a whole.
    one, _ = round_fn(key, state, data, fs.Cohort([4, 1]))
    two, _ = round_fn(key, state, data, cohort_of([4, 1]))
    np.testing.assert_array_equal(flat(one.params), flat(two.params))
    # The same client twice is fine in padding, and where no state is kept.
    twice = fs.Cohort(jnp.array([4, 1, 4]), jnp.array([True, True, False]))
    round_fn(key, state, data, twice)
    fs.make_round(fedavg())(key, other, data, cohort_of([4, 1, 4]))


@pytest.mark.parametrize("algorithm", slow_after(1, ["fedavg", "fedsgd"]))
def test_reverse_mode_through_packed_is_refused(data, algorithm):
    @partial(jax.jit, static_argnums=1)
    def last(lr, execution):
        made = {
            "fedavg": lambda: fedavg(optimizer=optax.sgd(lr), local=fs.LocalTraining(1, 8)),
            "fedsgd": lambda: fs.fedsgd(linear_loss, optax.sgd(lr)),
        }[algorithm]()
        state = fs.init(made, zeros(), data)
        round_fn = fs.make_round(made, execution=execution)
        # FedSGD's first gradient does not depend on the learning rate.
        for _ in range(2 if algorithm == "fedsgd" else 1):
            state, _ = round_fn(jax.random.key(0), state, data, cohort_of([0, 1, 4]))
        return state.params["b"]

    with pytest.raises(ValueError, match=r"use execution.vmapped\(\)"):
        jax.grad(last)(jnp.float32(0.1), fs.execution.packed(2))
    backward = jax.grad(last)(jnp.float32(0.1), fs.execution.vmapped())
    _, forward = jax.jvp(
        lambda lr: last(lr, fs.execution.packed(2)), (jnp.float32(0.1),), (jnp.float32(1),)
    )
    np.testing.assert_allclose(backward, forward, rtol=5e-5)


def test_ids_out_of_range_in_a_trace_are_padding(data):
    algorithm = fedavg()
    round_fn = jax.jit(fs.make_round(algorithm))
    state, key = fs.init(algorithm, zeros(), data), jax.random.key(0)
    one, metrics = round_fn(key, state, data, cohort_of([1, 99, -1]))
    two, _ = round_fn(key, state, data, cohort_of([1]))
    np.testing.assert_allclose(flat(one.params), flat(two.params), atol=1e-6)
    assert int(metrics.receivers) == 1
    with jax.enable_x64(True):
        two_clients = fs.FederatedData.from_clients([np.array([2.0]), np.array([4.0])])
        algorithm = fs.fedavg(square_loss, optax.sgd(1.0), FULL)
        state = fs.init(algorithm, 0.0, two_clients)
        cohort = fs.Cohort(jnp.array([0, 2**32 + 1]))
        state, _ = jax.jit(fs.make_round(algorithm))(key, state, two_clients, cohort)
        assert float(state.params) == 2


@pytest.mark.parametrize(
    ("execution", "rule"),
    [
        (fs.execution.vmapped(), "selected"),
        (fs.execution.packed(1), "all_clients"),
        pytest.param(fs.execution.vmapped(), "uniform", marks=pytest.mark.slow),
        pytest.param(fs.execution.packed(1), "selected", marks=pytest.mark.slow),
        pytest.param(fs.execution.sharded(MESH), "all_clients", marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_fedsgds_train_loss_is_of_all_that_report(rule, execution):
    """Kept or dropped: each draw counts, and a client of weight 0, as in what else is reported.

    Clients of 3, 700, 5 and 2 examples, so that those that weigh and those that do not share a
    block's length and fill more than one.
    """
    sizes, values, weights = [3, 700, 5, 2], [1.0, 2.0, 7.0, 3.0], [1.0, 2.0, 0.0, 0.0]
    clients = [np.full(n, v) for n, v in zip(sizes, values, strict=True)]
    data = fs.FederatedData.from_clients(clients, weights)
    algorithm = fs.fedsgd(lambda w, batch, key: (w - batch) ** 2 / 2, optax.sgd(1.0))
    state, key = fs.init(algorithm, 0.0, data), jax.random.key(0)
    ids = [2, 1, 0, 1, 2, 3]
    reports = np.array([1, 1, 1, 1, 1, 0], bool)
    drawn = [k for k, sent in zip(ids, reports, strict=True) if sent]
    seen = sum(sizes[k] for k in drawn)
    loss = sum(sizes[k] * values[k] ** 2 / 2 for k in drawn) / seen
    a = {"selected": [2, 1, 2], "all_clients": [2, 1, 0], "uniform": [0, 0, 0]}[rule]
    moved = sum(x * v for x, v in zip(a, (2.0, 1.0, 2.0), strict=True)) / sum(a) if sum(a) else 0
    if rule == "uniform":
        moved = sum(values[k] for k in drawn) / len(drawn)
    found = []
    for nonfinite in ("keep", "drop"):
        round_fn = fs.make_round(
            algorithm, fs.aggregation.RULES[rule], execution, nonfinite=nonfinite
        )
        new, metrics = jax.jit(round_fn)(key, state, data, cohort_of(ids, reports=reports))
        assert (int(metrics.reporting), int(metrics.examples)) == (len(drawn), seen)
        np.testing.assert_allclose(metrics.train["loss"], loss, rtol=1e-5)
        found.append(new.params)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    if rule != "all_clients":
        np.testing.assert_allclose(found[0], moved, rtol=1e-5)
    else:  # n is 3, of which 2 and 1 report
        np.testing.assert_allclose(found[0], (2 * 2.0 + 1 * 1.0) / 3, rtol=1e-5)


def test_fedsgd_tells_whose_loss_is_not_finite_whatever_it_weighs():
    data = fs.FederatedData.from_clients([np.ones(2), np.zeros(3)], [1.0, 0.0])

    def loss_fn(w, batch, key):
        return jnp.where(batch == 0, jnp.inf, 1.0) * (w - batch) ** 2 / 2 + 1 / batch

    algorithm = fs.fedsgd(loss_fn, optax.sgd(1.0))
    for execution in (fs.execution.vmapped(), fs.execution.packed(1)):
        state, metrics = one_round(
            "selected", data, cohort_of([0, 1]), algorithm, execution=execution
        )
        assert float(state.params) == 1
        assert (int(metrics.nonfinite), int(metrics.reporting)) == (1, 2)
