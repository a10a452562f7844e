"""One federated round as one pure function."""

from __future__ import annotations

from collections.abc import Callable

from fedjax_sim.aggregation import selected
from fedjax_sim.core.client_states import states_of
from fedjax_sim.core.clock import Clock, check_clock
from fedjax_sim.core.history import RoundMetrics
from fedjax_sim.core.randomness import ATTACK, CLIENT, EXCHANGE, check_key, stream
from fedjax_sim.core.tasks import Attack, Executed, Options
from fedjax_sim.core.trees import where
from fedjax_sim.core.types import (
    AggregationRule,
    Array,
    Cohort,
    FederatedAlgorithm,
    FederatedState,
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
from fedjax_sim.training.asynchronous import make_asynchronous_round
from fedjax_sim.training.attacking import check_attackable, check_attackers, under_attack
from fedjax_sim.training.executing import execute
from fedjax_sim.training.phases import (
    advance,
    combine,
    server_update,
    tasks_of,
    who_reports,
)
from fedjax_sim.training.reported import Exchanged, round_metrics
from fedjax_sim.training.state import check_state
from fedjax_sim.training.timing import on_time

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
        before the rule. What else they send, totals, is what they trained; FedDyn and MIFA, whose
        totals are the updates once more, are refused.
      malicious: Bool[K], who attacks; may be traced.
      clock: how fast the K clients are, as `fs.clocks.lognormal` makes one: the metrics then have
        the round's simulated seconds, and a cohort may have a deadline. None keeps no time, and
        is what an algorithm of `fs.asynchronous` is given, which has its own.

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
    if algorithm.asynchrony is not None:
        if clock is not None:
            raise ValueError(
                "clock must be None for an asynchronous algorithm, which was given its own"
            )
        if attackers is not None:
            raise ValueError(
                "attack must be None for an asynchronous algorithm, because attackers who know "
                "each other's updates are of one cohort, and these come at different times"
            )
        return make_asynchronous_round(
            algorithm, algorithm.asynchrony, aggregation, strategy, nonfinite
        )

    def round_fn(
        key: Array, state: FederatedState, data: FederatedData, cohort: Cohort
    ) -> tuple[FederatedState, RoundMetrics]:
        check_key(key)
        check_state(algorithm, state, data)
        slots = who_reports(algorithm, state, data, cohort)
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
            tasks, unit = tasks_of(exchange, slots, rule, data)
            options = Options(
                drop_nonfinite=nonfinite == "drop",
                keep_updates=rule.combine is not None or attackers is not None,
            )
            executed = execute(strategy, engine, client_states, tasks, options)
            if attackers is not None:
                check_attackable(algorithm, executed.total)
                executed = under_attack(
                    attackers,
                    executed,
                    tasks,
                    stream(own_key, ATTACK, state.round),
                    num_clients=data.num_clients,
                    drops_nonfinite=options.drop_nonfinite,
                )
            average = combine(
                key=own_key,
                round=state.round,
                num_clients=data.num_clients,
                coefficients=rule,
                tasks=tasks,
                unit=unit,
                executed=executed,
            )
            server = server_update(
                exchange, server, average, executed, acts_when_empty=algorithm.acts_when_empty
            )
            exchanged.append(Exchanged(tasks.num_steps, executed, average))
            # In the next exchange, clients whose update did not count have their earlier state.
            client_states = (
                where(executed.counted, executed.client_states, client_states)
                if algorithm.earlier
                else executed.client_states
            )
        new_state = advance(
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
