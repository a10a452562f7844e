"""Blocks and the order of local steps, seen by a client that writes down what it sees."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.local import num_steps

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


@settings(max_examples=12)
@given(
    n=st.integers(1, 9),
    batch_size=st.sampled_from([1, 3, 5]),
    order=st.sampled_from(["epochs", "blocks"]),
    shuffle=st.booleans(),
    packed=st.booleans(),
)
def test_every_epoch_sees_every_example_once(n, batch_size, order, shuffle, packed):
    local = fs.LocalTraining(3, batch_size, shuffle, order)
    execution = fs.execution.packed(2) if packed else fs.execution.vmapped()
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


def test_tenths_of_the_work_are_not_lost_to_rounding():
    local = fs.LocalTraining(epochs=1, batch_size=1)
    for steps in (10, 100, 1000):
        for tenths in range(11):
            got = num_steps(local, jnp.int32(steps), jnp.float32(tenths / 10))
            assert int(got) == steps * tenths // 10
