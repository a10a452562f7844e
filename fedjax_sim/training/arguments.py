"""Checks of the arguments of `make_round`: algorithm, rule and strategy."""

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from fedjax_sim import aggregation
from fedjax_sim import execution as strategies
from fedjax_sim.core.algorithm import as_algorithm
from fedjax_sim.core.checks import check_not_a_name, check_takes
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import Declaration, declared
from fedjax_sim.core.types import (
    AggregationRule,
    Array,
    Coefficients,
    Cohort,
    Exchange,
    FederatedAlgorithm,
)
from fedjax_sim.execution.strategy import Strategy, as_strategy
from fedjax_sim.transforms.asynchronous.refusals import checked_around

_IMAGINED = (2, 50, 1000)  # clients of whom a rule is asked before there is a cohort


# What the functions of an algorithm and of its clients are given, as their types say.
_OF_AN_ALGORITHM = {
    "init": ("params",),
    "params": ("server",),
    "init_client": ("params",),
    "broadcast": ("server", "round"),
    "server_update": ("server", "update", "total", "context"),
}
_OF_A_CLIENT = {
    "init": ("message", "client_state", "probed", "key"),
    "step": ("carry", "message", "client_state", "batch", "mask", "key"),
    "finish": ("carry", "message", "client_state", "num_examples", "num_steps", "key"),
}


def check_algorithm(algorithm: Any) -> FederatedAlgorithm:
    """The algorithm with Python integers; refuses a value that is no algorithm.

    Raises:
      ValueError: saying what was given.
    """
    algorithm = as_algorithm(algorithm)
    if not isinstance(algorithm.acts_when_empty, bool):
        raise ValueError(
            f"acts_when_empty must be True or False; got {algorithm.acts_when_empty!r}"
        )
    for name, arguments in _OF_AN_ALGORITHM.items():
        check_takes(name, getattr(algorithm, name), *arguments)
    for exchange in algorithm.exchanges:
        for name, arguments in _OF_A_CLIENT.items():
            check_takes(f"client.{name}", getattr(exchange.client, name), *arguments)
    for name, takes in (("wire", ("update", "total")), ("message_wire", ("message",))):
        wire = getattr(algorithm, name)
        if wire is not None:
            if not callable(wire):
                raise ValueError(f"{name} must be a function, or None; got {wire!r}")
            check_takes(name, wire, *takes)
    if not isinstance(algorithm.to_all, bool):
        raise ValueError(f"to_all must be True or False; got {algorithm.to_all!r}")
    for exchange in algorithm.earlier:
        if not isinstance(exchange, Exchange):
            raise ValueError(
                f"earlier must be exchanges, fs.Exchange(...); got {type(exchange).__name__}"
            )
    return checked_around(algorithm)._replace(
        local=check_local(algorithm.local),
        earlier=tuple(x._replace(local=check_local(x.local)) for x in algorithm.earlier),
    )


def check_rule(rule: Any) -> None:
    """Refuses a value that is no aggregation rule, as a factory that must be called first.

    Raises:
      ValueError: saying what was given and what is allowed.
    """
    # A declared function that has not the parameters of a rule makes one when it is called.
    factories = {
        name: declaration
        for name, declaration in declared(aggregation).items()
        if not declaration.takes("cohort")
    }
    calls = {name: f"fs.aggregation.{name}({_owed(x)})" for name, x in factories.items()}
    _check_choice(
        "aggregation",
        rule,
        "fs.aggregation." + ", .".join(aggregation.RULES),
        {name: f"the function fs.aggregation.{name}" for name in aggregation.RULES} | calls,
    )
    for name, declaration in factories.items():
        if rule is declaration.factory:
            raise ValueError(
                f"aggregation must be a rule; got fs.aggregation.{name} itself: call it, "
                f"{calls[name]}"
            )
    check_takes("aggregation", rule, "cohort", "client_weights", "all_client_weights")


def _owed(declaration: Declaration) -> str:
    """The parameters of a factory that have no default, as a call lists them."""
    parameters = declaration.parameters.values()
    return ", ".join(x.name for x in parameters if x.default is x.empty)


def check_follows(algorithm: FederatedAlgorithm, rule: AggregationRule) -> None:
    """Refuses a rule that the algorithm cannot follow; computes nothing.

    The rule is asked of two clients, and where it cannot answer for so few, as Krum, of more. One
    that cannot answer at all is asked again in the round.

    Raises:
      ValueError: from the algorithm's `check_rule`.
    """
    if algorithm.check_rule is None:
        return
    answers = list[Coefficients]()

    def ask(slots: int) -> None:
        answers.append(imagined_answer(rule, slots, num_clients=slots + 1))

    for slots in _IMAGINED:
        try:
            jax.eval_shape(partial(ask, slots))
        except (
            Exception
        ):  # whatever a rule of the user's own raises of a cohort that is none of its
            continue
        algorithm.check_rule(answers[0])
        return


def imagined_answer(rule: AggregationRule, slots: int, num_clients: int) -> Coefficients:
    """What a rule says of so many imagined clients that all report; for `jax.eval_shape`."""
    ones = jnp.ones(slots)
    cohort = Cohort(jnp.arange(slots), ones > 0, ones > 0, inclusion=ones, work=ones)
    return ask_rule(rule, cohort, ones, jnp.ones(num_clients))


def check_needs_no_inclusion(rule: AggregationRule) -> None:
    """Refuses a rule that must know how probable it was that a client takes part.

    It is asked of two clients of three.

    Raises:
      ValueError: naming the rules that need not know it.
    """

    def answers(inclusion: Array | None) -> bool:
        ones = jnp.ones(2)
        cohort = Cohort(jnp.arange(2), ones > 0, ones > 0, inclusion=inclusion)
        try:
            jax.eval_shape(lambda: ask_rule(rule, cohort, ones, jnp.ones(3))[:2])
        except (
            Exception
        ):  # whatever a rule of the user's own raises of a cohort that is none of its
            return False
        return True

    if answers(jnp.ones(2)) and not answers(None):
        raise ValueError(
            "aggregation must be a rule that needs no inclusion probabilities in asynchronous "
            "rounds, as fs.aggregation.selected, .uniform or .all_clients, because who arrives "
            f"first is decided by who is fast; got {getattr(rule, '__name__', 'another')}"
        )


def ask_rule(
    rule: AggregationRule, cohort: Cohort, client_weights: Array, all_client_weights: Array
) -> Coefficients:
    """Calls the rule; returns its coefficients as checked arrays, with each client's fixed share.

    Raises:
      ValueError: naming what a rule must return, and what it returned.
    """
    answer: Any = rule(cohort, client_weights, all_client_weights)
    if not isinstance(answer, tuple) or not 2 <= len(answer) <= 6:
        raise ValueError(
            "aggregation must return (weights[m], denominator or None), or fs.Coefficients; got "
            f"{type(answer).__name__}"
        )
    coefficients = Coefficients(*answer)
    combine = coefficients.combine
    if combine is not None:
        if not callable(combine):
            raise ValueError(f"combine must be a function of the updates, or None; got {combine!r}")
        check_takes("combine", combine, "updates", "weights", "counted", "key")
    weights, denominator, shares, num_receivers = (
        None if x is None else jnp.asarray(x) for x in coefficients[:4]
    )
    number = len(client_weights)
    for name, value in (("weights", weights), ("shares", shares)):
        if (value is not None or name == "weights") and (value is None or value.shape != (number,)):
            raise ValueError(
                f"aggregation must return {name} for each of the {number} slots; "
                f"got shape {() if value is None else value.shape}"
            )
    if shares is None:
        shares = client_weights / jnp.sum(all_client_weights)
    return Coefficients(
        cast(Array, weights), denominator, shares, num_receivers, combine, coefficients.by_weight
    )


def check_strategy(execution: Any) -> Strategy:
    """The given strategy, or the default one; refuses a value that is no strategy.

    Raises:
      ValueError: saying what was given and what is allowed.
    """
    execution = strategies.automatic() if execution is None else execution
    factories = {name: declaration.factory for name, declaration in declared(strategies).items()}
    _check_choice(
        "execution",
        execution,
        "fs.execution.vmapped(), .packed(lanes), .sharded(mesh)",
        {name: f"fs.execution.{name}(...)" for name in factories},
    )
    for factory_name, factory in factories.items():
        if execution is factory:
            name = f"fs.execution.{factory_name}"
            raise ValueError(f"execution must be a strategy; got {name} itself: call it, {name}()")
    return as_strategy(execution)


def _check_choice(name: str, value: Any, allowed: str, means: Mapping[str, str]) -> None:
    check_not_a_name(name, value, means)
    if not callable(value) or isinstance(value, type):
        raise ValueError(f"{name} must be one of {allowed}, or a function; got {value!r}")
