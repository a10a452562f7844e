"""The contract of a way to run clients."""

from collections.abc import Callable
from typing import Any

import optax

from fedjax_sim.aggregation import all_clients, median, selected
from fedjax_sim.algorithms import fedavg, fedsgd, qfedavg, scaffold
from fedjax_sim.core.types import AggregationRule, FederatedAlgorithm, LocalTraining, LossFn
from fedjax_sim.testing.certificate import Certificate
from fedjax_sim.testing.problem import Problem, cases, empty_cases, linear_regression
from fedjax_sim.testing.rounds import ROUNDS, Rounds, values_of

_RATE = 0.02


def _kinds(loss_fn: LossFn) -> dict[str, FederatedAlgorithm]:
    """An algorithm for each thing that a strategy has to do."""
    blocks, full = LocalTraining(2, 4), LocalTraining(2, None)
    return {
        "FedAvg, shuffled blocks": fedavg(loss_fn, optax.sgd(_RATE), blocks),
        "FedAvg, full batches": fedavg(loss_fn, optax.sgd(_RATE), full),
        "SCAFFOLD, which keeps client states": scaffold(loss_fn, _RATE, blocks),
        "q-FedAvg, which probes": qfedavg(loss_fn, _RATE, blocks, 1.0),
        "FedSGD, of one pooled gradient": fedsgd(loss_fn, optax.sgd(_RATE)),
    }


def check_strategy(
    strategy: Callable[..., Any],
    problem: Problem | None = None,
    *,
    tolerance: float = 1e-5,
    verbose: bool = True,
) -> Certificate:
    """Checks a way to run clients against `vmapped()`, the simplest.

    Two rounds on each of some cohorts, of algorithms that keep states, probe, and have a pooled
    gradient, under `selected`, `all_clients` and, as it must then hand back the updates themselves,
    the median: models, server states and client states are the same but for rounding, an empty
    round keeps them, and one trace serves all cohorts.

    Args:
      strategy: as `make_round` takes it.
      problem: None for `linear_regression()`.
      tolerance: of the largest difference of a leaf, over the larger of 1 and its largest value.
      verbose: print each line as it is known.

    Returns:
      `Certificate`.

    Raises:
      ContractError: with the smallest case that fails.
      ValueError: what `fs.make_round` refuses.

    >>> import fedjax_sim as fs
    >>> certificate = fs.testing.check_strategy(fs.execution.packed(3))  # doctest: +SKIP
    """
    problem = linear_regression() if problem is None else problem
    certificate = Certificate(repr(strategy), verbose, tolerance)
    kinds = _kinds(problem.loss_fn)
    rules: dict[str, AggregationRule] = dict.fromkeys(kinds, selected)
    plain = next(iter(kinds))
    more: dict[str, AggregationRule] = {"all_clients": all_clients, "the median": median()}
    for rule_name, rule in more.items():
        name = f"{plain}, under {rule_name}"
        kinds[name], rules[name] = kinds[plain], rule
    for name, algorithm in kinds.items():
        own = Rounds(algorithm, problem, rules[name], strategy)
        simplest = Rounds(algorithm, problem, rules[name])
        largest = 0.0
        for case in [*cases(problem.data), *empty_cases(problem.data)]:
            cohorts = [case.cohort] * ROUNDS
            pair = values_of(own.after(cohorts)), values_of(simplest.after(cohorts))
            difference = certificate.same(f"{name} == vmapped()", case.name, *pair)
            largest = max(largest, difference)
        if own.traces != 1:
            raise certificate.fails("one trace for all cohorts", name, f"{own.traces} traces")
        certificate.holds(f"{name} == vmapped(), to {largest:.1g}; traced once")
    return certificate
