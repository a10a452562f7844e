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
    passed over: their examples are in no sum, the metrics' included.

    Args:
      dynamic: as many blocks as the cohort fills, in a loop that cannot be
        differentiated in reverse; or the most any cohort of m could fill.
    """
    data, gradient = engine.data, engine.algorithm.pooled_gradient
    assert gradient is not None
    slots = tasks.client_ids.shape[0]
    reports = tasks.num_steps > 0
    clients = jax.vmap(engine.client)(tasks.client_ids)
    sizes = jnp.where(reports & (tasks.weights != 0), clients.num_examples, 0)
    ends = jnp.cumsum(sizes)
    limit = _CPU_BLOCK if jax.default_backend() == "cpu" else _BLOCK
    most = max(1, min(slots * data.max_num_examples, 2**31 - 1 - limit))
    blocks = -(-most // limit)
    size = -(-most // blocks)  # the largest cohort fills all of its blocks

    def value(block: Array) -> tuple[PyTree, PyTree, Array]:
        positions = block * size + jnp.arange(size, dtype=jnp.int32)
        mask = positions < ends[-1]
        # Padding repeats the block's first example, with weight 0.
        positions = jnp.where(mask, positions, positions[:1])
        slot = jnp.searchsorted(ends, positions, side="right")
        slot = jnp.minimum(slot, slots - 1)
        within = positions - (ends - sizes)[slot]
        rows = clients.offset[slot] + within
        batch = jax.tree.map(lambda x: x.at[rows].get(mode="clip"), data.examples)
        keys = jax.vmap(lambda key, i: stream(key, STEP, i))(clients.key[slot], within)
        scale = tasks.weights / jnp.maximum(sizes, 1).astype(tasks.weights.dtype)
        update, values = gradient(engine.message, batch, jnp.where(mask, scale[slot], 0), keys)
        bad = (
            jnp.zeros(slots, jnp.int32)
            .at[slot]
            .max((mask & ~jnp.isfinite(values["loss"])).astype(jnp.int32))
        )
        update = jax.tree.map(lambda u: u.astype(accumulator(u.dtype)), update)
        return update, totals(values, mask), bad

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
    blamed = bad > 0
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
