"""Virtual time of a synchronous round: how long its clients take, and who comes too late."""

from collections.abc import Sequence
from typing import cast

import jax.numpy as jnp

from fedjax_sim.core.clock import Clock, check_clock
from fedjax_sim.core.local_training import num_steps
from fedjax_sim.core.types import Array, Cohort, Exchange, FederatedAlgorithm, Params
from fedjax_sim.data import FederatedData
from fedjax_sim.training.communication import communication
from fedjax_sim.training.reported import Slots


def on_time(
    clock: Clock | None,
    algorithm: FederatedAlgorithm,
    params: Params,
    data: FederatedData,
    slots: Slots,
) -> tuple[Slots, Array | tuple[()]]:
    """The slots without those that miss the cohort's deadline, and the round's seconds.

    A round takes as long as the slowest client that reports. With a deadline the server waits for
    no client longer than that, and that long for one that is late or dropped out; without one, it
    does not wait for a dropout. A time that exceeds the deadline by rounding alone is in time.

    Returns:
      The slots, with no steps for who is late, and with fewer where the cohort takes partial work;
      and Float[], or () without a clock.

    Raises:
      ValueError: for a deadline without a clock, or a clock of another number of clients.
    """
    deadline, partial = slots.cohort.deadline, slots.cohort.partial
    if clock is None:
        if deadline is not None:
            raise ValueError(
                "clock must be given where the cohort has a deadline, as of fs.sampling.deadline: "
                "fs.make_round(..., clock=fs.clocks.lognormal(key, K)); got None"
            )
        return slots, ()
    check_clock(clock, data.num_clients)
    exchange = communication(algorithm, params, data)
    travelling = clock.travel_seconds(slots.ids, exchange.down, exchange.up)
    if deadline is None:
        seconds = travelling + _training(clock, algorithm, data, slots)
        return slots, jnp.max(jnp.where(slots.steps > 0, seconds, 0))
    deadline = deadline.astype(travelling.dtype)
    latest = deadline * (1 + 8 * jnp.finfo(deadline.dtype).eps)
    could_report = slots.steps > 0
    if partial is not None:
        slots = _cut_to(latest - travelling, clock, algorithm, data, slots)
    seconds = travelling + _training(clock, algorithm, data, slots)
    in_time = (slots.steps > 0) & (seconds <= latest)
    slots = _with_steps(slots, jnp.where(in_time, slots.steps, 0))
    # A client that has nothing to do answers at once; the server waits in vain for these.
    silent = (could_report & ~in_time) | (slots.was_sent & ~slots.answers)
    waited = jnp.where(in_time, jnp.minimum(seconds, deadline), 0)
    waited = jnp.where(silent & jnp.isfinite(deadline), deadline, waited)
    return slots, jnp.max(waited)


def _training(
    clock: Clock, algorithm: FederatedAlgorithm, data: FederatedData, slots: Slots
) -> Array:
    """Float[m], seconds of the local steps of all exchanges."""
    dtype = clock.step_seconds.dtype
    steps = [own_steps(x, slots, data).astype(dtype) for x in algorithm.exchanges]
    return clock.step_seconds[slots.ids] * _added(steps)


def _cut_to(
    seconds: Array, clock: Clock, algorithm: FederatedAlgorithm, data: FederatedData, slots: Slots
) -> Slots:
    """The slots that take partial work with as many local steps as fit into Float[m] seconds."""
    work, is_partial = slots.cohort.work, cast(Array, slots.cohort.partial)
    sizes, step_seconds = data.num_examples[slots.ids], clock.step_seconds[slots.ids]
    dtype = step_seconds.dtype
    whole = _added([num_steps(x.local, sizes).astype(dtype) for x in algorithm.exchanges])
    takes_time = step_seconds > 0
    fitting = jnp.floor(seconds / jnp.where(takes_time, step_seconds, 1))
    fitting = jnp.where(takes_time, fitting, whole)
    share = jnp.clip(fitting / jnp.maximum(whole, 1), 0, 1)
    share = jnp.where(is_partial, share, 1)
    if work is not None:
        share = jnp.minimum(share, jnp.asarray(work, dtype))
    slots = slots._replace(cohort=slots.cohort._replace(work=share))
    steps = num_steps(slots.local, sizes, share)
    return _with_steps(slots, jnp.where(slots.steps > 0, steps, 0))


def _with_steps(slots: Slots, steps: Array) -> Slots:
    """The slots with other local steps of the last exchange; who has none does not report."""
    cohort: Cohort = slots.cohort._replace(reports=steps > 0)
    return slots._replace(cohort=cohort, steps=steps)


def own_steps(exchange: Exchange, slots: Slots, data: FederatedData) -> Array:
    """Int[m], local steps in an exchange; a client that reports takes part in every one."""
    if exchange.local == slots.local:
        return slots.steps
    steps = num_steps(exchange.local, data.num_examples[slots.ids], slots.cohort.work)
    return jnp.where(slots.steps > 0, jnp.maximum(steps, 1), 0)


def _added(numbers: Sequence[Array]) -> Array:
    return sum(numbers[1:], numbers[0])
