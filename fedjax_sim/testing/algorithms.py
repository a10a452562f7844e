"""The contract of an algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.aggregation import all_clients, selected
from fedjax_sim.core.trees import num_bytes
from fedjax_sim.core.types import FederatedAlgorithm, LocalTraining, Params
from fedjax_sim.execution import vmapped
from fedjax_sim.testing.certificate import Certificate, largest_difference, same_bits
from fedjax_sim.testing.problem import (
    Problem,
    cases,
    empty_cases,
    linear_regression,
    other_padding,
    over_all,
    reversed_cohort,
)
from fedjax_sim.testing.rounds import ROUNDS, Rounds, strategies, values_of
from fedjax_sim.training.communication import communication
from fedjax_sim.training.round import make_round
from fedjax_sim.training.state import init

# (params, client ids, their examples, their weights) -> params, one round in NumPy
Reference = Callable[[Params, list[int], list[Any], np.ndarray], Params]

SHUFFLED = LocalTraining(epochs=2, batch_size=4)
FULL = LocalTraining(epochs=2, batch_size=None)


def check_algorithm(
    make: Callable[..., FederatedAlgorithm],
    problem: Problem | None = None,
    *,
    numbers: Mapping[str, Sequence[float]] | None = None,
    special_case: tuple[Mapping[str, float], Callable[..., FederatedAlgorithm]] | None = None,
    reference: Reference | None = None,
    tolerance: float = 1e-5,
    verbose: bool = True,
) -> Certificate:
    """Checks an algorithm against the contract, on a small ragged federation.

    Of two rounds on each of some cohorts (a client alone, padding, dropouts, stragglers, clients of
    one example and of none): packed and sharded give what vmapped gives; a mask over all K clients
    gives what the gathered cohort gives; the order of a cohort changes rounding alone, and what
    stands in padding nothing; the same key gives the same bits, also from a state that was on the
    host in between; a round in which nobody reports keeps the state
    (the clients' alone if the server `acts_when_empty`); all of this is traced once;
    `all_clients` is `w + (n_V / n) (selected - w)`, or is refused. The bytes that travel, and those
    that a client keeps, are told.

    Args:
      make: (loss_fn, local, **numbers) -> algorithm.
      problem: None for `linear_regression()`.
      numbers: the algorithm's own, by name, with values: a sweep of them under `vmap`, compiled
        once, gives what one by one they give.
      special_case: (numbers, (loss_fn, local) -> algorithm): with these, it is that simpler one.
      reference: a round in NumPy, (params, ids, examples of each, weights of each) -> params, with
        two epochs of full batches. It may keep what it likes between rounds, of which there are 5.
      tolerance: of the largest difference of a leaf, over the larger of 1 and its largest value.
      verbose: print each line as it is known.

    Returns:
      `Certificate`.

    Raises:
      ContractError: with the smallest case that fails.
      ValueError: what `fs.init` and `fs.make_round` refuse.

    >>> import fedjax_sim as fs, optax
    >>> def make(loss_fn, local, mu=0.1):
    ...     return fs.fedprox(loss_fn, optax.sgd(0.02), local, mu)
    >>> def fedavg(loss_fn, local):
    ...     return fs.fedavg(loss_fn, optax.sgd(0.02), local)
    >>> certificate = fs.testing.check_algorithm(  # doctest: +SKIP
    ...     make, numbers={"mu": (0.0, 0.1, 1.0)}, special_case=({"mu": 0.0}, fedavg))
    """
    problem = linear_regression() if problem is None else problem
    algorithm = make(problem.loss_fn, SHUFFLED)
    certificate = Certificate(getattr(make, "__name__", "algorithm"), verbose, tolerance)
    base = Rounds(algorithm, problem)
    _check_cohorts(certificate, algorithm, problem, base)
    _check_seeds(certificate, problem, base)
    _check_empty(certificate, algorithm, problem, base)
    if base.traces != 1:
        raise certificate.fails(
            "one trace for all cohorts", f"{base.traces} traces", "a state changes its types"
        )
    certificate.holds("one trace for all cohorts and rounds")
    _check_modes(certificate, algorithm, problem, base)
    if numbers:
        _check_sweep(certificate, make, problem, numbers)
    if special_case is not None:
        _check_special_case(certificate, make, problem, special_case)
    if reference is not None:
        _check_reference(certificate, make, problem, reference)
    _check_strategies(certificate, algorithm, problem, base)
    kept = jax.eval_shape(algorithm.init_client, problem.params)
    certificate.holds(
        f"{communication(algorithm, problem.params, problem.data)}; a client keeps "
        f"{num_bytes(kept)} bytes"
    )
    return certificate


def _check_strategies(
    certificate: Certificate,
    algorithm: FederatedAlgorithm,
    problem: Problem,
    base: Rounds,
) -> None:
    names, largest = list(strategies()), 0.0
    for name in names[1:]:
        other = Rounds(algorithm, problem, strategy=strategies()[name])
        for case in cases(problem.data):
            cohorts = [case.cohort] * ROUNDS
            pair = values_of(other.after(cohorts)), values_of(base.after(cohorts))
            difference = certificate.same(f"{name} == {names[0]}", case.name, *pair)
            largest = max(largest, difference)
    certificate.holds(f"{' == '.join(names)}, to {largest:.1g}")


def _check_cohorts(
    certificate: Certificate,
    algorithm: FederatedAlgorithm,
    problem: Problem,
    base: Rounds,
) -> None:
    everyone = Rounds(algorithm, problem)
    for case in cases(problem.data):
        expected = values_of(base.after([case.cohort] * ROUNDS))
        backwards = reversed_cohort(case.cohort)
        for law, state in {
            "the order of a cohort changes rounding alone": base.after([backwards] * ROUNDS),
            "a mask over all K gives what the cohort gives": everyone.after(
                [over_all(case.cohort, problem.data.num_clients)] * ROUNDS
            ),
        }.items():
            certificate.same(law, case.name, values_of(state), expected)
        padded = base.after([other_padding(case.cohort, problem.data)] * ROUNDS)
        if not same_bits(values_of(padded), expected):
            difference, leaf = largest_difference(values_of(padded), expected)
            raise certificate.fails(
                "padding changes nothing", case.name, f"{leaf} differs by {difference:.2g}"
            )
    certificate.holds(
        "a mask over all K, the order of a cohort, and padding change nothing but rounding"
    )


def _check_seeds(certificate: Certificate, problem: Problem, base: Rounds) -> None:
    for case in cases(problem.data):
        once = base.after([case.cohort] * ROUNDS)
        half = jax.device_get(base.after([case.cohort]))
        on_device = jax.tree.map(jnp.asarray, half)
        if not same_bits(values_of(base.after([case.cohort] * ROUNDS)), values_of(once)):
            raise certificate.fails("same key, same bits", case.name, "two calls differ")
        if not same_bits(values_of(base.after([case.cohort], on_device)), values_of(once)):
            raise certificate.fails(
                "resumed == uninterrupted", case.name, "a state that was on the host goes elsewhere"
            )
    certificate.holds("same key, same bits; resumed == uninterrupted")


def _check_empty(
    certificate: Certificate, algorithm: FederatedAlgorithm, problem: Problem, base: Rounds
) -> None:
    (first, *_) = cases(problem.data)
    before = base.after([first.cohort])
    for case in empty_cases(problem.data):
        after = base.after([case.cohort], before)
        server = () if algorithm.acts_when_empty else after.server
        expected = () if algorithm.acts_when_empty else before.server
        if not same_bits((server, after.clients), (expected, before.clients)):
            raise certificate.fails("an empty round keeps the state", case.name, "it changes")
    whose = "the clients' states" if algorithm.acts_when_empty else "the state"
    certificate.holds(f"an empty round keeps {whose}")


def _check_modes(
    certificate: Certificate,
    algorithm: FederatedAlgorithm,
    problem: Problem,
    base: Rounds,
) -> None:
    sizes = np.asarray(problem.data.num_examples)
    weights = np.asarray(problem.data.client_weights, np.float64)
    try:
        other = Rounds(algorithm, problem, all_clients)
        states = [other.after([case.cohort]) for case in cases(problem.data)]
    except ValueError as error:
        certificate.holds(f"refuses all_clients: {error}")
        return
    for case, everyone in zip(cases(problem.data), states, strict=True):
        counted = np.asarray(case.cohort.mask) & np.asarray(case.cohort.reports)
        ids = [k for k in np.asarray(case.cohort.client_ids)[counted] if sizes[k]]
        share = weights[ids].sum() / weights.sum()
        chosen = base.after([case.cohort]).params
        expected = jax.tree.map(
            lambda w, x, share=share: w + np.float32(share) * (np.asarray(x) - w),
            base.start.params,
            chosen,
        )
        law = "all_clients == w + (n_V / n) (selected - w)"
        where = f"{case.name}, with n_V / n = {share:.3g}"
        certificate.same(law, where, everyone.params, expected)
    certificate.holds("all_clients == w + (n_V / n) (selected - w)")


def _check_sweep(
    certificate: Certificate,
    make: Callable[..., FederatedAlgorithm],
    problem: Problem,
    numbers: Mapping[str, Sequence[float]],
) -> None:
    first = {name: values[0] for name, values in numbers.items()}
    grid = [first | {name: value} for name, values in numbers.items() for value in values]
    cohort = cases(problem.data)[-1].cohort
    traces = []

    def end(values: Mapping[str, Any]) -> Params:
        traces.append(1)
        algorithm = make(problem.loss_fn, SHUFFLED, **values)
        round_fn = make_round(algorithm, selected, vmapped())
        state = init(algorithm, problem.params, problem.data)
        for _ in range(ROUNDS):
            state, _ = round_fn(jax.random.key(0), state, problem.data, cohort)
        return state.params

    columns = {name: jnp.array([x[name] for x in grid], jnp.float32) for name in numbers}
    swept = jax.jit(jax.vmap(end))(columns)
    single = jax.jit(end)
    for place, values in enumerate(grid):
        alone = single({name: jnp.float32(value) for name, value in values.items()})
        of_sweep = jax.tree.map(lambda x, place=place: x[place], swept)
        law = "a sweep under vmap == its configurations one by one"
        certificate.same(law, f"{values}", of_sweep, alone)
    if len(traces) != 2:
        raise certificate.fails(
            "one trace for all configurations", f"{len(grid)} of them", f"{len(traces)} traces"
        )
    certificate.holds(
        f"a sweep of {', '.join(numbers)} is traced once and == its configurations one by one"
    )


def _check_special_case(
    certificate: Certificate,
    make: Callable[..., FederatedAlgorithm],
    problem: Problem,
    special_case: tuple[Mapping[str, float], Callable[..., FederatedAlgorithm]],
) -> None:
    values, simpler = special_case
    own = Rounds(make(problem.loss_fn, SHUFFLED, **values), problem)
    plain = Rounds(simpler(problem.loss_fn, SHUFFLED), problem)
    settings = ", ".join(f"{name} = {value:g}" for name, value in values.items())
    law = f"with {settings} it is {getattr(simpler, '__name__', 'the simpler algorithm')}"
    for case in cases(problem.data):
        cohorts = [case.cohort] * ROUNDS
        certificate.same(law, case.name, own.after(cohorts).params, plain.after(cohorts).params)
    certificate.holds(law)


def _check_reference(
    certificate: Certificate,
    make: Callable[..., FederatedAlgorithm],
    problem: Problem,
    reference: Reference,
) -> None:
    own, data = Rounds(make(problem.loss_fn, FULL), problem), problem.data
    starts, sizes = np.asarray(data.offsets), np.asarray(data.num_examples)
    weights = np.asarray(data.client_weights, np.float64)
    non_empty = [int(k) for k in np.flatnonzero(sizes)]
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), problem.params)
    ragged = next(case for case in cases(data)[::-1] if "ragged" in case.name)
    state = own.start
    for number in range(5):
        # Another few of the clients that have examples each round, in the slots of one cohort.
        ids = [
            non_empty[(number + i) % len(non_empty)]
            for i in range(int(np.sum(np.asarray(ragged.cohort.mask))))
        ]
        fill = [ids[0]] * (len(ragged.cohort.client_ids) - len(ids))
        cohort = ragged.cohort._replace(client_ids=jnp.array(ids + fill, jnp.int32))
        state = own.after([cohort], state)
        examples = [
            jax.tree.map(
                lambda x, k=k: np.asarray(x[starts[k] : starts[k] + sizes[k]], np.float64),
                data.examples,
            )
            for k in ids
        ]
        expected = reference(expected, ids, examples, weights[ids])
        certificate.same(
            "it is the reference", f"round {number}, clients {ids}", state.params, expected
        )
    certificate.holds(f"five rounds are the reference's, to {certificate.tolerance:g}")
