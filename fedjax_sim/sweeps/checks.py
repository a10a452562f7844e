"""Checks of a sweep before anything is computed: names, axes, and values with the same label."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.randomness import check_key, is_key
from fedjax_sim.core.types import Array
from fedjax_sim.data import Source
from fedjax_sim.execution.machine import loaded
from fedjax_sim.grid import Grid, Numbered
from fedjax_sim.results.columns import COLUMNS, LABELS
from fedjax_sim.training.experiment import Experiment


def takes_key(experiment: Callable[..., Any]) -> bool:
    """Whether it is a function of (key, hyper-parameters) that returns results."""
    if not callable(experiment) or isinstance(experiment, Experiment):
        raise ValueError(
            "experiment must be a function of the hyper-parameters; got "
            f"{type(experiment).__name__}"
        )
    return next(iter(inspect.signature(experiment).parameters), None) == "key"


def check_names(
    experiment: Callable[..., Any], grid: Grid, static: Sequence[str], opaque: bool
) -> None:
    """Refuses names that `experiment` does not take, and those it needs and is not given."""
    parameters = list(inspect.signature(experiment).parameters.values())[opaque:]
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    parameter_names = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for name in grid.names:
        if name not in parameter_names and not open_ended:
            near = difflib.get_close_matches(name, parameter_names, 1)
            raise ValueError(
                f"grid has {name!r}, which experiment does not take"
                + (
                    f"; did you mean {near[0]!r}?"
                    if near
                    else f"; it takes {', '.join(parameter_names)}"
                )
            )
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty and p.name in parameter_names and p.name not in grid.names
    ]
    if missing:
        raise ValueError(f"grid must give {', '.join(missing)}, which experiment has no default of")
    for name in static:
        if name not in grid.names:
            raise ValueError(
                f"static must name axes of the grid, {', '.join(grid.names)}; got {name!r}"
            )


def in_memory(experiment: Experiment) -> Experiment:
    """The experiment with its data in memory, those of a source read once for the whole sweep.

    Seeds and configurations run side by side, and each seed draws other clients: windows of
    them all would be read anew for each batch, and soon be most of the federation.

    Raises:
      ValueError: for a source that does not fit, with the figures.
    """
    data = experiment.data
    if not isinstance(data, Source):
        return experiment
    because = (
        "a sweep's seeds and configurations run side by side and each seed draws other clients "
        "(fs.simulate reads a source, a configuration and a seed at a time)"
    )
    return experiment._replace(data=loaded(data, "experiment.data", because))


def check_columns(grid: Grid, columns: Iterable[str]) -> None:
    """Refuses an axis whose name is already that of a column of the results."""
    reserved = set(columns)
    for name in grid.names:
        if name in reserved:
            raise ValueError(
                f"grid must not have an axis {name!r}, which is a column of the results already; "
                f"call it something else (taken are {', '.join(sorted(reserved))})"
            )


def check_labels(grid: Grid, opaque: bool) -> None:
    """Refuses a grid whose configurations would be ambiguous in a table.

    These are two values with one label, as two lambdas, a configuration that occurs twice, and an
    axis with the name of a column that every table has.
    """
    check_columns(grid, LABELS if opaque else COLUMNS)
    for name in grid.names:
        check_kinds(name, [configuration[name] for configuration in grid])
        first_with_label: dict[Any, Any] = {}
        for configuration in grid:
            value = configuration[name]
            if (
                first_with_label.setdefault(label_of(value), value) is not value
                and first_with_label[label_of(value)] != value
            ):
                raise ValueError(
                    f"{name} has two values that are both called {label_of(value)!r} in a table; "
                    "give functions names of their own, or sweep over names that experiment looks "
                    "up"
                )
    rows = [
        repr([(k, type(v), label_of(v)) for k, v in configuration.items()])
        for configuration in grid
    ]
    if len(set(rows)) < len(rows):
        repeated = next(i for i, row in enumerate(rows) if row in rows[:i])
        raise ValueError(
            f"grid must have each configuration once; got {grid.configurations[repeated]} twice: "
            "its seeds would count twice (more seeds are more keys)"
        )


def check_kinds(name: str, values: Sequence[Any]) -> None:
    """Refuses an axis with both booleans and numbers, where `True` may be a mistake for 1."""
    booleans = [x for x in values if isinstance(x, bool)]
    numbers = [x for x in values if isinstance(x, (int, float)) and not isinstance(x, bool)]
    if booleans and numbers:
        raise ValueError(
            f"{name} must have booleans or numbers, not both; got {booleans[0]} and {numbers[0]}"
        )


def label_of(value: Any) -> Any:
    """A value's label in tables and in the manifest; that of a function or a word is its name."""
    if isinstance(value, Numbered):
        return value.name
    if isinstance(value, (int, float, str)) or value is None:
        return value
    return getattr(value, "__name__", None) or repr(value)


def keys_of(keys: Array | Sequence[int]) -> tuple[list[int], Array]:
    """The labels of the seeds, and their keys [S].

    Raises:
      ValueError: for values that are neither keys nor different whole numbers.
    """
    if isinstance(keys, jax.Array) and is_key(keys):
        if keys.ndim != 1 or not len(keys):
            raise ValueError(f"keys must be an array [S] of keys; got shape {keys.shape}")
        check_key(keys[0])
        return list(range(len(keys))), keys
    whole = hasattr(keys, "__iter__") and all(
        isinstance(k, (int, np.integer)) and not isinstance(k, bool) for k in keys
    )
    seeds = [int(k) for k in keys] if whole else []
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(
            "keys must be typed keys [S], or different whole numbers, at least one; got "
            f"{keys!r} (as keys=range(4))"
        )
    return seeds, jnp.stack([jax.random.key(seed) for seed in seeds])
