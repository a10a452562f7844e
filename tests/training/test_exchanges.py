"""Several exchanges in a round: their streams, their clients' states, all or nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from tests.conftest import MESH

LOCAL = fs.LocalTraining(1, None, shuffle=False)
COHORT = fs.Cohort(jnp.array([0, 2, 1]), jnp.array([True, True, False]))


def drawing(earlier=True, broken=()):
    """Clients count their exchanges and send what they draw; the server keeps both averages.

    `broken`: the clients, by their first example, whose first update is not finite.
    """

    def phases(place):
        def init(message, client_state, probed, key):
            return jnp.float32(0)

        def step(carry, message, client_state, batch, mask, key):
            return batch[0], {"loss": (jnp.float32(place), jnp.float32(1))}

        def finish(carry, message, client_state, num_examples, num_steps, key):
            drawn = jax.random.normal(key, ())
            is_broken = jnp.isin(carry, jnp.array(broken, jnp.float32))
            if place == 0:
                drawn = jnp.where(is_broken, jnp.nan, drawn)
            return fs.ClientOutput(drawn, client_state=client_state * 10 + place + 1)

        def server_update(server, update, total, context):
            w, kept, noise = server
            return (
                w,
                kept.at[place].set(update),
                noise.at[place].set(jax.random.normal(context.key, ())),
            )

        return fs.ClientUpdate(init, step, finish), server_update

    (first, take_first), (last, take_last) = phases(0), phases(1)
    exchange = fs.Exchange(lambda server, round: server[1], first, take_first, LOCAL)
    return fs.FederatedAlgorithm(
        init=lambda params: (params, jnp.zeros(2), jnp.zeros(2)),
        params=params_of,
        init_client=lambda params: jnp.float32(0),
        broadcast=lambda server, round: server[1],
        client=last,
        server_update=take_last,
        local=LOCAL,
        earlier=(exchange,) if earlier else (),
    )


def params_of(server):
    return server[0]


@pytest.fixture(scope="module")
def small():
    return fs.FederatedData.from_clients([np.full(n, n, np.float32) for n in (2, 1, 3)])


def after(algorithm, data, execution=None, nonfinite="keep"):
    state = fs.init(algorithm, 0.0, data)
    execution = fs.execution.vmapped() if execution is None else execution
    round_fn = jax.jit(fs.make_round(algorithm, execution=execution, nonfinite=nonfinite))
    return round_fn(jax.random.key(0), state, data, COHORT)


def test_each_exchange_draws_its_own(small):
    """The last one draws what it draws where it is alone; and so does the server."""
    alone, _ = after(drawing(earlier=False), small)
    both, metrics = after(drawing(), small)
    (_, _, noise), (_, alone_update, alone_noise) = both.server, alone.server
    np.testing.assert_array_equal(both.server[1][1], alone_update[1])
    np.testing.assert_array_equal(noise[1], alone_noise[1])
    assert both.server[1][0] not in (0, both.server[1][1])
    assert noise[0] not in (0, noise[1])
    # 1 of the first exchange and then 2 of the second, of those that take part.
    np.testing.assert_array_equal(both.clients, [12, 0, 12])
    assert float(metrics.train["loss"]) == 1


@pytest.mark.parametrize(
    "execution",
    [
        fs.execution.packed(1),
        pytest.param(fs.execution.sharded(MESH), marks=pytest.mark.slow),
    ],
)
def test_strategies_agree(small, execution):
    vmapped, _ = after(drawing(), small)
    other, _ = after(drawing(), small, execution)
    for x, y in zip(jax.tree.leaves(vmapped), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_who_is_dropped_in_one_exchange_takes_part_in_the_next(small):
    state, metrics = after(drawing(broken=(3,)), small, nonfinite="drop")
    np.testing.assert_array_equal(state.clients, [12, 0, 2])
    assert int(metrics.nonfinite) == 1
    assert not bool(metrics.empty)


def test_where_one_exchange_is_empty_nothing_is_kept(small):
    state, metrics = after(drawing(broken=(2, 3)), small, nonfinite="drop")
    assert bool(metrics.empty)
    assert int(metrics.nonfinite) == 2
    for x in jax.tree.leaves((state.server, state.clients)):
        assert not np.asarray(x).any()
