"""One asynchronous round: the server's next step, of the first results to arrive.

Clients train when they are sent the model, and their results are held in the state until they
arrive. So a strategy trains clients of one message as ever, and a result depends on the client, the
round in which it was sent the model, and the key of the run.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.asynchrony import Asynchrony, Pending
from fedjax_sim.core.client_states import is_held
from fedjax_sim.core.clock import check_clock
from fedjax_sim.core.history import RoundMetrics
from fedjax_sim.core.randomness import (
    CLIENT,
    DISPATCH,
    check_key,
    stream,
)
from fedjax_sim.core.tasks import Executed, Options, Tasks
from fedjax_sim.core.trees import global_norm, power_of_two, weighted_sum
from fedjax_sim.core.types import (
    AggregationRule,
    Array,
    Coefficients,
    Cohort,
    Exchange,
    FederatedAlgorithm,
    FederatedState,
    accumulator,
)
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.client import Engine
from fedjax_sim.execution.strategy import Strategy
from fedjax_sim.training.arguments import ask_rule, check_needs_no_inclusion
from fedjax_sim.training.dispatch import Trained, choose, seconds_of, train, with_total_beside
from fedjax_sim.training.ledger import LocalWork, local_work
from fedjax_sim.training.phases import advance, combine, server_update, who_reports
from fedjax_sim.training.reported import Exchanged, Slots, means
from fedjax_sim.training.state import check_state


class _Arrived(NamedTuple):
    """The first b of those in training; `is_real` is False where fewer were."""

    result: Pending  # leaves [b, ...]
    is_real: Array  # Bool[b]
    seconds: Array  # Float[], since the server's last step


def make_asynchronous_round(
    algorithm: FederatedAlgorithm,
    asynchrony: Asynchrony,
    aggregation: AggregationRule,
    strategy: Strategy,
    nonfinite: str,
) -> Callable[[Array, FederatedState, FederatedData, Cohort], tuple[FederatedState, RoundMetrics]]:
    """The round of `make_round` for an algorithm of `fs.asynchronous`.

    Of the cohort those are sent the model who are free, as many as can train beside those in
    training; of what is pending then, the server takes its step with the first b to arrive.

    Raises:
      ValueError: for a rule that needs inclusion probabilities; from the round, also for a cohort
        of fewer than c slots, or one with a deadline.
    """
    check_needs_no_inclusion(aggregation)
    (exchange,) = algorithm.exchanges
    options = Options(drop_nonfinite=nonfinite == "drop", keep_updates=True)

    def round_fn(
        key: Array, state: FederatedState, data: FederatedData, cohort: Cohort
    ) -> tuple[FederatedState, RoundMetrics]:
        check_key(key)
        check_state(algorithm, state, data)
        check_clock(asynchrony.clock, data.num_clients)
        assert isinstance(state.pending, Pending)
        if is_held(state.clients):
            raise ValueError(
                "clients' states must be in memory in asynchronous rounds, because a client whose "
                "update arrives need not be of the cohort, whose states are read"
            )
        if cohort.deadline is not None:
            raise ValueError(
                "cohort.deadline must be None in asynchronous rounds, in which nobody is late"
            )
        slots = who_reports(algorithm, state, data, cohort)
        sent = choose(asynchrony, stream(key, DISPATCH, state.round), state.pending, data, slots)
        engine = Engine(
            with_total_beside(exchange),
            data,
            stream(key, CLIENT, state.round),
            exchange.broadcast(state.server, state.round),
        )
        seconds = seconds_of(algorithm, asynchrony, state, data, sent.slots)
        trained = train(asynchrony, strategy, engine, options, state, sent, seconds)
        arrived, pending = _arrive(asynchrony, trained.pending)
        ids, is_real = arrived.result.client_ids, arrived.is_real
        coefficients = _coefficients(algorithm, exchange, aggregation, data, ids, is_real)
        age = jnp.where(is_real, state.round - arrived.result.version, 0)
        executed, tasks, unit = _scaled(asynchrony, state, arrived, age, coefficients)
        average = combine(
            key=key,
            round=state.round,
            num_clients=data.num_clients,
            coefficients=coefficients,
            tasks=tasks,
            unit=unit,
            executed=executed,
        )
        server = server_update(exchange, state.server, average, executed, acts_when_empty=False)
        exchanged = Exchanged(tasks.num_steps, executed, average)
        new_state = advance(
            algorithm,
            state,
            server=server,
            client_states=executed.client_states,
            ids=ids,
            exchanged=[exchanged],
            num_clients=data.num_clients,
        )
        metrics = _metrics(algorithm, data, sent.slots, trained, arrived, age, exchanged)
        return replace(new_state, pending=pending), metrics

    return round_fn


def _arrive(asynchrony: Asynchrony, pending: Pending) -> tuple[_Arrived, Pending]:
    """The first b to arrive, and what is pending after the last of them.

    Of those that arrive at the same time the one of the older model comes first, then the lower id.
    """
    keys = pending.client_ids, pending.version, pending.seconds, ~pending.in_flight
    order = jnp.lexsort(keys)[: asynchrony.buffer]
    result = jax.tree.map(lambda x: x[order], pending)
    is_real = result.in_flight
    elapsed = jnp.max(jnp.where(is_real, result.seconds, 0))
    left = pending._replace(
        seconds=jnp.maximum(pending.seconds - elapsed, 0),
        in_flight=pending.in_flight.at[order].set(False),
    )
    return _Arrived(result, is_real, elapsed), left


def _coefficients(
    algorithm: FederatedAlgorithm,
    exchange: Exchange,
    aggregation: AggregationRule,
    data: FederatedData,
    ids: Array,
    is_real: Array,
) -> Coefficients:
    """The rule's, for those that arrived; how probable it was that they would, nobody knows."""
    cohort = Cohort(ids, is_real, is_real)
    coefficients = ask_rule(aggregation, cohort, data.client_weights[ids], data.client_weights)
    if algorithm.check_rule is not None:
        algorithm.check_rule(coefficients)
    return coefficients if exchange.aggregation is None else exchange.aggregation(coefficients)


def _scaled(
    asynchrony: Asynchrony,
    state: FederatedState,
    arrived: _Arrived,
    age: Array,
    coefficients: Coefficients,
) -> tuple[Executed, Tasks, Array]:
    """What arrived as a strategy would hand it over, each update scaled by its staleness.

    Returns:
      It, its tasks, and the power of two by which their weights a_k are multiplied.
    """
    result, is_real = arrived.result, arrived.is_real
    counted = is_real & result.counted
    factors = asynchrony.staleness(age.astype(result.seconds.dtype))
    if jnp.shape(factors) != age.shape:
        raise ValueError(
            f"staleness must return a factor for each of {age.shape[0]} updates; got shape "
            f"{jnp.shape(factors)}"
        )

    def scale(update: Array, model: Array | None = None) -> Array:
        wide = accumulator(update.dtype)
        update = update.astype(wide)
        if model is not None:
            update = update - model.astype(wide)[None]
        return factors.astype(wide).reshape(-1, *[1] * (update.ndim - 1)) * update

    models = [state.params] if asynchrony.mixes_models else []
    updates = jax.tree.map(scale, result.update, *models)
    unit = power_of_two(jnp.where(is_real, coefficients.weights, 0))
    assert coefficients.shares is not None
    tasks = Tasks(
        result.client_ids,
        is_real.astype(jnp.int32),
        coefficients.weights * unit,
        coefficients.shares,
    )
    executed = Executed(
        update=weighted_sum(tasks.weights, counted, updates),
        total=weighted_sum(tasks.shares, counted, result.total),
        client_states=result.client_state,
        metrics={},
        counted=counted,
        finite=result.finite,
        lane_steps=jnp.zeros((), jnp.int32),
        updates=updates,
    )
    return executed, tasks, unit


def _metrics(
    algorithm: FederatedAlgorithm,
    data: FederatedData,
    slots: Slots,
    trained: Trained,
    arrived: _Arrived,
    age: Array,
    exchanged: Exchanged,
) -> RoundMetrics:
    """Of the clients that were sent the model the work, and of those that arrived all else."""
    is_real, result = arrived.is_real, arrived.result
    average, counted = exchanged.average, exchanged.executed.counted
    weights = data.client_weights[result.client_ids]
    number = jnp.sum(is_real, dtype=jnp.int32)
    ages = age.astype(arrived.seconds.dtype)
    receivers = jnp.sum(slots.was_sent, dtype=jnp.int32)
    if algorithm.to_all:
        receivers = jnp.int32(data.num_clients)
    return RoundMetrics(
        train=means(trained.metrics),
        receivers=receivers,
        senders=number,
        reporting=average.context.num_reporting,
        nonfinite=jnp.sum(is_real & ~result.finite, dtype=jnp.int32),
        update_norm=jnp.where(average.empty, jnp.nan, global_norm(average.update)),
        reporting_share=jnp.sum(jnp.where(counted, weights, 0)) / jnp.sum(data.client_weights),
        empty=average.empty,
        seconds=arrived.seconds,
        staleness={
            "mean": jnp.sum(ages) / jnp.maximum(number, 1).astype(ages.dtype),
            "max": jnp.max(ages),
        },
        **local_work(
            [LocalWork(algorithm.local, slots.steps, trained.lane_steps)], data, slots.ids
        ),
    )
