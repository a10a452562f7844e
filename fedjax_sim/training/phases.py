"""The phases of a round, which synchronous and asynchronous ones share."""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import check_same_spec
from fedjax_sim.core.client_states import with_states
from fedjax_sim.core.cohort import as_arrays
from fedjax_sim.core.local_training import num_steps
from fedjax_sim.core.randomness import COMBINE, SERVER, stream
from fedjax_sim.core.tasks import Executed, Tasks
from fedjax_sim.core.trees import first_of_each, power_of_two, where
from fedjax_sim.core.types import (
    Array,
    Coefficients,
    Cohort,
    Combine,
    Exchange,
    FederatedAlgorithm,
    FederatedState,
    PyTree,
    RoundContext,
    accumulator,
)
from fedjax_sim.data import FederatedData
from fedjax_sim.training.reported import Average, Exchanged, Slots, is_empty
from fedjax_sim.training.timing import own_steps


def who_reports(
    algorithm: FederatedAlgorithm, state: FederatedState, data: FederatedData, cohort: Cohort
) -> Slots:
    """The slots that report: sent the model, no dropout, and at least one local step."""
    stateful = bool(jax.tree.leaves(state.clients))
    cohort, mask, reports = as_arrays(cohort, data.num_clients, stateful)
    ids = jnp.clip(cohort.client_ids, 0, data.num_clients - 1)
    was_sent = mask & (ids == cohort.client_ids)
    if stateful:  # of two slots of a client, which would both write its state, one is padding
        was_sent = first_of_each(ids, was_sent)
    steps = num_steps(algorithm.local, data.num_examples[ids], cohort.work)
    answers = was_sent & reports
    steps = jnp.where(answers, steps, 0)
    # A slot that completes no step does not report, and stands for no other of its client.
    cohort = cohort._replace(reports=steps > 0)
    weights = data.client_weights[ids]
    return Slots(cohort, ids, was_sent, answers, steps, algorithm.local, weights)


def tasks_of(
    exchange: Exchange, slots: Slots, coefficients: Coefficients, data: FederatedData
) -> tuple[Tasks, Array]:
    """The slots' tasks, and the power of two by which their weights a_k are multiplied.

    The factor keeps products of tiny weights in range, and changes no bit of the average.
    """
    reports, steps = slots.steps > 0, own_steps(exchange, slots, data)
    unit = power_of_two(jnp.where(reports, coefficients.weights, 0))
    weights = coefficients.weights * unit
    return Tasks(slots.ids, steps, weights, cast(Array, coefficients.shares)), unit


def combine(
    *,
    key: Array,
    round: Array,
    num_clients: int,
    coefficients: Coefficients,
    tasks: Tasks,
    unit: Array,
    executed: Executed,
) -> Average:
    """Divides the sum of updates by the denominator, or calls the rule's `combine`.

    The division comes last, so that the denominator leaves out clients that were dropped.
    """
    counted, weights = executed.counted, tasks.weights
    weight_sum = jnp.sum(jnp.where(counted, weights, 0))
    share = jnp.sum(jnp.where(counted, tasks.shares, 0))
    denominator = coefficients.divisor(weight_sum, unit)
    empty = ~jnp.any(counted & (weights != 0)) | (denominator == 0)
    if coefficients.combine is None:
        safe = jnp.where(denominator == 0, 1, denominator)
        update = jax.tree.map(lambda u: u / safe.astype(u.dtype), executed.update)
    else:
        own_key = stream(key, COMBINE, round)
        update = _combined(coefficients.combine, coefficients.weights, executed, own_key)
    context = RoundContext(
        round=round,
        num_clients=num_clients,
        num_reporting=jnp.sum(counted, dtype=jnp.int32),
        weight_sum=weight_sum / unit,
        reporting_share=share,
        key=stream(key, SERVER, round),
        denominator=denominator / unit,
        largest_weight=jnp.max(jnp.where(counted, jnp.abs(weights), 0)) / unit,
    )
    return Average(update, empty, context)


def _combined(combine: Combine, weights: Array, executed: Executed, key: Array) -> PyTree:
    """Calls `combine` with all updates; those of slots that do not count are zeros."""
    counted = executed.counted
    zeros = jax.tree.map(jnp.zeros_like, executed.updates)
    update = combine(where(counted, executed.updates, zeros), weights, counted, key)

    def widened(x: Any) -> Array:
        x = jnp.asarray(x)
        return x.astype(accumulator(x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x

    update = jax.tree.map(widened, update)
    check_same_spec("combine", "one client's update", executed.update, update)
    return update


def server_update(
    exchange: Exchange,
    before: PyTree,
    average: Average,
    executed: Executed,
    *,
    acts_when_empty: bool,
) -> PyTree:
    """The server's state after the exchange; if nothing was aggregated, the state before it.

    A server that acts when empty takes its step then, too, with zeros.
    """
    update, total, empty = average.update, executed.total, average.empty
    if acts_when_empty:
        zeros = jax.tree.map(jnp.zeros_like, (update, total))
        update, total = where(empty, zeros, (update, total))
    server = exchange.server_update(before, update, total, average.context)
    check_same_spec("server_update", "the server state", before, server)
    return server if acts_when_empty else where(empty, before, server)


def advance(
    algorithm: FederatedAlgorithm,
    state: FederatedState,
    *,
    server: PyTree,
    client_states: PyTree,
    ids: Array,
    exchanged: Sequence[Exchanged],
    num_clients: int,
) -> FederatedState:
    """The state after the round; if an exchange aggregated nothing, only `round` advances."""
    empty = is_empty(exchanged)
    if algorithm.earlier and not algorithm.acts_when_empty:
        server = where(empty, state.server, server)
    written = exchanged[0].executed.counted
    for later in exchanged[1:]:
        written |= later.executed.counted
    # Only slots that counted write back: a padding slot may carry any id.
    target = jnp.where(written & ~empty, ids, num_clients)
    clients = with_states(state.clients, target, client_states)
    return FederatedState(server, clients, state.round + 1, state.get_params)
