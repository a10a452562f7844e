"""Counts beyond 32 bits: exact, or refused with the numbers."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core import counts
from fedjax_sim.core.history import History, RoundMetrics
from fedjax_sim.core.local_training import num_steps
from fedjax_sim.core.tasks import Executed
from fedjax_sim.execution.client import check_steps
from fedjax_sim.results.columns import columns
from fedjax_sim.training.ledger import LocalWork, local_work

MOST = 2**31 - 1
WHOLE = st.integers(0, MOST) | st.integers(MOST - 2, MOST) | st.integers(0, 3)
BASE = 1 << 16 * np.arange(4, dtype=np.int64)


def int32(x):
    return jnp.asarray(x, jnp.int32)


@given(a=WHOLE, b=WHOLE, c=WHOLE, d=WHOLE)
def test_digits_against_integers_of_python(a, b, c, d):
    product, less = counts.product(int32(a), int32(b)), counts.product(int32(c), int32(d))
    assert int(np.asarray(product, np.int64) @ BASE) == a * b
    high, low = (product, less) if a * b >= c * d else (less, product)
    difference = counts.difference(high, low)
    assert int(np.asarray(difference, np.int64) @ BASE) == abs(a * b - c * d)
    assert int(counts.capped(product)) == min(a * b, MOST)
    assert np.asarray(counts.constant(a * b)).tolist() == np.asarray(product).tolist()
    assert int(np.asarray(counts.exact(int32(a)), np.int64) @ BASE) == a


@pytest.mark.parametrize("number", [1, 2, 3, 2**15, 2**15 + 1, 70_000])
def test_the_sum_of_very_many_counts(number):
    terms = np.full(number, MOST, np.int32)
    found = counts.total(counts.exact(jnp.asarray(terms)))
    assert int(np.asarray(found, np.int64) @ BASE) == number * MOST


def federation(sizes):
    """Clients of such sizes on paper: the arrays have one example."""
    sizes = np.asarray(sizes, np.int32)
    return fs.FederatedData(
        examples=jnp.zeros(1),
        offsets=jnp.zeros(len(sizes), jnp.int32),
        num_examples=jnp.asarray(sizes),
        client_weights=jnp.asarray(sizes, jnp.float32),
        max_num_examples=int(sizes.max()),
    )


def idle(lane_steps):
    """A strategy that trains nobody and says it took so many steps."""

    def strategy(engine, client_states, tasks, options):
        busy = tasks.num_steps > 0
        return Executed(engine.message.params, (), (), {}, busy, busy, lane_steps)

    return strategy


def loss_fn(w, batch, key):
    return w * batch


def round_of(local, data, cohort, lane_steps=None):
    algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), local)
    state = fs.init(algorithm, 0.0, data)
    lane_steps = jnp.int32(7) if lane_steps is None else lane_steps
    round_fn = fs.make_round(algorithm, execution=idle(lane_steps))
    return round_fn(jax.random.key(0), state, data, cohort)[1]


def by_hand(local, size):
    """A client's steps and the examples it sees, in Python."""
    batch = size if local.batch_size is None else local.batch_size
    return local.epochs * -(-size // max(batch, 1)), local.epochs * size


SIZES = st.lists(st.integers(0, 10) | st.integers(0, 2**30), min_size=4, max_size=4).filter(any)
SLOTS = 64


@given(
    sizes=SIZES,
    epochs=st.integers(1, 5) | st.integers(1, 10**5),
    batch=st.none() | st.integers(1, 100) | st.integers(1, MOST),
    order=st.sampled_from(["epochs", "blocks"]),
    reporting=st.integers(0, SLOTS),
)
@example(sizes=[10**6, 0, 0, 1], epochs=2500, batch=None, order="epochs", reporting=1)
@example(sizes=[10**6] * 4, epochs=100, batch=10, order="epochs", reporting=30)
@example(sizes=[10**6, 3, 3, 3], epochs=2147, batch=1, order="blocks", reporting=64)
@example(sizes=[10**6, 3, 3, 3], epochs=3000, batch=1, order="epochs", reporting=64)
def test_local_work_is_counted_exactly_or_refused(sizes, epochs, batch, order, reporting):
    local, data = fs.LocalTraining(epochs, batch, order=order), federation(sizes)
    most = max(by_hand(local, size)[0] for size in sizes)
    if most > MOST:
        with pytest.raises(ValueError, match=rf"at most {MOST} steps of a client; .*{most} steps"):
            check_steps(local, data)
        return
    check_steps(local, data)
    ids = np.arange(SLOTS, dtype=np.int32) % 4
    steps = jnp.where(np.arange(SLOTS) < reporting, num_steps(local, data.num_examples[ids]), 0)
    once = LocalWork(local, steps, jnp.int32(7))
    expected = [sum(by_hand(local, sizes[k])[i] for k in ids[:reporting]) for i in (0, 1)]
    for exchanges in (1, 2):  # of which the second is as the first
        work = local_work([once] * exchanges, data, jnp.asarray(ids))
        metrics = RoundMetrics(
            {}, *4 * [None], update_norm=None, reporting_share=None, empty=None, **work
        )
        counts, several = metrics.counts(), [exchanges * x for x in expected]
        assert [int(counts[name]) for name in ("client_steps", "examples")] == several
        assert int(counts["lane_steps"]) == 7 * exchanges
        in_32_bits = [int(work[name]) for name in ("client_steps", "examples")]
        assert in_32_bits == [min(x, MOST) for x in several]
        if exchanges == 1 and SLOTS * epochs * max(sizes) <= MOST:
            assert metrics.digits == ()  # nothing is carried along where 32 bits do


def test_a_round_has_the_exact_counts_and_refuses_more_steps():
    data, ids = federation([10**6] * 3), int32([0, 1, 2] * 10)
    metrics = round_of(fs.LocalTraining(100, 10), data, fs.Cohort(ids))
    assert metrics.counts()["examples"] == 30 * 10**8
    assert int(metrics.examples) == MOST
    assert int(metrics.client_steps) == metrics.counts()["client_steps"] == 3 * 10**8
    for check in (
        lambda: fs.init(fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining(3000, 1)), 0.0, data),
        lambda: round_of(fs.LocalTraining(3000, 1), data, fs.Cohort(ids)),
    ):
        with pytest.raises(ValueError, match=r"epochs = 3000 over the 1000000 blocks .*3000000000"):
            check()


def test_a_straggler_of_very_many_examples():
    """Half of 2500 full batches of a million."""
    data, local = federation([10**6, 3]), fs.LocalTraining(2500, None)
    cohort = fs.Cohort(jnp.array([0, 1]), work=jnp.array([0.5, 1.0]))
    assert round_of(local, data, cohort).counts()["examples"] == 1250 * 10**6 + 2500 * 3


@given(
    steps=WHOLE,
    share=st.floats(0, 1, width=32, allow_subnormal=False) | st.sampled_from([0.5, 0.53, 1.0]),
)
@example(steps=MOST, share=1.0)
@example(steps=10**7, share=0.5)
def test_a_share_of_very_many_steps(steps, share):
    """Rounded down, but for what a share of 24 bits cannot say."""
    local = fs.LocalTraining(1, 1)
    done = int(num_steps(local, int32(steps), jnp.float32(share)))
    exact = Fraction(float(np.float32(share))) * steps
    assert 0 <= done <= steps
    assert abs(done - int(exact)) <= max(1, 1e-6 * steps)
    if share == 1:
        assert done == steps
    if share == 0.5 and steps < 2**24:
        assert done == steps // 2


@given(steps=st.integers(1, 2**20), seed=st.integers(0, 100))
def test_a_share_that_is_some_steps_of_all_is_those_steps(steps, seed):
    some = int(np.random.default_rng(seed).integers(0, steps + 1))
    share = jnp.float32(some / steps)
    assert int(num_steps(fs.LocalTraining(1, 1), int32(steps), share)) == some


def test_lane_steps_beyond_32_bits():
    data, local = federation([3]), fs.LocalTraining(2, 1)
    metrics = round_of(local, data, fs.Cohort(int32([0])), counts.constant(5 * 10**12))
    assert metrics.counts()["lane_steps"] == 5 * 10**12
    assert int(metrics.lane_steps) == MOST


@pytest.mark.parametrize("lanes", [1, 2])
def test_packed_counts_lane_steps_in_digits_where_they_might_not_fit(lanes):
    """The largest client, which takes no part, might take 2^30 steps: the others' are counted."""
    data = fs.FederatedData.from_clients([np.ones(n, np.float32) for n in (1, 2, 3)])
    data = fs.FederatedData(
        data.examples, data.offsets, data.num_examples, data.client_weights, max_num_examples=2**30
    )
    algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining(1, 1, shuffle=False))
    state, cohort = fs.init(algorithm, 1.0, data), fs.Cohort(int32([0, 1, 2]))
    round_fn = jax.jit(fs.make_round(algorithm, execution=fs.execution.packed(lanes)))
    metrics = round_fn(jax.random.key(0), state, data, cohort)[1]
    assert set(metrics.digits) == {"client_steps", "examples", "lane_steps"}
    assert {name: int(x) for name, x in metrics.counts().items()} == {
        "client_steps": 6,
        "lane_steps": 6,
        "examples": 6,
    }


def history(examples):
    """Of rounds with so many examples each."""
    digits = jnp.stack([counts.constant(x) for x in examples])
    rounds = len(examples)
    ones = jnp.ones(rounds, jnp.int32)
    metrics = fs.RoundMetrics(
        {"loss": jnp.ones(rounds)},
        10**6 * ones,
        ones,
        ones,
        0 * ones,
        ones,
        ones,
        counts.capped(digits),
        jnp.ones(rounds),
        jnp.ones(rounds),
        jnp.zeros(rounds, bool),
        {"examples": digits},
    )
    return History(metrics, (), jnp.zeros(rounds, bool))


@given(examples=st.lists(st.integers(0, 2**58), min_size=1, max_size=5))
def test_results_have_the_exact_counts_and_their_sum(examples):
    simulation = fs.Simulation(
        None, history(examples), "finished", fs.Communication(8, 8), len(examples)
    )
    run = simulation.results().runs[0]
    assert run.rounds["examples"].tolist() == examples
    assert run.row()["examples"] == sum(examples)
    assert "digits" not in run.rounds


def test_bytes_beyond_64_bits_do_not_wrap():
    """A model of 10 GB for each of a million clients in 1,000 rounds is 10^19 bytes."""
    found = columns(history([1] * 1000), fs.Communication(10**10, 8))
    np.testing.assert_allclose(found["bytes_down"], 10.0**16 * np.arange(1, 1001))
    assert found["bytes_up"].dtype == np.int64
