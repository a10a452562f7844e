"""What a sweep refuses before anything is computed: names, axes, and values that read alike."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.randomness import check_key
from fedjax_sim.core.types import Array
from fedjax_sim.grid import Grid
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
    taken = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for name in grid.names:
        if name not in taken and not open_ended:
            near = difflib.get_close_matches(name, taken, 1)
            raise ValueError(
                f"grid has {name!r}, which experiment does not take"
                + (f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(taken)}")
            )
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty and p.name in taken and p.name not in grid.names
    ]
    if missing:
        raise ValueError(f"grid must give {', '.join(missing)}, which experiment has no default of")
    for name in static:
        if name not in grid.names:
            raise ValueError(
                f"static must name axes of the grid, {', '.join(grid.names)}; got {name!r}"
            )


def check_columns(grid: Grid, columns: Iterable[str]) -> None:
    """Refuses an axis that a table has another column of."""
    taken = set(columns)
    for name in grid.names:
        if name in taken:
            raise ValueError(
                f"grid must not have an axis {name!r}, which is a column of the results already; "
                f"call it something else (taken are {', '.join(sorted(taken))})"
            )


def check_labels(grid: Grid, opaque: bool) -> None:
    """Refuses what a table could not tell apart: two lambdas, or a configuration twice.

    And an axis that every table has a column of.
    """
    check_columns(grid, LABELS if opaque else COLUMNS)
    for name in grid.names:
        check_kinds(name, [one[name] for one in grid])
        seen: dict[Any, Any] = {}
        for one in grid:
            value = one[name]
            if seen.setdefault(said(value), value) is not value and seen[said(value)] != value:
                raise ValueError(
                    f"{name} has two values that are both called {said(value)!r} in a table; give "
                    "functions names of their own, or sweep over names that experiment looks up"
                )
    rows = [repr([(k, type(v), said(v)) for k, v in one.items()]) for one in grid]
    if len(set(rows)) < len(rows):
        again = next(i for i, row in enumerate(rows) if row in rows[:i])
        raise ValueError(
            f"grid must have each configuration once; got {grid.configurations[again]} twice: its "
            "seeds would count twice (more seeds are more keys)"
        )


def check_kinds(name: str, values: Sequence[Any]) -> None:
    """Refuses an axis of booleans and numbers together, as a mistaken `True` for 1."""
    booleans = [x for x in values if isinstance(x, bool)]
    numbers = [x for x in values if isinstance(x, (int, float)) and not isinstance(x, bool)]
    if booleans and numbers:
        raise ValueError(
            f"{name} must have booleans or numbers, not both; got {booleans[0]} and {numbers[0]}"
        )


def said(value: Any) -> Any:
    """A value as the table and the manifest have it: functions by their names."""
    if isinstance(value, (int, float, str)) or value is None:
        return value
    return getattr(value, "__name__", None) or repr(value)


def keys_of(keys: Array | Sequence[int]) -> tuple[list[int], Array]:
    """The labels of the seeds, and their keys [S].

    Raises:
      ValueError: for what is neither keys nor different whole numbers.
    """
    if isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
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
