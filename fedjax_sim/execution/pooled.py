"""One weighted gradient over the cohort's examples, for algorithms that are just that."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import INT32_MAX
from fedjax_sim.core.division import num_groups, quotient, remainder
from fedjax_sim.core.loss import totals
from fedjax_sim.core.randomness import STEP, stream
from fedjax_sim.core.sums import FEW_REPORTED, Sum, add_to, zero_sum
from fedjax_sim.core.tasks import Executed, Options, Tasks
from fedjax_sim.core.trees import all_finite
from fedjax_sim.core.types import Array, Exchange, PyTree, accumulator
from fedjax_sim.execution.client import Engine
from fedjax_sim.execution.machine import platform_of

# Examples of a block, which bound the memory of activations. On a CPU, 512 was the fastest of 4096,
# 1024, 512 and 256 (`python -m benchmarks.fedsgd`), because a 2NN's activations then stay in a
# core's cache. On other platforms the size is not measured.
_BLOCK, _CPU_BLOCK = 4096, 512


class _Sums(NamedTuple):
    update: Sum
    metrics: Sum
    bad: Array  # Int[m], 1 where a loss is not finite


def takes_pooled(exchange: Exchange, options: Options) -> bool:
    """Whether one gradient over the cohort suffices, which gives no single client's update."""
    return exchange.pooled_gradient is not None and options == Options()


def pooled(engine: Engine, client_states: PyTree, tasks: Tasks, dynamic: bool) -> Executed:
    """One gradient of all the cohort's examples, which are laid end to end and cut into blocks.

    A client's update is taken for not finite by its losses; if all losses are finite and the sum
    is not, all clients that report are marked. A client drawn twice is computed once and counts
    twice. Clients of weight 0 come last, in blocks of their own, of which only the metrics count.

    Args:
      dynamic: whether there are as many blocks as the cohort fills, in a loop that cannot be
        differentiated in reverse; else as many as any cohort of m could fill.
    """
    data, gradient = engine.data, engine.exchange.pooled_gradient
    assert gradient is not None
    slots = tasks.client_ids.shape[0]
    reports = tasks.num_steps > 0
    clients = jax.vmap(engine.client)(tasks.client_ids)

    # A client's first slot stands for all its slots, so that no cohort has more than N examples.
    places = jnp.arange(slots, dtype=jnp.int32)
    first = jnp.full(data.num_clients, slots - 1, jnp.int32)
    first = first.at[tasks.client_ids].min(jnp.where(reports, places, slots - 1))[tasks.client_ids]
    is_first_slot = reports & (first == places)
    weights = jnp.where(reports, tasks.weights, 0)
    weighs = jnp.zeros(slots, bool).at[first].max(weights != 0)
    weights = jnp.zeros_like(weights).at[first].add(weights)
    times = jnp.zeros(slots, jnp.int32).at[first].add(reports.astype(jnp.int32))
    sizes = jnp.where(is_first_slot, clients.num_examples, 0)

    # The weights given to the gradient are scaled to at most 1 / block, because with 16-bit floats
    # they, and the gradient's own sum over a block, would otherwise overflow.
    scale = weights / jnp.maximum(sizes, 1).astype(weights.dtype)
    peak = jax.lax.stop_gradient(jnp.max(jnp.abs(jnp.where(is_first_slot, scale, 0))))
    peak = jnp.where(peak > 0, peak, 1)

    limit = _CPU_BLOCK if platform_of(engine) == "cpu" else _BLOCK
    max_examples = min(
        slots * data.max_num_examples, data.total_num_examples, INT32_MAX - 2 * limit
    )
    blocks = -(-max_examples // limit)
    size = -(-max_examples // blocks)  # the largest cohort fills all of its blocks
    unit = peak * size

    # Clients with a weight come first; the others follow from the next whole block on.
    lengths = jnp.concatenate([jnp.where(weighs, sizes, 0), jnp.where(weighs, 0, sizes)])
    ends = jnp.cumsum(lengths)
    border = num_groups(ends[slots - 1], size)  # the first block of the others
    last = jnp.where(ends[-1] > ends[slots - 1], border * size - ends[slots - 1], 0) + ends[-1] - 1
    ends = ends.at[slots:].add(border * size - ends[slots - 1])
    filled = quotient(last + size, size)  # blocks

    def at(position: Array) -> Array:
        """The index of the stretch of `lengths` that has the position, or of the next one."""
        return jnp.minimum(jnp.searchsorted(ends, position, side="right"), 2 * slots - 1)

    def value(block: Array) -> tuple[PyTree, PyTree, Array]:
        positions = block * size + jnp.arange(size, dtype=jnp.int32)
        place = at(positions)
        mask = (positions >= (ends - lengths)[place]) & (positions < ends[place])
        # Padding repeats the block's first example, with weight 0. A block of padding alone, which
        # is not read, repeats the cohort's last example.
        repeated = jnp.minimum(block * size, jnp.maximum(last, 0))
        positions = jnp.where(mask, positions, repeated)
        place = jnp.where(mask, place, at(repeated))
        slot, within = remainder(place, slots), positions - (ends - lengths)[place]
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

    def add(block: Array, sums: _Sums) -> _Sums:
        update, metrics, bad = value(block)
        return _Sums(
            add_to(sums.update, update, block < border),
            add_to(sums.metrics, metrics),
            jnp.maximum(sums.bad, bad),
        )

    def add_if_filled(sums: _Sums, block: Array) -> tuple[_Sums, None]:
        return jax.lax.cond(block < filled, add, lambda block, sums: sums, block, sums), None

    update, metrics, bad = jax.eval_shape(value, jnp.int32(0))
    sums = _Sums(
        zero_sum(update, terms=blocks),
        zero_sum(metrics, blocks + 1, FEW_REPORTED),
        jnp.zeros_like(bad),
    )
    if dynamic:
        sums = jax.lax.fori_loop(0, filled, add, sums)
    else:  # one block more, because clients of weight 0 begin a block of their own
        sums, _ = jax.lax.scan(add_if_filled, sums, jnp.arange(blocks + 1, dtype=jnp.int32))
    update = sums.update.total
    blamed = reports & (sums.bad[first] > 0)
    unexplained = ~all_finite(update) & ~jnp.any(blamed & weighs[first])
    return Executed(
        update=update,
        total=(),
        client_states=client_states,
        metrics=sums.metrics.total,
        counted=reports,
        finite=~jnp.where(unexplained, reports, blamed),
        # One step for each client; the padding of blocks is not counted.
        lane_steps=jnp.sum(reports, dtype=jnp.int32),
    )
