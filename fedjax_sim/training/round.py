"""One federated round as one pure function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from fedjax_sim.aggregation import selected
from fedjax_sim.core.checks import check_same_spec
from fedjax_sim.core.client_states import states_of, with_states
from fedjax_sim.core.clock import Clock, check_clock
from fedjax_sim.core.cohort import as_arrays
from fedjax_sim.core.history import RoundMetrics
from fedjax_sim.core.local_training import num_steps
from fedjax_sim.core.randomness import ATTACK, CLIENT, COMBINE, EXCHANGE, SERVER, check_key, stream
from fedjax_sim.core.tasks import Attack, Executed, Options, Tasks
from fedjax_sim.core.trees import first_of_each, power_of_two, where
from fedjax_sim.core.types import (
    AggregationRule,
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
from fedjax_sim.execution.client import Engine
from fedjax_sim.training.arguments import (
    ask_rule,
    check_algorithm,
    check_follows,
    check_rule,
    check_strategy,
)
from fedjax_sim.training.attacking import check_attackers, under_attack
from fedjax_sim.training.executing import execute
from fedjax_sim.training.reported import Average, Exchanged, Slots, is_empty, round_metrics
from fedjax_sim.training.state import check_state
from fedjax_sim.training.timing import on_time, own_steps

RoundFn = Callable[
    [Array, FederatedState, FederatedData, Cohort], tuple[FederatedState, RoundMetrics]
]


def make_round(
    algorithm: FederatedAlgorithm,
    aggregation: AggregationRule = selected,
    execution: Callable[..., Executed] | None = None,
    nonfinite: str = "keep",
    attack: Attack | None = None,
    malicious: Array | None = None,
    clock: Clock | None = None,
) -> RoundFn:
    """A pure function `round_fn(key, state, data, cohort) -> (state, metrics)`.

    Broadcast, local training of the cohort, aggregation, server update:

        w_{t+1} = server_update(w_t, sum_{k in V} a_k d_k / denominator)

    with V the clients that report. `jax.jit` makes it one XLA call, and without it each call
    traces and compiles for a second or more; vmap and scan go through. It folds `state.round` into
    `key`, so one base key serves a whole run. If nothing is aggregated (nobody reports, or all
    weights are zero) the whole server state stays, bit for bit, and only `round` advances.

    Args:
      algorithm: from `fs.fedavg` and its siblings.
      aggregation: a rule of `fs.aggregation`, or a function
        `(cohort, weights of the cohort [m], weights of all [K]) -> (a[m], denominator or None)`.
      execution: a strategy of `fs.execution`; None for `automatic()`.
      nonfinite: "keep" averages an update that holds a NaN or an infinity like any other;
        "drop" leaves its client out as if it had dropped out. Both count them in the
        metrics. A dropped client's NaN is still in the gradient of a round, whose derivative
        multiplies what was dropped by zero.
      attack: from `fs.attacks`, or a function (updates [m, ...], malicious [m], counted [m], keys
        [m]) -> updates: what malicious clients send, in every exchange, once it is decoded and
        before the rule. What else they send, totals, is what they trained.
      malicious: Bool[K], who attacks; may be traced.
      clock: how fast the K clients are, as `fs.clocks.lognormal` makes one: the metrics then have
        the round's simulated seconds, and a cohort may have a deadline. None keeps no time.

    Raises:
      ValueError: for an unknown rule, strategy or `nonfinite`, a rule that the algorithm cannot
        follow, an attack without malicious clients, or what is no clock; from round_fn, for a clock
        of other clients, a cohort that cannot be (if it is concrete) or has a deadline without a
        clock, the `unbiased` rule without inclusion probabilities, a state of another algorithm or
        federation, or an untyped key.

    >>> import fedjax_sim as fs, jax, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones(3), "y": np.ones(3)}] * 4)
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.5), fs.LocalTraining())
    >>> round_fn = jax.jit(fs.make_round(algorithm, aggregation=fs.aggregation.all_clients))
    >>> key, state = jax.random.key(0), fs.init(algorithm, 0.0, data)
    >>> cohort = fs.sampling.uniform(2).sample(key, state.round, data)
    >>> state, metrics = round_fn(key, state, data, cohort)
    >>> float(state.params)  # two of four clients went to 1, the others hold 0
    0.5
    """
    algorithm = check_algorithm(algorithm)
    check_rule(aggregation)
    check_follows(algorithm, aggregation)
    strategy = check_strategy(execution)
    attackers = check_attackers(attack, malicious)
    if nonfinite not in ("keep", "drop"):
        raise ValueError(f'nonfinite must be "keep" or "drop"; got {nonfinite!r}')
    if clock is not None:
        check_clock(clock)

    def round_fn(
        key: Array, state: FederatedState, data: FederatedData, cohort: Cohort
    ) -> tuple[FederatedState, RoundMetrics]:
        check_key(key)
        check_state(algorithm, state, data)
        slots = _who_reports(algorithm, state, data, cohort)
        slots, seconds = on_time(clock, algorithm, state.params, data, slots)
        coefficients = ask_rule(
            aggregation, slots.cohort, slots.client_weights, data.client_weights
        )
        if algorithm.check_rule is not None:
            algorithm.check_rule(coefficients)
        server, exchanged = state.server, list[Exchanged]()
        client_states = states_of(state.clients, slots.ids)
        for number, exchange in enumerate(algorithm.exchanges):
            last = number == len(algorithm.earlier)
            own_key = key if last else stream(key, EXCHANGE, number)
            rule = coefficients
            if exchange.aggregation is not None:
                rule = exchange.aggregation(coefficients)
            engine = Engine(
                exchange,
                data,
                stream(own_key, CLIENT, state.round),
                exchange.broadcast(server, state.round),
            )
            tasks, unit = _tasks(exchange, slots, rule, data)
            options = Options(
                drop_nonfinite=nonfinite == "drop",
                keep_updates=rule.combine is not None or attackers is not None,
            )
            executed = execute(strategy, engine, client_states, tasks, options)
            if attackers is not None:
                executed = under_attack(
                    attackers,
                    executed,
                    tasks,
                    stream(own_key, ATTACK, state.round),
                    num_clients=data.num_clients,
                    drops_nonfinite=options.drop_nonfinite,
                )
            average = _combine(
                key=own_key,
                round=state.round,
                num_clients=data.num_clients,
                coefficients=rule,
                tasks=tasks,
                unit=unit,
                executed=executed,
            )
            server = _server_update(
                exchange, server, average, executed, acts_when_empty=algorithm.acts_when_empty
            )
            exchanged.append(Exchanged(tasks.num_steps, executed, average))
            # In the next exchange, clients whose update did not count have their earlier state.
            client_states = (
                where(executed.counted, executed.client_states, client_states)
                if algorithm.earlier
                else executed.client_states
            )
        new_state = _advance(
            algorithm,
            state,
            server=server,
            client_states=client_states,
            ids=slots.ids,
            exchanged=exchanged,
            num_clients=data.num_clients,
        )
        metrics = round_metrics(algorithm, data, slots, coefficients, exchanged, seconds)
        return new_state, metrics

    return round_fn


def _who_reports(
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


def _tasks(
    exchange: Exchange, slots: Slots, coefficients: Coefficients, data: FederatedData
) -> tuple[Tasks, Array]:
    """The slots' tasks, and the power of two by which their weights a_k are multiplied.

    The factor keeps products of tiny weights in range, and changes no bit of the average.
    """
    reports, steps = slots.steps > 0, own_steps(exchange, slots, data)
    unit = power_of_two(jnp.where(reports, coefficients.weights, 0))
    weights = coefficients.weights * unit
    return Tasks(slots.ids, steps, weights, cast(Array, coefficients.shares)), unit


def _combine(
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
    denominator = coefficients.denominator
    denominator = weight_sum if denominator is None else denominator * unit
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


def _server_update(
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


def _advance(
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
