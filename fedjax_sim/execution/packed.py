"""A few lanes, each training one client at a time and taking the next from a queue."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import INT32_MAX, check_count
from fedjax_sim.core.counts import carried, constant, exact, product
from fedjax_sim.core.division import num_groups
from fedjax_sim.core.local_training import shuffles
from fedjax_sim.core.registry import AT_LEAST_1, Option, declare
from fedjax_sim.core.sums import FEW_REPORTED, Sum, add_to, zero_sum
from fedjax_sim.core.tasks import Executed, Options, Tasks
from fedjax_sim.core.trees import accumulators, all_finite, weighted
from fedjax_sim.core.types import Array, ClientOutput, PyTree
from fedjax_sim.execution.client import Client, Engine, block_sizes, group_size, max_num_blocks
from fedjax_sim.execution.forward_only import forward_only
from fedjax_sim.execution.machine import DEVICE_BYTES, carry_bytes, num_cores, platform_of
from fedjax_sim.execution.pooled import pooled, takes_pooled
from fedjax_sim.execution.strategy import Strategy

# Lanes on an accelerator; a guess that should fill it, which is not measured.
_LANES = 128


@declare(
    "a few lanes, each taking the next client from a queue",
    Option("lanes", "clients side by side", kind=int, range=AT_LEAST_1),
)
def packed(lanes: int | None = None) -> "Packed":
    """L lanes, each with one client at a time: ragged clients cost what their data costs.

    Clients start longest first; a lane whose client ends takes the next in the queue.
    The round ends with the last client, so the number of iterations is that of the
    cohort at hand, not that of the federation's largest client. With `batch_size=None` a step
    is a full batch, padded to one of a few sizes; lanes share that of their largest. Updates are
    summed as they come: memory is O(L) models beside the clients' states. On a CPU,
    the last L / 2 clients are trained one after the other, since an idle lane costs as
    much there as one that trains. Reverse-mode differentiation is refused; use `vmapped`
    for it.

    Args:
      lanes: L, from 1 to the cohort's slots. None chooses: on a CPU one for each core of the
        device, at most 8; on an accelerator 128, or as many as 2 GiB hold.

    Raises:
      ValueError: if lanes < 1 or, in a round, lanes > m; under reverse-mode
        differentiation.
    """
    if lanes is not None:
        lanes = check_count("lanes", lanes, ", or None")
    return Packed(lanes)


class _Lanes(NamedTuple):
    """The state of the lanes, each with one client in training: [L, ...], or one lane's [...]."""

    slot: Array  # Int[L], of the cohort
    end: Array  # Int[L], the steps that its client takes; 0 if the lane is idle
    step: Array  # Int[L], the steps it has taken
    client: Client
    client_state: PyTree
    carry: PyTree
    metrics: Sum  # over its steps


class _Sums(NamedTuple):
    ended: Array  # Int[], clients that are done
    lane_steps: Array  # Int[] or UInt32[4], steps of all lanes, idle ones too
    update: Sum
    total: Sum
    metrics: Sum
    client_states: PyTree  # [m, ...]
    updates: PyTree  # [m, ...], or () if they are not kept
    counted: Array  # Bool[m]
    finite: Array  # Bool[m]


@dataclass(frozen=True)
class Packed(Strategy):
    """See `packed`."""

    lanes: int | None
    queues: ClassVar[bool] = True

    def __call__(
        self, engine: Engine, client_states: PyTree, tasks: Tasks, options: Options
    ) -> Executed:
        if takes_pooled(engine.exchange, options):
            executed = pooled(engine, client_states, tasks, dynamic=True)
        else:
            lanes = self.side_by_side(engine, client_states, tasks.client_ids.shape[0])
            executed = _pack(engine, client_states, tasks, options, lanes)
        return executed._replace(
            **{
                name: forward_only(getattr(executed, name), "execution.packed")
                for name in ("update", "total", "client_states", "metrics", "updates")
            }
        )

    def side_by_side(self, engine: Engine, client_states: PyTree, slots: int) -> int:
        """L, the lanes."""
        if self.lanes is not None:
            if self.lanes > slots:
                raise ValueError(
                    f"lanes must be at most m = {slots}, the slots of the cohort; got {self.lanes}"
                )
            return self.lanes
        if platform_of(engine) != "cpu":
            return min(slots, _LANES, max(1, DEVICE_BYTES // carry_bytes(engine, client_states)))
        # A core gains nothing from a second lane, which competes for its cache.
        cores_of_device = num_cores() // jax.local_device_count("cpu")
        return min(slots, max(1, cores_of_device), 8)


def _pack(
    engine: Engine, client_states: PyTree, tasks: Tasks, options: Options, lanes: int
) -> Executed:
    slots = tasks.client_ids.shape[0]
    # The queue is longest first. Full batches of similar size follow each other, because all lanes
    # pad their blocks to the size of the largest.
    steps, examples = tasks.num_steps, engine.data.num_examples[tasks.client_ids]
    full = len(block_sizes(engine.exchange.local, engine.data)) > 1
    order = jnp.lexsort((-examples, -steps) if full else (-steps,)).astype(jnp.int32)
    queued = jnp.sum(tasks.num_steps > 0, dtype=jnp.int32)
    clients = jax.vmap(engine.client)(tasks.client_ids)
    group = group_size(engine.exchange.local, engine.data)

    def begin(place: Array, no_metrics: Sum | None = None) -> _Lanes:
        """One lane, with the client at this place of the queue, or idle after its end.

        Args:
          no_metrics: those of a client that began before; without them, a step is traced.
        """
        slot = order[jnp.minimum(place, slots - 1)]
        client, client_state = _at(clients, slot), _at(client_states, slot)
        idle = place >= queued
        client = client._replace(num_examples=jnp.where(idle, 0, client.num_examples))
        carry = engine.start(client, client_state, dynamic=True)
        step = jnp.zeros_like(slot)
        end = jnp.where(idle, 0, tasks.num_steps[slot])
        if no_metrics is None:
            no_metrics = engine.no_metrics(client, carry, client_state)
        return _Lanes(slot, end, step, client, client_state, carry, no_metrics)

    def advance(lane: _Lanes, shuffled: PyTree, i: Array) -> _Lanes:
        client, state = lane.client, lane.client_state
        carry, step_metrics = engine.step(client, lane.carry, state, lane.step, shuffled, i)
        metrics = add_to(lane.metrics, step_metrics)
        return lane._replace(step=lane.step + 1, carry=carry, metrics=metrics)

    def shuffle(lane: _Lanes) -> PyTree:
        """Which examples the lane's next G steps see."""
        return engine.shuffled(lane.client, lane.step + jnp.arange(group, dtype=jnp.int32))

    def finish(lane: _Lanes) -> ClientOutput:
        output = engine.finish(lane.client, lane.carry, lane.client_state, lane.step)
        return output._replace(metrics={**lane.metrics.total, **dict(output.metrics)})

    def repeat(times: Array, state: _Lanes, over: Callable[..., Any]) -> _Lanes:
        """So many steps of one lane, or of each (`over` is then `vmap`)."""
        shuffle_all, advance_all = over(shuffle), over(advance, (0, 0, None))

        def take(steps: Array, state: _Lanes) -> _Lanes:
            shuffled = shuffle_all(state)
            return jax.lax.fori_loop(0, steps, lambda i, s: advance_all(s, shuffled, i), state)

        if not shuffles(engine.exchange.local):
            return take(times, state)

        def take_group(g: Array, state: _Lanes) -> _Lanes:
            return take(jnp.minimum(group, times - g * group), state)

        return jax.lax.fori_loop(0, num_groups(times, group), take_group, state)

    max_steps = lanes * slots * engine.exchange.local.epochs
    beyond = max_steps * max_num_blocks(engine.exchange.local, engine.data) > INT32_MAX

    def steps_taken(before: Array, together: Array, alone: Array) -> Array:
        """Steps of all lanes after some more `together` and some of one lane."""
        if not beyond:
            return before + (together * lanes + alone)
        new_steps = product(together, jnp.full_like(together, lanes)) + exact(alone)
        return carried(before + new_steps)

    def take_in(lane: _Lanes, sums: _Sums, lane_steps: Array) -> _Sums:
        slot, output = lane.slot, finish(lane)
        finite = all_finite((output.update, output.total, output.client_state))
        counted = finite if options.drop_nonfinite else jnp.array(True)
        return _Sums(
            sums.ended + 1,
            lane_steps,
            add_to(sums.update, weighted(tasks.weights[slot], counted, output.update)),
            add_to(sums.total, weighted(tasks.shares[slot], counted, output.total)),
            add_to(sums.metrics, output.metrics, counted),
            _put(sums.client_states, slot, output.client_state),
            _put(sums.updates, slot, output.update if options.keep_updates else ()),
            sums.counted.at[slot].set(counted),
            sums.finite.at[slot].set(finite),
        )

    def body(loop: tuple[_Lanes, _Sums]) -> tuple[_Lanes, _Sums]:
        """One client's end: all lanes step up to it, then that lane alone turns over."""
        state, sums = loop
        busy, left = state.end > 0, state.end - state.step
        lane = jnp.argmin(jnp.where(busy, left, jnp.iinfo(jnp.int32).max))
        # Under `vmap` over seeds no lane may be busy here, while another seed's loop continues.
        steps = jnp.where(busy[lane], left[lane], 0)
        together = jnp.zeros_like(steps)
        if lanes > 1:
            together = jnp.where(queued - sums.ended > alone, steps, 0)
            state = repeat(together, state, jax.vmap)
        ending = repeat(steps - together, _at(state, lane), lambda function, axes=0: function)
        sums = take_in(ending, sums, steps_taken(sums.lane_steps, together, steps - together))
        none = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), state.metrics)
        return _put(state, lane, begin(lanes + sums.ended - 1, none)), sums

    def unfinished(loop: tuple[_Lanes, _Sums]) -> Array:
        return loop[1].ended < queued

    # On a CPU an idle lane costs as much as one that trains: the last clients, too few to
    # fill half of the lanes, are trained one after the other.
    alone = lanes // 2 if platform_of(engine) == "cpu" else 0
    state = jax.lax.map(begin, jnp.arange(lanes, dtype=jnp.int32))
    none = jnp.zeros(slots, bool)
    output = jax.eval_shape(lambda state: finish(_at(state, jnp.int32(0))), state)
    updates: PyTree = ()
    if options.keep_updates:
        updates = jax.tree.map(lambda x: jnp.zeros((slots, *x.shape), x.dtype), output.update)
    sums = _Sums(
        ended=jnp.int32(0),
        lane_steps=constant(0) if beyond else jnp.int32(0),
        update=zero_sum(accumulators(output.update), terms=slots),
        total=zero_sum(accumulators(output.total), terms=slots),
        metrics=zero_sum(output.metrics, slots, FEW_REPORTED),
        client_states=client_states,
        updates=updates,
        counted=none,
        finite=none,
    )
    _, sums = jax.lax.while_loop(unfinished, body, (state, sums))
    return Executed(
        update=sums.update.total,
        total=sums.total.total,
        client_states=sums.client_states,
        metrics=sums.metrics.total,
        counted=sums.counted,
        finite=sums.finite,
        lane_steps=sums.lane_steps,
        updates=sums.updates,
    )


def _at(tree: PyTree, i: Array) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), tree)


def _put(tree: PyTree, i: Array, leaves: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 0), tree, leaves)
