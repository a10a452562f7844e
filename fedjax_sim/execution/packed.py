"""A few lanes, each training one client at a time and taking the next from a queue."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Executed, FederatedAlgorithm, Metrics, PyTree, Tasks
from fedjax_sim.checks import check_count
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.forward_only import forward_only
from fedjax_sim.execution.pooled import pooled
from fedjax_sim.local import Engine
from fedjax_sim.masking import (
    all_finite,
    sum_where,
    weighted_sum,
    where,
    zeros_of,
)

_DEFAULT_LANES = 4


def packed(lanes: int | None = None) -> "Packed":
    """L lanes, each with one client at a time: ragged clients cost what their data costs.

    Clients start longest first; a lane whose client ends takes the next in the queue.
    The round ends with the last client, so the number of iterations is that of the
    cohort at hand, and nothing is padded to the federation's largest client (but for an
    algorithm's probe, which passes over as many blocks as that one has). Updates
    are summed as they come: memory is O(L) models beside the clients' states.
    Reverse-mode differentiation is refused; use `vmapped` for it.

    Args:
      lanes: L >= 1; None for 4. Never more than the cohort has slots.

    Raises:
      ValueError: if lanes < 1; under reverse-mode differentiation.
    """
    if lanes is not None:
        check_count("lanes", lanes, ", or None")
    return Packed(lanes)


class _Lanes(NamedTuple):
    place: Array  # Int[L], the client's place in the queue; behind the last: idle
    step: Array  # Int[L], local steps done
    carry: PyTree  # [L, ...]
    metrics: Metrics  # [L]


class _Sums(NamedTuple):
    next: Array  # Int[], the first client in the queue that no lane has taken
    update: PyTree
    total: PyTree
    metrics: Metrics
    client_states: PyTree  # [m, ...]
    counted: Array  # Bool[m]
    finite: Array  # Bool[m]


@dataclass(frozen=True)
class Packed:
    """See `packed`."""

    lanes: int | None

    def __call__(
        self,
        algorithm: FederatedAlgorithm,
        data: FederatedData,
        key: Array,
        message: PyTree,
        client_states: PyTree,
        tasks: Tasks,
        drop_nonfinite: bool,
    ) -> Executed:
        engine = Engine(algorithm, data, key, message)
        if algorithm.pooled_gradient is not None and not drop_nonfinite:
            executed = pooled(engine, client_states, tasks, dynamic=True)
        else:
            lanes = min(self.lanes or _DEFAULT_LANES, tasks.client_ids.shape[0])
            executed = _pack(engine, client_states, tasks, drop_nonfinite, lanes)
        return executed._replace(
            **{
                name: forward_only(getattr(executed, name), "execution.packed")
                for name in ("update", "total", "client_states", "metrics")
            }
        )


def _pack(
    engine: Engine, client_states: PyTree, tasks: Tasks, drop_nonfinite: bool, lanes: int
) -> Executed:
    slots = tasks.client_ids.shape[0]
    order = jnp.argsort(-tasks.num_steps, stable=True).astype(jnp.int32)  # the queue, longest first
    queued = jnp.sum(tasks.num_steps > 0, dtype=jnp.int32)

    # What follows from a lane's place in the queue is gathered anew, not carried.
    def look_up(place: Array) -> tuple[Array, PyTree, PyTree]:
        slot = order[jnp.minimum(place, slots - 1)]
        clients = jax.vmap(engine.client)(tasks.client_ids[slot])
        states = jax.tree.map(lambda x: x[slot], client_states)
        return slot, clients, states

    def advance(state: _Lanes) -> _Lanes:
        _, clients, states = look_up(state.place)
        carry, seen = jax.vmap(engine.step)(clients, state.carry, states, state.step)
        metrics = jax.tree.map(jnp.add, state.metrics, seen)
        return _Lanes(state.place, state.step + 1, carry, metrics)

    def harvest(
        state: _Lanes, ended: Array
    ) -> tuple[Array, PyTree, Array, Array, tuple[PyTree, PyTree, Metrics]]:
        """What the lanes that ended hand over: slot, state, counted, finite, and the sums."""
        slot, clients, states = look_up(state.place)
        output = jax.vmap(engine.finish)(clients, state.carry, states, state.step)
        finite = jax.vmap(all_finite)((output.update, output.total, output.client_state))
        counted = ended & finite if drop_nonfinite else ended
        added = (
            weighted_sum(tasks.weights[slot], counted, output.update),
            weighted_sum(tasks.shares[slot], counted, output.total),
            sum_where(counted, {**state.metrics, **dict(output.metrics)}),
        )
        return slot, output.client_state, counted, finite, added

    def turn_over(state: _Lanes, sums: _Sums, ended: Array) -> tuple[_Lanes, _Sums]:
        """Takes in the clients that ended, and starts the next in their lanes."""
        slot, client_state, counted, finite, added = harvest(state, ended)
        target = jnp.where(ended, slot, slots)

        def scatter(into: Array, new: Array) -> Array:
            return into.at[target].set(new, mode="drop")

        before = (sums.update, sums.total, sums.metrics)
        update, total, metrics = jax.tree.map(jnp.add, before, added)
        following = sums.next - 1 + jnp.cumsum(ended, dtype=jnp.int32)
        fresh = begin(jnp.where(ended, following, state.place))
        return where(ended, fresh, state), _Sums(
            next=sums.next + jnp.sum(ended, dtype=jnp.int32),
            update=update,
            total=total,
            metrics=metrics,
            client_states=jax.tree.map(scatter, sums.client_states, client_state),
            counted=scatter(sums.counted, counted),
            finite=scatter(sums.finite, finite),
        )

    def begin(place: Array) -> _Lanes:
        _, clients, states = look_up(place)
        carry = jax.vmap(engine.start)(clients, states)
        step = jnp.zeros(lanes, jnp.int32)
        seen = jax.eval_shape(jax.vmap(engine.step), clients, carry, states, step)[1]
        return _Lanes(place, step, carry, zeros_of(seen))

    def body(loop: tuple[_Lanes, _Sums]) -> tuple[_Lanes, _Sums]:
        state, sums = loop
        state = advance(state)
        slot = order[jnp.minimum(state.place, slots - 1)]
        ended = (state.place < queued) & (state.step >= tasks.num_steps[slot])
        return jax.lax.cond(
            jnp.any(ended), turn_over, lambda state, sums, ended: (state, sums), state, sums, ended
        )

    def unfinished(loop: tuple[_Lanes, _Sums]) -> Array:
        return jnp.any(loop[0].place < queued)

    first = begin(jnp.arange(lanes, dtype=jnp.int32))
    none = jnp.zeros(slots, bool)

    update, total, metrics = zeros_of(jax.eval_shape(harvest, first, none[:lanes])[-1])
    sums = _Sums(jnp.int32(lanes), update, total, metrics, client_states, none, none)
    _, sums = jax.lax.while_loop(unfinished, body, (first, sums))
    return Executed(
        sums.update, sums.total, sums.client_states, sums.metrics, sums.counted, sums.finite
    )
