"""Blocks and the order of local steps, seen by a client that writes down what it sees."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core.local_training import num_blocks, num_seen, num_steps
from fedjax_sim.core.randomness import COHORT, stream
from fedjax_sim.execution import pooled
from tests.conftest import MESH
from tests.helpers.reference import blocks

STEPS = 40  # rows of the log


def recorder(local, size):
    """A client whose update is its log: row t holds the examples of local step t, -1 padded."""

    def init(message, client_state, probed, key):
        return jnp.full((STEPS, size), -1.0), jnp.int32(0)

    def step(carry, message, client_state, batch, mask, key):
        log, t = carry
        return (log.at[t].set(jnp.where(mask, batch["row"].astype(log.dtype), -1)), t + 1), {}

    def finish(carry, message, client_state, num_examples, num_steps, key):
        return fs.ClientOutput(update=carry[0])

    return fs.FederatedAlgorithm(
        init=lambda params: params,
        params=lambda server: server,
        init_client=lambda params: (),
        broadcast=lambda server, round: server,
        client=fs.ClientUpdate(init, step, finish),
        server_update=lambda server, update, total, context: update,
        local=local,
    )


def logs(local, sizes, client, execution=None, work=None, round=0):
    """The steps of one client, as lists of its own example numbers."""
    data = fs.FederatedData.from_clients([{"row": np.arange(n, dtype=np.int32)} for n in sizes])
    size = max(sizes) if local.batch_size is None else local.batch_size
    algorithm = recorder(local, size)
    state = fs.init(algorithm, jnp.zeros((STEPS, size)), data)
    cohort = fs.Cohort(
        jnp.array([client], jnp.int32),
        jnp.ones(1, bool),
        work=None if work is None else jnp.array([work]),
    )
    round_fn = fs.make_round(algorithm, execution=execution)
    state = fs.FederatedState(state.server, (), jnp.int32(round), state.get_params)
    state, metrics = jax.jit(round_fn)(jax.random.key(0), state, data, cohort)
    rows = np.asarray(state.params).astype(int)
    return [[i for i in row if i >= 0] for row in rows][: int(metrics.client_steps)]


def test_storage_order():
    epochs = fs.LocalTraining(2, 3, shuffle=False)
    assert logs(epochs, [4, 7], 1) == [[0, 1, 2], [3, 4, 5], [6]] * 2
    blocks = epochs._replace(order="blocks")
    assert logs(blocks, [4, 7], 1) == [[0, 1, 2]] * 2 + [[3, 4, 5]] * 2 + [[6]] * 2
    assert logs(fs.LocalTraining(2, None), [4, 7], 0) == [[0, 1, 2, 3]] * 2
    assert logs(epochs, [4, 7], 1, work=0.5) == [[0, 1, 2], [3, 4, 5], [6]]


@settings(max_examples=7)
@given(
    n=st.integers(1, 9),
    batch_size=st.sampled_from([1, 3, 5]),
    order=st.sampled_from(["epochs", "blocks"]),
    shuffle=st.booleans(),
    packed=st.booleans(),
)
def test_every_epoch_sees_every_example_once(n, batch_size, order, shuffle, packed):
    local = fs.LocalTraining(3, batch_size, shuffle, order)
    execution = fs.execution.packed(1) if packed else fs.execution.vmapped()
    steps = logs(local, [2, n, 5], 1, execution)
    per_epoch = -(-n // batch_size)
    assert len(steps) == 3 * per_epoch
    if order == "epochs":
        passes = [steps[e * per_epoch : (e + 1) * per_epoch] for e in range(3)]
    else:
        assert all(steps[3 * b] == steps[3 * b + 1] == steps[3 * b + 2] for b in range(per_epoch))
        passes = [steps[::3]]
    for one in passes:
        assert sorted(itertools.chain(*one)) == list(range(n))
        assert [len(block) for block in one[:-1]] == [batch_size] * (per_epoch - 1)


def test_shuffles_differ_by_epoch_round_and_client_but_not_by_strategy_or_padding():
    local = fs.LocalTraining(2, 4)
    base = logs(local, [12, 12, 3], 0)
    assert base[:3] != base[3:]
    assert base != logs(local, [12, 12, 3], 1)
    assert base != logs(local, [12, 12, 3], 0, round=1)
    assert base == logs(local, [12, 30], 0)
    assert base == logs(local, [12, 12, 3], 0, fs.execution.packed(1))
    assert base == logs(local, [12, 12, 3], 0)


@pytest.mark.parametrize("execution", [fs.execution.vmapped(), fs.execution.packed(1)])
def test_no_two_purposes_rounds_clients_or_steps_share_a_key(execution):
    """A client that sends the bits of every key it is given."""
    local = fs.LocalTraining(1, 2, shuffle=False)

    def bits(key):
        return jax.random.bits(key, (), jnp.uint32).astype(jnp.float32)

    def init(message, client_state, probed, key):
        return jnp.zeros(5).at[0].set(bits(key)), jnp.int32(1)

    def step(carry, message, client_state, batch, mask, key):
        return (carry[0].at[carry[1]].set(bits(key)), carry[1] + 1), {}

    def finish(carry, message, client_state, num_examples, num_steps, key):
        return fs.ClientOutput(update=carry[0].at[4].set(bits(key)))

    algorithm = recorder(local, 2)._replace(client=fs.ClientUpdate(init, step, finish))
    data = fs.FederatedData.from_clients([{"row": np.arange(6)}] * 3)
    round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
    key, seen = jax.random.key(0), []
    state = fs.init(algorithm, jnp.zeros(5), data)
    for t in range(3):
        for k in range(3):
            cohort = fs.Cohort(jnp.array([k]))
            at = fs.FederatedState(state.server, (), jnp.int32(t), state.get_params)
            seen += round_fn(key, at, data, cohort)[0].params.tolist()
        seen.append(float(bits(stream(key, COHORT, t))))
    assert len(set(seen)) == len(seen) == 3 * (3 * 5 + 1)


@pytest.mark.parametrize("execution", [fs.execution.vmapped(), fs.execution.packed(1)])
def test_probe_sees_each_example_once(execution):
    sizes = [5, 0, 11, 1, 4]
    data = fs.FederatedData.from_clients([{"row": np.arange(n) + 1.0} for n in sizes])

    def probe(message, client_state, batch, mask):
        return jnp.sum(jnp.where(mask, batch["row"], 0)), jnp.sum(mask)

    algorithm = recorder(fs.LocalTraining(2, 4), 4)._replace(
        client=fs.ClientUpdate(
            init=lambda message, client_state, probed, key: jnp.stack(
                [probed[0], probed[1].astype(jnp.float32)]
            ),
            step=lambda carry, message, client_state, batch, mask, key: (carry, {}),
            finish=lambda carry, *rest: fs.ClientOutput(update=carry),
            probe=probe,
        )
    )
    round_fn = jax.jit(fs.make_round(algorithm, fs.aggregation.uniform, execution))
    for k, n in enumerate(sizes):
        state = fs.init(algorithm, jnp.zeros(2), data)
        state, _ = round_fn(jax.random.key(0), state, data, fs.Cohort(jnp.array([k])))
        assert state.params.tolist() == [n * (n + 1) / 2, n]


def test_what_nobody_reads_is_still_the_clients_own():
    """Behind its last step, and in either order, a client meets no other's examples."""
    data = fs.FederatedData.from_clients([np.ones(3), np.zeros(26)])

    def loss_fn(w, batch, key):  # infinite slope at the other client's examples
        return jnp.sqrt(batch * w**2)

    def last(lr, order):
        local = fs.LocalTraining(2, 2, order=order)
        algorithm = fs.fedavg(loss_fn, optax.sgd(lr), local)
        round_fn = fs.make_round(algorithm, execution=fs.execution.vmapped())
        state = fs.init(algorithm, jnp.float32(1), data)
        for _ in range(2):
            state, _ = round_fn(jax.random.key(0), state, data, fs.Cohort(jnp.array([0])))
        return state.params

    slope = jax.jit(jax.grad(last), static_argnums=1)
    for order in ("epochs", "blocks"):
        assert float(slope(0.1, order)) == pytest.approx(-8)


EMPTY_AND_ZEROS = [np.ones(3), np.zeros(0), np.zeros(26)]


def after_two_rounds(lr, algorithm, execution, cohort):
    """w_2 of the loss sqrt(x) w: infinite slope at x = 0, where client 2's examples are."""

    def loss_fn(w, batch, key):
        return jnp.sqrt(batch * w**2)

    data = fs.FederatedData.from_clients(EMPTY_AND_ZEROS)
    made = {
        "fedavg": lambda: fs.fedavg(loss_fn, optax.sgd(lr), fs.LocalTraining(2, 2)),
        "fedsgd": lambda: fs.fedsgd(loss_fn, optax.sgd(lr)),
    }[algorithm]()
    round_fn = fs.make_round(made, execution=execution)
    state = fs.init(made, jnp.float32(1), data)
    for _ in range(2):
        state, _ = round_fn(jax.random.key(0), state, data, cohort)
    return state.params


@pytest.mark.parametrize("cohort", [fs.Cohort([0, 1]), fs.Cohort([0, 2], mask=[True, False])])
@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_reverse_mode_does_not_meet_clients_that_take_no_part(monkeypatch, cohort, sharded):
    """Client 1 is empty and would read client 2's rows; or client 2 is masked out."""
    monkeypatch.setattr(pooled, "_CPU_BLOCK", 5)  # more blocks than the cohort fills
    execution = fs.execution.vmapped()
    if sharded:  # one of two devices has nothing to do
        execution = fs.execution.sharded(MESH, execution)
    for algorithm, steps in (("fedavg", 4), ("fedsgd", 1)):  # w_2 = 1 - 2 steps lr
        got = jax.jit(jax.grad(after_two_rounds), static_argnums=(1, 2))(
            0.1, algorithm, execution, cohort
        )
        assert float(got) == pytest.approx(-2 * steps)


@pytest.mark.parametrize(
    ("n", "work", "expected"),
    [
        (10, 1.0, 9),
        (10, 0.0, 0),
        (10, 0.1, 0),
        (10, 1 / 3, 3),
        (10, 0.7, 6),
        (0, 1.0, 0),
        (1, 1, 3),
    ],
)
def test_num_steps(n, work, expected):
    local = fs.LocalTraining(epochs=3, batch_size=4)
    assert int(num_steps(local, jnp.int32(n), jnp.float32(work))) == expected


def test_hundredths_of_the_work_are_not_lost_to_rounding():
    local = fs.LocalTraining(epochs=1, batch_size=1)
    hundredths = np.arange(101)
    for steps in (10, 100, 1000):
        got = num_steps(local, jnp.int32(steps), jnp.asarray(hundredths / 100, jnp.float32))
        np.testing.assert_array_equal(got, steps * hundredths // 100)


def test_a_batch_larger_than_32_bits_is_the_full_batch():
    local = fs.LocalTraining(3, sys.maxsize)
    sizes = jnp.array([0, 1, 9])
    assert num_blocks(local, sizes).tolist() == [0, 1, 1]
    assert num_seen(local, sizes, jnp.array([0, 3, 2])).tolist() == [0, 3, 18]


@given(
    n=st.integers(0, 30),
    epochs=st.integers(1, 3),
    batch_size=st.sampled_from([None, 1, 3, 4, 7, 50]),
    order=st.sampled_from(["epochs", "blocks"]),
    work=st.floats(0, 1),
)
def test_num_seen_counts_the_rows_of_the_steps(n, epochs, batch_size, order, work):
    """And takes a straggler's steps as NumPy would."""
    local = fs.LocalTraining(epochs, batch_size, order=order)
    steps = blocks(n, epochs, batch_size, order)
    done = int(num_steps(local, jnp.int32(n), jnp.float32(work)))
    assert abs(done - work * len(steps)) <= 1
    assert int(num_seen(local, jnp.int32(n), jnp.int32(done))) == sum(map(len, steps[:done]))
