"""The plan of a sweep: groups of configurations that share a program, and their batches."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import is_concrete
from fedjax_sim.core.history import Communication
from fedjax_sim.core.trees import num_bytes
from fedjax_sim.core.types import Array, FederatedState, PyTree
from fedjax_sim.execution.client import Engine
from fedjax_sim.execution.machine import cache_bytes, carry_bytes, platform_of
from fedjax_sim.execution.strategy import as_strategy
from fedjax_sim.grid import Grid
from fedjax_sim.host.checkpoints import checksum
from fedjax_sim.host.identity import local_facts
from fedjax_sim.host.keeping import Keep, keep_of
from fedjax_sim.results.columns import COLUMNS, LABELS, check_evaluated, names_of
from fedjax_sim.sweeps.checks import check_columns, in_memory
from fedjax_sim.training.communication import communication
from fedjax_sim.training.experiment import Experiment

_MOST = 32  # configurations side by side on a CPU device at most; more were not faster
_MOST_ELSEWHERE = 256  # the same on an accelerator, where it is not measured
_MOST_OF_A_FUNCTION = 8  # the same for a function of the key, whose memory is not known


# For each device: the index of a seed, and indices into the grid.
Batch = tuple[tuple[int, tuple[int, ...]], ...]


class Group(NamedTuple):
    """Configurations that share one program: the static values are the same.

    Attributes:
      static: name -> value of the hyper-parameters that are part of the program.
      traced: names of the hyper-parameters that are arguments of the program.
      indices: of its configurations in the grid.
      side_by_side: configurations under one `vmap`.
      batches: one for each call; runs are repeated where a batch must be padded.
      num_rounds: R of its experiments; None for a function that returns results.
      exchange: the bytes of one exchange, where known.
      fold: whether the configuration's index is folded into the key.
      facts: values that a resume must find the same.
      keep: which model of each run is kept; None for none.
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
    *,
    devices: int,
    limit: float,
    static: Sequence[str] = (),
    opaque: bool = False,
    common_random_numbers: bool = True,
    side_by_side: int | list[int] | None = None,
    keep_models: str | None = None,
    metric: str | None = None,
    shards: int = 1,
) -> list[Group]:
    """Makes the groups, each with its batches; refuses hyper-parameters that cannot be traced.

    Args:
      devices: over which a batch is dealt.
      limit: bytes that a call may hold.
      opaque: whether `experiment` is a function of the key that returns results.
      side_by_side: of each group, where a sweep is joined or resumed.
      shards: processes among which the batches are dealt.
    """
    traced = tuple(
        name
        for name in grid.names
        if name not in static and _is_traced([configuration[name] for configuration in grid])
    )
    members: dict[Any, list[int]] = {}
    for i, configuration in enumerate(grid):
        fixed_values = [(k, type(v), v) for k, v in configuration.items() if k not in traced]
        members.setdefault(_hashable(fixed_values), []).append(i)
    groups = []
    for place, indices in enumerate(members.values()):
        first = grid.configurations[indices[0]]
        fixed = {name: value for name, value in first.items() if name not in traced}
        shapes = _check_traces(experiment, first, traced, keys[0], opaque)
        num_rounds, exchange, limit_width = None, None, _MOST_OF_A_FUNCTION
        facts: dict[str, Any] = {}
        keep: Keep | None = None
        if opaque:
            check_columns(grid, _of_a_function(shapes))
        else:
            first_experiment = build(experiment, first, keys[0], opaque)
            state = first_experiment.check(keys[0])
            first_experiment = first_experiment.with_plain_counts()
            check_columns(grid, _of_an_experiment(first_experiment, grid, keys[0], state))
            if (
                first_experiment.execution is not None
                and as_strategy(first_experiment.execution).mesh is not None
            ):
                raise ValueError(
                    "execution must not be sharded in a sweep, which deals whole configurations "
                    "over the devices; leave it None, or give the inner strategy"
                )
            configurations = [grid.configurations[i] for i in indices]
            for configuration in _with_each_value(configurations, traced):
                build(experiment, configuration, keys[0], opaque)  # which may refuse a value
            num_rounds = first_experiment.num_rounds
            exchange = communication(
                first_experiment.algorithm, state.params, first_experiment.data
            )
            keep = keep_of(keep_models, metric, first_experiment, keys[0], state)
            limit_width = _width(first_experiment, state, keys[0], devices, limit, keep)
            facts = {
                "num_rounds": num_rounds,
                "evaluate_every": first_experiment.evaluate_every,
                **local_facts(first_experiment.algorithm),
                "federation": checksum(*jax.tree.leaves(first_experiment.data)),
                "state": [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(state)],
            }
        if isinstance(side_by_side, list):
            # Of another sweep, which is refused afterwards, there may be fewer groups.
            limit_width = side_by_side[min(place, len(side_by_side) - 1)]
        elif side_by_side is not None:
            limit_width = side_by_side
        if not common_random_numbers:
            limit_width = 1
        # As few blocks as fit, but enough that each device of each shard has one, if there are.
        # How many there were is given by the widths of a sweep that is joined or resumed.
        least = max(-(-devices // len(keys)), -(-devices * shards // (len(keys) * len(members))))
        least = 1 if isinstance(side_by_side, list) else least
        blocks = max(-(-len(indices) // limit_width), min(least, len(indices)))
        width = -(-len(indices) // blocks)
        groups.append(
            Group(
                static=fixed,
                traced=traced,
                indices=tuple(indices),
                side_by_side=width,
                batches=_batches(indices, width, len(keys), devices),
                num_rounds=num_rounds,
                exchange=exchange,
                fold=not common_random_numbers,
                facts=facts,
                keep=keep,
            )
        )
    return groups


def _with_each_value(
    configurations: Sequence[dict[str, Any]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """For each value of these names the first configuration that has it, each once.

    A value may be refused beside the values of another configuration, and not beside its own.
    """
    having: dict[Any, int] = {}
    for place, configuration in enumerate(configurations):
        for name in names:
            having.setdefault((name, configuration[name]), place)
    return [configurations[place] for place in dict.fromkeys(having.values())]


def _batches(indices: Sequence[int], width: int, seeds: int, devices: int) -> tuple[Batch, ...]:
    """Blocks of `width` configurations, each for every seed, dealt over the devices.

    The last block repeats its last configuration, and the last batch its last block.
    """
    units = []
    for b in range(0, len(indices), width):
        block = indices[b : b + width]
        block = [*block, *[block[-1]] * (width - len(block))]
        units += [(seed, tuple(block)) for seed in range(seeds)]
    units += [units[-1]] * (-len(units) % devices)
    return tuple(tuple(units[i : i + devices]) for i in range(0, len(units), devices))


def _width(
    experiment: Experiment,
    state: FederatedState,
    key: Array,
    devices: int,
    limit: float,
    keep: Keep | None,
) -> int:
    """The number of configurations that fit in the caches of a core, and in memory."""
    measured: list[tuple[str, int]] = []

    def measure(state: FederatedState) -> None:
        message = experiment.algorithm.broadcast(state.server, state.round)
        engine = Engine(experiment.algorithm.exchanges[-1], experiment.federation, key, message)
        carry = carry_bytes(engine, jax.tree.map(lambda x: x[:1], state.clients))
        measured.append((platform_of(engine), carry))

    jax.eval_shape(measure, state)
    ((platform, carry),) = measured
    limit_width = min(_MOST, 2 * cache_bytes() // carry) if platform == "cpu" else _MOST_ELSEWHERE
    best = state.params if keep is not None and keep.metric is not None else ()
    return max(1, min(limit_width, int(limit / (4 * devices * num_bytes((state, best))))))


def _hashable(fixed: list[tuple[str, type, Any]]) -> Any:
    """A hashable value of the static values, in which 1 differs from True and lists are allowed."""
    try:
        hash(tuple(fixed))
    except TypeError:
        return repr(fixed)
    return tuple(fixed)


def build(experiment: Callable[..., Any], hyper: dict[str, Any], key: Array, opaque: bool) -> Any:
    """Calls `experiment` with a configuration; returns an `fs.Experiment`, or results."""
    try:
        result = experiment(key, **hyper) if opaque else experiment(**hyper)
    except Exception as error:
        concrete = {name: value for name, value in hyper.items() if is_concrete(value)}
        error.add_note(f"experiment was called with {concrete}")
        raise
    if not opaque and not isinstance(result, Experiment):
        raise ValueError(
            "experiment must return an fs.Experiment, or take the key as its first argument and "
            f"return its results; got {type(result).__name__}"
        )
    return in_memory(result) if isinstance(result, Experiment) else result


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
    """Calls `experiment` with traced hyper-parameters, and refuses those that it cannot trace.

    Returns:
      The shapes of the results of a function of the key.
    """
    shapes_of_calls: list[PyTree] = []

    def fails(names: Sequence[str]) -> str | None:
        def call(hyper: dict[str, Array]) -> Array:
            result = build(experiment, {**first, **hyper}, key, opaque)
            return jnp.zeros(()) if not opaque else result

        try:
            shapes = jax.eval_shape(call, {name: jnp.asarray(first[name], float) for name in names})
            shapes_of_calls.append(shapes)
        except _TRACER_ERRORS as error:
            return str(error).splitlines()[0]
        return None

    if fails(traced) is None:
        return shapes_of_calls[0]
    wrong = [name for name in traced if fails([name]) is not None] or list(traced)
    axes = ", ".join(wrong)
    raise ValueError(
        f"grid axis {axes} cannot be traced: {fails(wrong)} To compile it in, one group and one "
        f"compilation for each of its values, give static={tuple(wrong)!r}"
    )


def _of_an_experiment(
    experiment: Experiment, grid: Grid, key: Array, state: FederatedState
) -> frozenset[str]:
    """The columns of an experiment's results, before anything compiles."""
    names = COLUMNS | set(check_evaluated(experiment.evaluate, state))
    if any(name.startswith("train_") for name in grid.names):  # only a trace gives train_ columns
        names |= names_of(jax.eval_shape(experiment.next_round, key, state)[1])
    return names


def _of_a_function(shapes: PyTree) -> frozenset[str]:
    """The columns of the results of a function of the key.

    Raises:
      ValueError: for a column that every table has already.
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
