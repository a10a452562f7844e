"""The contract of an aggregation rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim.algorithms import fedavg
from fedjax_sim.core.types import AggregationRule, LocalTraining
from fedjax_sim.data import FederatedData
from fedjax_sim.testing.certificate import Certificate, largest_difference, same_bits
from fedjax_sim.testing.problem import (
    Case,
    Problem,
    cases,
    empty_cases,
    other_padding,
    over_all,
    reversed_cohort,
)
from fedjax_sim.testing.rounds import Rounds, strategies, values_of

# (updates [m, d], weights [m], weights of all [K]) -> update [d], in NumPy
Reference = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def check_rule(
    rule: AggregationRule,
    *,
    reference: Reference | None = None,
    weights: np.ndarray | None = None,
    tolerance: float = 1e-5,
    verbose: bool = True,
) -> Certificate:
    """Checks an aggregation rule against the contract, on clients whose updates are known.

    Client k sends `y_k - w` exactly. On some cohorts (a client alone, padding, dropouts, clients
    without examples): all strategies give the same, whether the rule averages or must see all
    updates; a mask over all K gives what the gathered cohort gives; the order of a cohort changes
    rounding alone, and what stands in padding nothing; a round in which nobody reports keeps the
    model; all of this is traced once for a strategy.

    Args:
      rule: as `make_round` takes it.
      reference: (updates of those that report [m, d], their weights [m], all weights [K]) ->
        update [d], in NumPy.
      weights: Float[8], the clients'; None for 1 to 8.
      tolerance: of the largest difference, over the larger of 1 and the largest value.
      verbose: print each line as it is known.

    Returns:
      `Certificate`.

    Raises:
      ContractError: with the smallest case that fails.
      ValueError: what `fs.make_round` refuses.

    >>> import fedjax_sim as fs, numpy as np
    >>> certificate = fs.testing.check_rule(  # doctest: +SKIP
    ...     fs.aggregation.median(), reference=lambda d, n, all_n: np.median(d, axis=0))
    """
    problem = _known_updates(np.arange(1.0, 9.0) if weights is None else np.asarray(weights))
    sent = fedavg(problem.loss_fn, optax.sgd(1.0), LocalTraining(1, None))
    certificate = Certificate(getattr(rule, "__name__", "rule"), verbose, tolerance)
    rounds = {name: Rounds(sent, problem, rule, x) for name, x in strategies().items()}
    (first, base), *others = rounds.items()
    masked = Rounds(sent, problem, rule)
    for case in cases(problem.data):
        once = base.after([case.cohort])
        everyone = over_all(case.cohort, problem.data.num_clients)
        for law, state in {
            "the order of a cohort changes rounding alone": base.after(
                [reversed_cohort(case.cohort)]
            ),
            "a mask over all K gives what the cohort gives": masked.after([everyone]),
        }.items():
            certificate.same(law, case.name, state.params, once.params)
        padded = base.after([other_padding(case.cohort, problem.data)])
        if not same_bits(values_of(padded), values_of(once)):
            raise certificate.fails("padding changes nothing", case.name, "the model differs")
        if reference is not None:
            _check_reference(certificate, problem, case, once.params, reference)
    certificate.holds("a mask over all K, the order of a cohort and padding change nothing")
    if reference is not None:
        certificate.holds(f"the update is the reference's, to {tolerance:g}")
    for case in empty_cases(problem.data):
        if not same_bits(base.after([case.cohort]).params, base.start.params):
            raise certificate.fails("an empty round keeps the model", case.name, "it moves")
    certificate.holds("an empty round keeps the model")
    if base.traces != 1:
        raise certificate.fails("one trace for all cohorts", first, f"{base.traces} traces")
    certificate.holds("one trace for all cohorts")
    largest = 0.0
    for name, other in others:
        for case in cases(problem.data):
            expected = base.after([case.cohort]).params
            law, params = f"{name} == {first}", other.after([case.cohort]).params
            difference = certificate.same(law, case.name, params, expected)
            largest = max(largest, difference)
    certificate.holds(f"{' == '.join(rounds)}, to {largest:.1g}")
    return certificate


def _known_updates(weights: np.ndarray) -> Problem:
    """Clients whose update at rate 1 is `y_k - w`, two of whom agree; one has no example."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(8, 3)).astype(np.float32)
    y[5] = y[6]
    clients = [np.repeat(y[k : k + 1], 0 if k == 2 else 1 + k % 3, axis=0) for k in range(8)]

    def loss_fn(w: Any, batch: Any, key: Any) -> Any:
        return jnp.sum((w[None] - batch) ** 2, axis=1) / 2

    return Problem(loss_fn, np.zeros(3, np.float32), FederatedData.from_clients(clients, weights))


def _check_reference(
    certificate: Certificate,
    problem: Problem,
    case: Case,
    params: jax.Array,
    reference: Reference,
) -> None:
    data = problem.data
    counted = np.asarray(case.cohort.mask) & np.asarray(case.cohort.reports)
    counted &= np.asarray(case.cohort.work) >= 1  # of one step, of which no part is completed
    ids = [k for k in np.asarray(case.cohort.client_ids)[counted] if data.num_examples[k]]
    if not ids:
        return
    weights = np.asarray(data.client_weights, np.float64)
    updates = np.asarray(data.examples, np.float64)[np.asarray(data.offsets)[ids]]
    expected = reference(updates, weights[ids], weights)
    difference, _ = largest_difference(params, np.asarray(expected))
    if not difference <= certificate.tolerance:
        raise certificate.fails(
            "the update is the reference's",
            f"{case.name}, of clients {[int(k) for k in ids]}",
            f"{np.asarray(params)} in place of {np.asarray(expected)}",
        )
