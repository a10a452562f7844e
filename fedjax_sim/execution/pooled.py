"""One weighted gradient over the cohort's examples, for algorithms that are just that."""

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Executed, PyTree, Tasks, accumulator
from fedjax_sim.local import Engine
from fedjax_sim.loss import totals
from fedjax_sim.masking import add_where, all_finite, zeros_of
from fedjax_sim.randomness import STEP, stream

# Examples a block: bounds the memory of activations. On a CPU those of a 2NN stay in a core's
# cache (4096, 1024, 512 and 256 were measured: `python -m benchmarks.fedsgd`); elsewhere none was.
_BLOCK, _CPU_BLOCK = 4096, 512


def pooled(engine: Engine, client_states: PyTree, tasks: Tasks, dynamic: bool) -> Executed:
    """The cohort's examples end to end, in blocks, whomever they belong to.

    Which client's update is not finite can only be told from its losses; if none is to
    blame and the sum is not finite, all that report are marked. Clients of weight 0 are
    passed over: their examples are in no sum, the metrics' included. One drawn twice is
    computed once and counts twice.

    Args:
      dynamic: as many blocks as the cohort fills, in a loop that cannot be
        differentiated in reverse; or the most any cohort of m could fill.
    """
    data, gradient = engine.data, engine.algorithm.pooled_gradient
    assert gradient is not None
    slots = tasks.client_ids.shape[0]
    reports = tasks.num_steps > 0
    clients = jax.vmap(engine.client)(tasks.client_ids)

    # A client's first slot stands for all it has, so that no cohort holds more than N examples.
    weighs = reports & (tasks.weights != 0)
    places = jnp.arange(slots, dtype=jnp.int32)
    first = jnp.full(data.num_clients, slots - 1, jnp.int32)
    first = first.at[tasks.client_ids].min(jnp.where(weighs, places, slots - 1))[tasks.client_ids]
    stands = weighs & (first == places)
    weights = jnp.where(weighs, tasks.weights, 0)
    weights = jnp.zeros_like(weights).at[first].add(weights)
    times = jnp.zeros(slots, jnp.int32).at[first].add(weighs.astype(jnp.int32))
    sizes = jnp.where(stands, clients.num_examples, 0)
    ends = jnp.cumsum(sizes)

    # What the gradient is given is at most 1 / block in size: its own sum over a block would
    # leave the range of 16 bits, as would the weights.
    scale = weights / jnp.maximum(sizes, 1).astype(weights.dtype)
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(jnp.where(stands, scale, 0))))
    peak = jnp.where(peak > 0, peak, 1)

    limit = _CPU_BLOCK if jax.default_backend() == "cpu" else _BLOCK
    most = min(slots * data.max_num_examples, data.total_num_examples, 2**31 - 1 - limit)
    blocks = -(-most // limit)
    size = -(-most // blocks)  # the largest cohort fills all of its blocks
    unit = peak * size

    def value(block: Array) -> tuple[PyTree, PyTree, Array]:
        positions = block * size + jnp.arange(size, dtype=jnp.int32)
        mask = positions < ends[-1]
        # Padding repeats the block's first example, with weight 0; blocks of padding alone,
        # which nobody reads, the cohort's last.
        last = jnp.maximum(ends[-1] - 1, 0)
        positions = jnp.where(mask, positions, jnp.minimum(positions[:1], last))
        slot = jnp.searchsorted(ends, positions, side="right")
        slot = jnp.minimum(slot, slots - 1)
        within = positions - (ends - sizes)[slot]
        rows = clients.offset[slot] + within
        batch = jax.tree.map(lambda x: x.at[rows].get(mode="clip"), data.examples)
        keys = jax.vmap(lambda key, i: stream(key, STEP, i))(clients.key[slot], within)
        update, values = gradient(
            engine.message, batch, jnp.where(mask, (scale / unit)[slot], 0), keys
        )
        bad = (
            jnp.zeros(slots, jnp.int32)
            .at[slot]
            .max((mask & ~jnp.isfinite(values["loss"])).astype(jnp.int32))
        )

        def widen(u: Array) -> Array:
            wide = u.astype(accumulator(u.dtype))
            return wide * unit.astype(wide.dtype)

        return jax.tree.map(widen, update), totals(values, mask, times[slot]), bad

    def add(block: Array, total: PyTree) -> PyTree:
        return add_where(block * size < ends[-1], total, value(block))

    total = zeros_of(jax.eval_shape(value, jnp.int32(0)))
    if dynamic:
        total = jax.lax.fori_loop(0, -(-ends[-1] // size), add, total)
    else:
        total = jax.lax.scan(
            lambda total, block: (add(block, total), None),
            total,
            jnp.arange(blocks, dtype=jnp.int32),
        )[0]
    update, metrics, bad = total
    blamed = weighs & (bad[first] > 0)
    finite = ~jnp.where(jnp.any(blamed) | all_finite(update), blamed, reports)
    return Executed(
        update=update,
        total=(),
        client_states=client_states,
        metrics=metrics,
        counted=reports,
        finite=finite,
        # One step a client, the padding of blocks not counted.
        lane_steps=jnp.sum(reports, dtype=jnp.int32),
    )
