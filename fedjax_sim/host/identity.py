"""What identifies a run, so that a resume does not take another for it."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.files import replace_file
from fedjax_sim.core.types import Array, Cohort, FederatedState, PyTree, RoundContext
from fedjax_sim.execution.client import block_size
from fedjax_sim.host.checkpoints import Checkpoints, checksum
from fedjax_sim.host.fingerprint import traced
from fedjax_sim.results import to_json, versions
from fedjax_sim.sampling import as_arrays
from fedjax_sim.training.experiment import Experiment

_IDENTITY = "experiment.json"  # beside the checkpoints: what they are of
MORE_ROUNDS = (
    "more rounds are for a single run: a sweep's batch that is through keeps its tables, and no "
    "state to go on from"
)
# What a run may be given another of while it goes on, on conditions.
_MAY_CHANGE = ("num_rounds", "stop", "criterion")

# What each part of a program is called where another was run before.
_PARTS = {
    "sampler": "the sampler",
    "aggregation": "the aggregation rule",
    "algorithm": "the algorithm (its loss, optimizers, rates or another constant of it)",
    "evaluation": "what is evaluated (the measures or the test set)",
    "params": "how the first model is made",
    "function": "what the function computes",
}


def identity(experiment: Experiment, key: Array, state: FederatedState) -> dict[str, Any]:
    """What a resume of a run must find as it was, in values of JSON.

    Args:
      state: before round 0.
    """
    data = experiment.data
    return {
        "key": [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()],
        "num_rounds": experiment.num_rounds,
        "evaluate_every": experiment.evaluate_every,
        "local": experiment.algorithm.local._asdict(),
        "cohort": experiment.sampler.size,
        "nonfinite": experiment.nonfinite,
        "federation": checksum(*jax.tree.leaves(data)),
        "state": [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(state)],
        "first_params": checksum(*jax.tree.leaves(state.params)),
        "program": program(lambda key: experiment._replace(params=state.params), key),
        "versions": versions(),
    }


def program(
    make: Callable[..., Any], key: Array, hyper: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The checksums of an experiment's parts, and the names of those that have any.

    The parts are what a user gives. What the engine makes of them depends on the version of the
    package and on what else identifies a run, so that neither R nor the strategy nor the devices
    are in here; and one client's functions are traced, not a cohort's.

    Args:
      make: (key, **hyper) -> `fs.Experiment`, or a pytree of results.
      hyper: name -> a value of what is traced; with it, how the first model is made is a part,
        too, which a run compares by its numbers.
    """
    names: dict[str, str] = {}
    plain: dict[str, str] = {}
    known: list[Any] = []

    def parts(key: Array, round: Array, values: Mapping[str, Any]) -> dict[str, PyTree]:
        made = make(key, **values)
        if not isinstance(made, Experiment):
            return {"function": made}
        known.append(made.data)
        names.update(_names(made))
        plain["nonfinite"] = made.nonfinite
        state = _stand_in(jax.eval_shape(made.start, key))
        cohort = made.sampler.sample(key, round, made.data)
        found = {
            "sampler": cohort,
            "aggregation": _coefficients(made, _stand_in(cohort)),
            "algorithm": _client_and_server(made, key, replace(state, round=round)),
            "evaluation": None if made.evaluate is None else made.evaluate(state.params),
        }
        return found if hyper is None else found | {"params": made.begin(key)}

    first = jnp.int32(0)
    checksums = traced(parts, key, first, hyper or {}, known=known)
    return {"parts": checksums | plain, "names": names | plain}


def _names(experiment: Experiment) -> dict[str, str]:
    """The names of the sampler and the rule, where they have any."""
    functions = {
        "sampler": experiment.sampler.sample,
        "aggregation": experiment.aggregation,
    }
    names = {
        part: getattr(function, "__qualname__", "").split(".<locals>")[0]
        for part, function in functions.items()
    }
    return {part: name for part, name in names.items() if name.isidentifier()}


def _coefficients(experiment: Experiment, cohort: Cohort) -> Any:
    """The rule's, of any cohort that the sampler might draw."""
    data = experiment.data
    cohort, _, reports = as_arrays(cohort, data.num_clients, stateful=False)
    weights = data.client_weights[cohort.client_ids]
    return experiment.aggregation(cohort._replace(reports=reports), weights, data.client_weights)


def _client_and_server(experiment: Experiment, key: Array, state: FederatedState) -> PyTree:
    """One client's phases on one block, and the server's step."""
    algorithm, data = experiment.algorithm, experiment.data
    size = block_size(algorithm.local, data)
    block = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), data.examples
    )
    # A value of its own tells one number from another in the checksum.
    behind_the_state = 1 + len(jax.tree.leaves(state))
    batch, mask = _stand_in(block, first=behind_the_state), jnp.ones(size, bool)
    num_examples, num_steps, num_reporting = jnp.int32(2), jnp.int32(3), jnp.int32(4)
    message = algorithm.broadcast(state.server, state.round)
    one: Any = jnp.ones((), jnp.result_type(float))
    total: PyTree = ()
    client: PyTree
    if algorithm.pooled_gradient is not None and experiment.nonfinite == "keep":
        keys = jax.random.split(key, size)
        client = algorithm.pooled_gradient(message, batch, one * mask, keys)
        update = client[0]
    else:
        own, phases = jax.tree.map(lambda x: x[0], state.clients), algorithm.client
        probed = () if phases.probe is None else phases.probe(message, own, batch, mask)
        carry = phases.init(message, own, probed, key)
        stepped, metrics = phases.step(carry, message, own, batch, mask, key)
        output = phases.finish(stepped, message, own, num_examples, num_steps, key)
        client = carry, metrics, output
        update, total = output.update, output.total
    context = RoundContext(state.round, data.num_clients, num_reporting, 2 * one, 3 * one)
    return client, algorithm.server_update(state.server, update, total, context)


def _stand_in(shapes: PyTree, first: int = 1) -> PyTree:
    """Arrays of such shapes, each filled with a number of its own, counted from `first`.

    What is computed of them does not matter, and what they are is part of a checksum: with equal
    numbers, a loss that swaps features and targets of one shape would have the checksum of
    the other.
    """
    leaves, structure = jax.tree.flatten(shapes)

    def filled(x: Any, number: int) -> Array:
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            # Eight bits hold no more than 127, and a boolean one of two.
            values = 2 if x.dtype == bool else 128 if x.dtype.itemsize == 1 else number + 1
            return jnp.full(x.shape, number % values, x.dtype)
        bits = jax.eval_shape(jax.random.key_data, x)
        return jax.random.wrap_key_data(
            jnp.full(bits.shape, number, bits.dtype), impl=jax.random.key_impl(x)
        )

    return jax.tree.unflatten(
        structure, [filled(x, first + place) for place, x in enumerate(leaves)]
    )


def differences(there: Any, here: Any, name: str = "") -> str:
    """What differs between two JSON values, in words; "" if nothing does."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = dict.fromkeys([*there, *here])
        parts = [
            differences(there.get(k), here.get(k), f"{name}.{k}" if name else k) for k in names
        ]
        return "; ".join(part for part in parts if part)
    return (
        "" if there == here else f"{name} is {json.dumps(there)} there and {json.dumps(here)} here"
    )


def program_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs between two programs, by the names of parts where they have any."""
    said = []
    for part in dict.fromkeys([*there["parts"], *here["parts"]]):
        if there["parts"].get(part) != here["parts"].get(part):
            names = [names.get(part) for names in (there["names"], here["names"])]
            called = None not in names and names[0] != names[1]
            said.append(
                f"{part} is {names[0]} there and {names[1]} here" if called
                else f"{_PARTS.get(part, part)} differs"
            )  # fmt: skip
    return f"the traced program differs: {', '.join(said)}" if said else ""


def open_checkpoints(
    folder: Path,
    identity: Mapping[str, Any],
    resume: bool,
    rounds_met: Callable[[Checkpoints], Sequence[int]] = lambda _: (),
) -> Checkpoints:
    """The folder's checkpoints, after comparing what they are of with what is to run.

    Args:
      rounds_met: those of the rounds done that meet the stop criterion of what is to run.

    Raises:
      ValueError: if there are some and `resume` is False, or they are of something else.
      OSError: if the folder cannot be written.
    """
    checkpoints = Checkpoints(folder / "checkpoints")
    path = folder / _IDENTITY
    text = to_json(identity)
    if path.exists():
        if not resume:
            raise ValueError(
                f"out {folder} holds an experiment already; resume it, or name another folder"
            )
        there, here = json.loads(path.read_text()), json.loads(text)
        if differs := another(there, here):
            raise ValueError(
                f"out {folder} holds another experiment and cannot be resumed: {differs}"
            )
        if "num_rounds" in here:
            check_rounds_done(folder, here["num_rounds"], here["evaluate_every"])
        if differs := _met_before(there, here, checkpoints, rounds_met):
            raise ValueError(f"out {folder} cannot be resumed: {differs}")
        if "program" in here and there.get("program") is None:
            warn_of_no_program(folder)
            here["program"] = None  # what is there may be of another
        if any(there.get(name) != here.get(name) for name in _MAY_CHANGE):
            replace_file(path, lambda file: file.write(to_json(here)))
    else:
        if checkpoints.numbers():
            raise ValueError(
                f"out {folder} holds checkpoints and no {_IDENTITY} that says of what; name "
                "another folder, or remove them"
            )
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(text))
    return checkpoints


def another(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What makes what is there another experiment, in words; "" if nothing does.

    What is known to differ makes another program, too, which is told only where nothing else is.
    """
    fixed = [_fixed(there), _fixed(here)]
    programs = there.get("program"), here.get("program")
    differs = differences(fixed[0], fixed[1])
    if not differs and programs[0] is not None and programs[1] is not None:
        differs = program_differences(programs[0], programs[1])
    rounds = there.get("num_rounds"), here.get("num_rounds")
    if rounds[0] == rounds[1]:
        return differs
    of_rounds = differences({"num_rounds": rounds[0]}, {"num_rounds": rounds[1]})
    if differs:
        return (
            f"{of_rounds}; {differs}. More rounds need all else to be as it was: what depends on "
            "the number of rounds, as a schedule may, must be given the earlier one"
        )
    if None in programs:
        return (
            f"{of_rounds}; it was saved by a version that kept no checksum of the program, so it "
            "is not known whether anything in it depends on the number of rounds"
        )
    return ""


def _fixed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same to the letter."""
    fixed = {k: v for k, v in identity.items() if k not in (*_MAY_CHANGE, "program")}
    configuration = dict(fixed.get("configuration", {}))
    asked, rounds = configuration.get("rounds"), identity.get("num_rounds")
    # The command line's label says R again; of a baseline, those that its run was to have.
    if isinstance(asked, int) and isinstance(rounds, int) and asked >= rounds:
        del configuration["rounds"]
    return {**fixed, "configuration": configuration}


def check_rounds_done(folder: Path, num_rounds: int, evaluate_every: int) -> None:
    """Refuses to end a run before the rounds that are done, or in the middle of what is evaluated.

    Args:
      folder: of a run, which may have none yet.

    Raises:
      ValueError: saying how many are done.
    """
    path = folder / _IDENTITY
    before = json.loads(path.read_text()).get("num_rounds") if path.exists() else None
    if before in (None, num_rounds):
        return
    done = max(Checkpoints(folder / "checkpoints").numbers(), default=0)
    if done > num_rounds:
        raise ValueError(
            f"num_rounds must be at least the {done} that are done in out {folder}; got "
            f"{num_rounds}"
        )
    if done == num_rounds < before and num_rounds % evaluate_every:
        raise ValueError(
            f"num_rounds must be more than the {done} that are done in out {folder}, the last of "
            f"them without the evaluation that a last round has; got {num_rounds}"
        )


def _met_before(
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    checkpoints: Checkpoints,
    rounds_met: Callable[[Checkpoints], Sequence[int]],
) -> str:
    """Why it cannot end by another criterion than before, in words.

    A run that had none may be given one: no round is taken back.
    """
    names = there.get("stop"), here.get("stop")
    same = there.get("criterion", here.get("criterion")) == here.get("criterion")
    if None in names or (names[0] == names[1] and same):
        return ""
    done = max(checkpoints.numbers(), default=0)
    earlier = [round for round in rounds_met(checkpoints) if round < done]
    if not earlier:
        return ""
    return (
        f"{differences({'stop': names[0]}, {'stop': names[1]}) or 'stop differs'}, which round "
        f"{earlier[0]} of the {done} done had met"
    )


def warn_of_no_program(folder: Path) -> None:
    """Of what was saved before programs were compared."""
    warnings.warn(
        f"out {folder} was saved by a version that kept no checksum of the program; whether the "
        "rule, the sampler, the algorithm and its constants are the same could not be compared",
        stacklevel=3,
    )
