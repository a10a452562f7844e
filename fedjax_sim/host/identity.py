"""The values that identify a run, by which a resume recognises it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.asynchrony import Asynchrony
from fedjax_sim.core.cohort import as_arrays
from fedjax_sim.core.evaluate import subject_of
from fedjax_sim.core.files import fingerprint
from fedjax_sim.core.randomness import is_key
from fedjax_sim.core.trees import shapes_with
from fedjax_sim.core.types import (
    Array,
    Coefficients,
    Cohort,
    Exchange,
    FederatedAlgorithm,
    FederatedState,
    PyTree,
    RoundContext,
)
from fedjax_sim.core.versions import versions
from fedjax_sim.data import FederatedData, Source
from fedjax_sim.data.checks import path_name
from fedjax_sim.execution.client import block_size
from fedjax_sim.host.checkpoints import checksum
from fedjax_sim.host.fingerprint import traced
from fedjax_sim.host.planning import staged
from fedjax_sim.training.experiment import Experiment


def identity(experiment: Experiment, key: Array, state: FederatedState) -> dict[str, Any]:
    """What a resume of a run must find as it was, in values of JSON.

    Args:
      state: before round 0.
    """
    return {
        "key": [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()],
        "num_rounds": experiment.num_rounds,
        "evaluate_every": experiment.evaluate_every,
        **local_facts(experiment.algorithm),
        "cohort": experiment.sampler.size,
        "nonfinite": experiment.nonfinite,
        "federation": federation(experiment.data),
        "state": [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(state)],
        "first_params": checksum(*jax.tree.leaves(state.params)),
        "program": program(lambda key: experiment._replace(params=state.params), key),
        "versions": versions(),
    }


def federation(data: FederatedData | Source) -> Any:
    """The checksum of a federation; of a source those of what is known without reading it all."""
    if not isinstance(data, Source):
        return checksum(*jax.tree.leaves(data))
    spec = jax.tree_util.tree_flatten_with_path(data.spec)[0]
    return {
        "clients": len(data.num_examples),
        "num_examples": checksum(np.asarray(data.num_examples, np.int64)),
        "client_weights": checksum(data.client_weights),
        "client_names": data.client_names and fingerprint([*data.client_names]),
        "spec": [f"{path_name(path)} {x.dtype}{list(x.shape)}" for path, x in spec],
        "examples_of_three": checksum(*jax.tree.leaves(data.sample)),
        "identity": data.identity,
    }


def local_facts(algorithm: FederatedAlgorithm) -> dict[str, Any]:
    """The local training of an algorithm's clients, in all exchanges of a round."""
    earlier = [exchange.local._asdict() for exchange in algorithm.earlier]
    return {"local": algorithm.local._asdict(), **({"earlier": earlier} if earlier else {})}


def program(
    make: Callable[..., Any], key: Array, hyper: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The checksums of the parts of an experiment that a user gives, and the names of some.

    One client's functions are traced, and not the engine's round, because the engine is identified
    by the package's version. So R, the strategy and the devices are no part of the checksums.

    Args:
      make: (key, **hyper) -> `fs.Experiment`, or a pytree of results.
      hyper: name -> a value of each traced hyper-parameter. With it the function that makes the
        first model is a part, too; without, a run compares the model's numbers.
    """
    names: dict[str, str] = {}
    plain: dict[str, str] = {}
    compared_elsewhere: list[Any] = []

    def parts(key: Array, round: Array, values: Mapping[str, Any]) -> dict[str, PyTree]:
        experiment = make(key, **values)
        if not isinstance(experiment, Experiment):
            return {"function": experiment}
        compared_elsewhere.append(experiment.federation)
        names.update(_names(experiment))
        plain["nonfinite"] = experiment.nonfinite
        state = _stand_in(jax.eval_shape(experiment.start, key))
        data = staged(experiment.federation)
        cohort = experiment.sampler.draw(key, round, data, state.params)
        coefficients, combined = _aggregation(experiment, _stand_in(cohort), state, key)
        sees_all = combined is not None or experiment.attack is not None
        by_part = {
            "sampler": _as_saved(cohort),
            "aggregation": (coefficients, combined) if combined is not None else coefficients,
            "algorithm": _client_and_server(experiment, key, replace(state, round=round), sees_all),
            "evaluation": None
            if experiment.evaluate is None
            else experiment.evaluate(subject_of(experiment.evaluate, state)),
        }
        if experiment.attack is not None:  # nothing where there is none, as in older saved runs
            by_part["attack"] = (_attacked(experiment, state, key), experiment.malicious)
        if experiment.clock is not None:  # nothing for the default, so that saved runs still match
            by_part["clock"] = experiment.clock
        return by_part if hyper is None else by_part | {"params": experiment.begin(key)}

    first = jnp.int32(0)
    checksums = traced(parts, key, first, hyper or {}, known=compared_elsewhere)
    return {"parts": checksums | plain, "names": names | plain}


def _names(experiment: Experiment) -> dict[str, str]:
    """The names of the sampler and the rule, where they have any."""
    functions = {
        "sampler": experiment.sampler.sample,
        "aggregation": experiment.aggregation,
    }
    if experiment.attack is not None:
        functions["attack"] = experiment.attack
    names = {
        part: getattr(function, "__qualname__", "").split(".<locals>")[0]
        for part, function in functions.items()
    }
    return {part: name for part, name in names.items() if name.isidentifier()}


class _Numbers(NamedTuple):
    """The numbers of a rule: `Coefficients` without its function."""

    weights: Any
    denominator: Any
    shares: Any
    num_receivers: Any


class _WithoutDeadline(NamedTuple):
    """A `Cohort` of a sampler without deadlines."""

    client_ids: Any
    mask: Any
    reports: Any
    inclusion: Any
    work: Any


# A structure's checksum depends on its name, and those of saved runs were made with these.
_Numbers.__name__ = "Coefficients"
_WithoutDeadline.__name__ = "Cohort"


def _as_saved(cohort: Cohort) -> Any:
    """The cohort in the structure by which its checksum is known: of five fields, if they do."""
    return cohort if cohort.deadline is not None else _WithoutDeadline(*cohort[:5])


def _aggregation(
    experiment: Experiment, cohort: Cohort, state: FederatedState, key: Array
) -> tuple[Any, PyTree | None]:
    """The rule's coefficients for a stand-in cohort, and its `combine` of stand-in updates, or
    None."""
    data = experiment.federation
    cohort, _, reports = as_arrays(cohort, data.num_clients, stateful=False)
    client_weights = data.client_weights[cohort.client_ids]
    cohort = cohort._replace(reports=reports)
    answer = experiment.aggregation(cohort, client_weights, data.client_weights)
    if len(answer) == len(Coefficients._fields):
        answer = Coefficients(*answer)
    if not isinstance(answer, Coefficients):
        return answer, None
    numbers = _Numbers(*answer[:4])
    if answer.combine is None:
        return numbers, None
    last = experiment.algorithm.exchanges[-1]
    update = jax.eval_shape(lambda: _client(experiment, last, key, state, sees_all=True)[1])
    return numbers, _combined(answer, update, reports, key)


def _combined(rule: Coefficients, update: PyTree, reports: Array, key: Array) -> PyTree:
    """A rule's `combine` of stand-in updates of these shapes, one for each slot."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(reports), *x.shape), x.dtype), update)
    assert rule.combine is not None
    return rule.combine(_stand_in(shapes), rule.weights, reports, key)


def _attacked(experiment: Experiment, state: FederatedState, key: Array) -> PyTree:
    """What an attack makes of two stand-in updates, of which it sends the first."""
    last, attack = experiment.algorithm.exchanges[-1], experiment.attack
    assert attack is not None
    update = jax.eval_shape(lambda: _client(experiment, last, key, state, sees_all=True)[1])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), update)
    malicious = jnp.arange(2) < 1
    return attack(_stand_in(shapes), malicious, jnp.ones(2, bool), jax.random.split(key))


def _client_and_server(
    experiment: Experiment, key: Array, state: FederatedState, sees_all: bool
) -> PyTree:
    """For each exchange, one client's phases on one block, and the server's step.

    Args:
      sees_all: whether the rule combines all updates, for which every client trains.
    """
    algorithm, server, parts = experiment.algorithm, state.server, list[PyTree]()
    unit: Any = jnp.ones((), jnp.result_type(float))
    context = RoundContext(
        round=state.round,
        num_clients=experiment.federation.num_clients,
        num_reporting=jnp.int32(4),
        weight_sum=2 * unit,
        reporting_share=3 * unit,
        key=key,
        denominator=5 * unit,
        largest_weight=6 * unit,
    )
    for exchange in algorithm.exchanges:
        state_before, changed = replace(state, server=server), None
        if exchange.aggregation is not None:
            numbers = Coefficients(8 * unit[None], 9 * unit, 10 * unit[None], jnp.int32(11))
            changed = exchange.aggregation(numbers)
        combines = changed is not None and changed.combine is not None
        client, update, total = _client(
            experiment, exchange, key, state_before, sees_all or combines
        )
        server = exchange.server_update(server, update, total, context)
        parts += [client, server]
        if changed is not None:
            parts.append(changed[:4])
        if changed is not None and combines:
            parts.append(_combined(changed, update, jnp.ones(1, bool), key))
    if algorithm.acts_when_empty:  # nothing for the default, so that saved runs still match
        parts.append(7 * unit)
    if algorithm.asynchrony is not None:
        parts.append(_asynchrony(algorithm.asynchrony))
    return tuple(parts)


def _asynchrony(asynchrony: Asynchrony) -> PyTree:
    """Its numbers, and its factors of some ages."""
    buffer, concurrency, clock, staleness, mixes_models = asynchrony
    ages = jnp.arange(buffer, dtype=clock.step_seconds.dtype)
    numbers = jnp.array([buffer, concurrency, int(mixes_models)])
    return numbers, tuple(clock), staleness(ages), staleness(1 + ages)


def _client(
    experiment: Experiment,
    exchange: Exchange,
    key: Array,
    state: FederatedState,
    sees_all: bool,
) -> tuple[PyTree, PyTree, PyTree]:
    """One client's phases on one block; and the update and the total that it sends."""
    data = experiment.federation
    size = block_size(exchange.local, data)
    block = shapes_with(data.examples, size)
    # Different values let the checksum distinguish the arrays.
    behind_the_state = 1 + len(jax.tree.leaves(state))
    batch, mask = _stand_in(block, first=behind_the_state), jnp.ones(size, bool)
    num_examples, num_steps = jnp.int32(2), jnp.int32(3)
    message = exchange.broadcast(state.server, state.round)
    unit: Any = jnp.ones((), jnp.result_type(float))
    trains = sees_all or experiment.nonfinite != "keep"
    if exchange.pooled_gradient is not None and not trains:
        keys = jax.random.split(key, size)
        client = exchange.pooled_gradient(message, batch, unit * mask.astype(unit.dtype), keys)
        return client, client[0], ()
    client_state, phases = jax.tree.map(lambda x: x[0], state.clients), exchange.client
    probed = () if phases.probe is None else phases.probe(message, client_state, batch, mask)
    carry = phases.init(message, client_state, probed, key)
    stepped, metrics = phases.step(carry, message, client_state, batch, mask, key)
    output = phases.finish(stepped, message, client_state, num_examples, num_steps, key)
    return (carry, metrics, output), output.update, output.total


def _stand_in(shapes: PyTree, first: int = 1) -> PyTree:
    """Arrays of such shapes, each filled with a number of its own, counted from `first`.

    The results of computing with them do not matter, but the numbers are part of a checksum: were
    they equal, a loss that swaps features and targets of one shape would have the same checksum.
    """
    leaves, structure = jax.tree.flatten(shapes)

    def filled(x: Any, number: int) -> Array:
        if not is_key(x):
            # Numbers are cut to the range of the type: 8 bits, or a boolean.
            values = 2 if x.dtype == bool else 128 if x.dtype.itemsize == 1 else number + 1
            return jnp.full(x.shape, number % values, x.dtype)
        bits = jax.eval_shape(jax.random.key_data, x)
        return jax.random.wrap_key_data(
            jnp.full(bits.shape, number, bits.dtype), impl=jax.random.key_impl(x)
        )

    return jax.tree.unflatten(
        structure, [filled(x, first + place) for place, x in enumerate(leaves)]
    )
