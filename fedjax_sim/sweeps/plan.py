"""Which configurations share a program, and how many of them run side by side."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import is_concrete
from fedjax_sim.core.history import Communication
from fedjax_sim.core.types import Array, FederatedState, PyTree
from fedjax_sim.execution.client import Engine
from fedjax_sim.execution.machine import cache_bytes, carry_bytes, platform_of
from fedjax_sim.execution.strategy import as_strategy
from fedjax_sim.grid import Grid
from fedjax_sim.host.checkpoints import checksum
from fedjax_sim.host.identity import local_facts
from fedjax_sim.host.keeping import Keep, keep_of
from fedjax_sim.results.columns import COLUMNS, LABELS, check_evaluated, names_of
from fedjax_sim.sweeps.checks import check_columns
from fedjax_sim.training.communication import communication
from fedjax_sim.training.experiment import Experiment

_MOST = 32  # configurations side by side on a CPU device; more gained nothing
_MOST_ELSEWHERE = 256  # on an accelerator: not measured
_MOST_OF_A_FUNCTION = 8  # where the model's size is not known


# For each device: a seed's index, and indices into the grid.
Batch = tuple[tuple[int, tuple[int, ...]], ...]


class Group(NamedTuple):
    """Configurations that share one program: the static values are the same.

    Attributes:
      static: name -> value, part of the program.
      traced: the names of what is an argument of it.
      indices: into the grid.
      side_by_side: configurations under one `vmap`.
      batches: each a call; padding repeats a run.
      num_rounds: R of its experiments; None for a function that returns results.
      exchange: the bytes of one exchange, where known.
      fold: whether the configuration's index is folded into the key.
      facts: what a resume shall find the same.
      keep: what is kept of its models; None for nothing.
    """

    static: dict[str, Any]
    traced: tuple[str, ...]
    indices: tuple[int, ...]
    side_by_side: int
    batches: tuple[Batch, ...]
    num_rounds: int | None
    exchange: Communication | None
    fold: bool
    facts: dict[str, Any]
    keep: Keep | None


def plan(
    experiment: Callable[..., Any],
    grid: Grid,
    keys: Array,
    devices: int,
    static: Sequence[str],
    opaque: bool,
    common: bool,
    side_by_side: int | list[int] | None,
    limit: float,
    keep_models: str | None = None,
    metric: str | None = None,
) -> list[Group]:
    """The groups, each with its batches; refuses what cannot be traced."""
    traced = tuple(
        name
        for name in grid.names
        if name not in static and _is_traced([one[name] for one in grid])
    )
    members: dict[Any, list[int]] = {}
    for i, one in enumerate(grid):
        fixed_values = [(k, type(v), v) for k, v in one.items() if k not in traced]
        members.setdefault(_hashable(fixed_values), []).append(i)
    groups = []
    for place, indices in enumerate(members.values()):
        first = grid.configurations[indices[0]]
        fixed = {name: value for name, value in first.items() if name not in traced}
        shapes = _check_traces(experiment, first, traced, keys[0], opaque)
        num_rounds, exchange, most = None, None, _MOST_OF_A_FUNCTION
        facts: dict[str, Any] = {}
        keep: Keep | None = None
        if opaque:
            check_columns(grid, _of_a_function(shapes))
        else:
            made = build(experiment, first, keys[0], opaque)
            state = made.check(keys[0])
            made = made.with_plain_counts()
            check_columns(grid, _of_an_experiment(made, grid, keys[0], state))
            if made.execution is not None and as_strategy(made.execution).mesh is not None:
                raise ValueError(
                    "execution must not be sharded in a sweep, which deals whole configurations "
                    "over the devices; leave it None, or give the inner strategy"
                )
            for name in traced:  # each value once: a factory may refuse it
                for value in dict.fromkeys(grid.configurations[i][name] for i in indices):
                    build(experiment, {**first, name: value}, keys[0], opaque)
            num_rounds = made.num_rounds
            exchange = communication(made.algorithm, state.params, made.data)
            keep = keep_of(keep_models, metric, made, keys[0], state)
            most = _width(made, state, keys[0], devices, limit, keep)
            facts = {
                "num_rounds": num_rounds,
                "evaluate_every": made.evaluate_every,
                **local_facts(made.algorithm),
                "federation": checksum(*jax.tree.leaves(made.data)),
                "state": [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(state)],
            }
        if isinstance(side_by_side, list):
            most = side_by_side[place]
        elif side_by_side is not None:
            most = side_by_side
        if not common:
            most = 1
        # As few blocks as fit, but one for each device and seed if there are enough.
        least = -(-devices // len(keys))
        blocks = max(-(-len(indices) // most), min(least, len(indices)))
        width = -(-len(indices) // blocks)
        units = []
        for b in range(0, len(indices), width):
            block = indices[b : b + width]
            block = [*block, *[block[-1]] * (width - len(block))]
            units += [(seed, tuple(block)) for seed in range(len(keys))]
        units += [units[-1]] * (-len(units) % devices)
        batches = tuple(tuple(units[i : i + devices]) for i in range(0, len(units), devices))
        groups.append(
            Group(
                fixed,
                traced,
                tuple(indices),
                width,
                batches,
                num_rounds,
                exchange,
                not common,
                facts,
                keep,
            )
        )
    return groups


def _width(
    made: Experiment,
    state: FederatedState,
    key: Array,
    devices: int,
    limit: float,
    keep: Keep | None,
) -> int:
    """How many configurations fit a core's cache together, and the memory."""
    measured: list[tuple[str, int]] = []

    def measure(state: FederatedState) -> None:
        message = made.algorithm.broadcast(state.server, state.round)
        engine = Engine(made.algorithm.exchanges[-1], made.data, key, message)
        carry = carry_bytes(engine, jax.tree.map(lambda x: x[:1], state.clients))
        measured.append((platform_of(engine), carry))

    jax.eval_shape(measure, state)
    ((platform, carry),) = measured
    most = min(_MOST, 2 * cache_bytes() // carry) if platform == "cpu" else _MOST_ELSEWHERE
    best = state.params if keep is not None and keep.metric is not None else ()
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state, best)))
    return max(1, min(most, int(limit / (4 * devices * held))))


def _hashable(fixed: list[tuple[str, type, Any]]) -> Any:
    """What tells configurations' static values apart: 1 is not True, and no list is hashable."""
    try:
        hash(tuple(fixed))
    except TypeError:
        return repr(fixed)
    return tuple(fixed)


def build(experiment: Callable[..., Any], hyper: dict[str, Any], key: Array, opaque: bool) -> Any:
    """What `experiment` makes of a configuration: an `fs.Experiment`, or its results."""
    try:
        made = experiment(key, **hyper) if opaque else experiment(**hyper)
    except Exception as error:
        known = {name: value for name, value in hyper.items() if is_concrete(value)}
        error.add_note(f"experiment was called with {known}")
        raise
    if not opaque and not isinstance(made, Experiment):
        raise ValueError(
            "experiment must return an fs.Experiment, or take the key as its first argument and "
            f"return its results; got {type(made).__name__}"
        )
    return made


_TRACER_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def _check_traces(
    experiment: Callable[..., Any],
    first: dict[str, Any],
    traced: tuple[str, ...],
    key: Array,
    opaque: bool,
) -> PyTree:
    """Calls `experiment` with traced hyper-parameters, and says which it cannot take.

    Returns:
      The shapes of what a function of one's own returns.
    """
    found: list[PyTree] = []

    def fails(names: Sequence[str]) -> str | None:
        def call(hyper: dict[str, Array]) -> Array:
            made = build(experiment, {**first, **hyper}, key, opaque)
            return jnp.zeros(()) if not opaque else made

        try:
            shapes = jax.eval_shape(call, {name: jnp.asarray(first[name], float) for name in names})
            found.append(shapes)
        except _TRACER_ERRORS as error:
            return str(error).splitlines()[0]
        return None

    if fails(traced) is None:
        return found[0]
    wrong = [name for name in traced if fails([name]) is not None] or list(traced)
    said = ", ".join(wrong)
    raise ValueError(
        f"grid axis {said} cannot be traced: {fails(wrong)} To compile it in, one group and one "
        f"compilation for each of its values, give static={tuple(wrong)!r}"
    )


def _of_an_experiment(
    made: Experiment, grid: Grid, key: Array, state: FederatedState
) -> frozenset[str]:
    """The columns that axes might be called like, before anything compiles."""
    found = COLUMNS | set(check_evaluated(made.evaluate, state))
    if any(name.startswith("train_") for name in grid.names):  # what clients report takes a trace
        found |= names_of(jax.eval_shape(made.next_round, key, state)[1])
    return found


def _of_a_function(shapes: PyTree) -> frozenset[str]:
    """The columns of what a function of one's own returns.

    Raises:
      ValueError: for one that every table has already.
    """
    names = names_of(shapes)
    for name in sorted(names & LABELS):
        raise ValueError(
            f"experiment must not return {name!r}, which is a column of the results already; taken "
            f"are {', '.join(sorted(LABELS))}"
        )
    return LABELS | names


def _is_traced(values: Sequence[Any]) -> bool:
    def number(x: Any) -> bool:
        return isinstance(x, (int, float)) and not isinstance(x, bool)

    return all(number(x) for x in values) and any(isinstance(x, float) for x in values)
