"""Modes of a grid that differ by coefficients alone: one program trains all of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedjax_sim import aggregation
from fedjax_sim.grid import Grid, Numbered, numbered
from fedjax_sim.settings.attacked import rule
from fedjax_sim.settings.build import experiment
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.training.experiment import Experiment

MODE = "mode"


def with_numbered_modes(grid: Grid, settings: Sequence[ResolvedSetting]) -> Grid:
    """The grid, its modes as numbers that a sweep traces, where all of them are averages.

    A rule that sees all updates is a program of its own, and so is one with something done before
    it; a grid that has such a mode stays as it is.

    Args:
      settings: of the grid's configurations.
    """
    names = _modes(grid)
    average = all(x.mode in aggregation.RULES and x.choices.before is None for x in settings)
    if len(names) < 2 or not average:
        return grid
    numbers = dict(zip(names, numbered(names), strict=True))
    return Grid([{**values, MODE: numbers[values[MODE]]} for values in grid])


def experiment_of(
    grid: Grid, hyper: Mapping[str, Any], resolved: Callable[[Mapping[str, Any]], ResolvedSetting]
) -> Experiment:
    """The experiment of a configuration, whose mode may be a number that is traced.

    Args:
      grid: of `with_numbered_modes`.
      hyper: the values of one configuration, which may be traced.
      resolved: the setting of such values, whose mode is a word.
    """
    mode = hyper.get(MODE)
    if mode is None or isinstance(mode, str):
        return experiment(resolved(hyper))
    if isinstance(mode, Numbered):
        return experiment(resolved({**hyper, MODE: mode.name}))
    of_each_mode = [resolved({**hyper, MODE: name}) for name in _modes(grid)]
    chosen = aggregation.chosen(mode, *map(rule, of_each_mode))
    return experiment(of_each_mode[0])._replace(aggregation=chosen)


def _modes(grid: Grid) -> list[str]:
    """The modes of a grid's configurations, each once, in words."""
    if MODE not in grid.names:
        return []
    modes = (configuration[MODE] for configuration in grid)
    return list(dict.fromkeys(x.name if isinstance(x, Numbered) else x for x in modes))
