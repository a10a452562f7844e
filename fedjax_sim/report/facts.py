"""Facts about results folders: the settings that were run, and how folders differ."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedjax_sim.plots import words
from fedjax_sim.report import tables
from fedjax_sim.report.reading import Folder
from fedjax_sim.results import configurations

_WIDE = 36  # characters of a name and its value that need a line of their own
_SHOWN = 6  # values of an axis that are written out


class Entry(NamedTuple):
    """A name and its value; a wide one has a line of its own."""

    name: str
    value: str
    is_wide: bool


class Differences(NamedTuple):
    """What differs between folders: a row (name, a value for each folder) a setting or version."""

    folders: list[str]
    rows: list[tuple[str, list[str]]]


class Title(NamedTuple):
    """A folder's name and its kind; the kind is empty if the name contains it."""

    name: str
    kind: str


def entries(folder: Folder) -> dict[str, str]:
    """Name -> value of a folder's settings, as text.

    An axis has its values, `rounds` the number that was run where that is fewer than asked for, and
    `seeds` the seeds of the runs. A list in the configuration that repeats an axis is left out.
    """
    runs = folder.results.runs
    axes = {
        name: [*dict.fromkeys(run.configuration.get(name) for run in runs)]
        for name in dict.fromkeys(name for run in runs for name in run.configuration)
    }
    settings = {}
    for name, value in tables.flat(folder.configuration).items():
        repeats = isinstance(value, list) and value in axes.values()
        if value is not None and not repeats and name not in ("seed", "seeds"):
            settings[name] = written(value)
    for name, values in axes.items():
        settings[name] = written(values) if len(values) <= _SHOWN else _ends(values)
    num_rounds = folder.configuration.get("rounds")
    rounds_done = words.span({run.done for run in runs})
    if isinstance(num_rounds, int) and rounds_done != str(num_rounds):
        settings["rounds"] = f"{rounds_done} of {num_rounds}"
    seeds = [*dict.fromkeys(run.seed for run in runs)]
    settings["seeds"] = written(seeds) if len(seeds) <= _SHOWN else f"{len(seeds)} of them"
    return settings


def described(values: Mapping[str, str]) -> list[Entry]:
    """Names and values as a list; long ones have a line of their own."""
    return [Entry(k, value, len(k) + len(value) > _WIDE) for k, value in values.items()]


def versions(folder: Folder) -> dict[str, str]:
    """Package -> its version, and the machine, as text."""
    return {name: written(value) for name, value in folder.versions.items()}


def differences(folders: Mapping[str, Folder]) -> Differences:
    """The settings and the versions in which folders differ."""
    columns = {
        name: entries(folder) | {f"{key} (version)": x for key, x in versions(folder).items()}
        for name, folder in folders.items()
    }
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [
        (name, [column.get(name, tables.NONE) for column in columns.values()])
        for name in names
        if len({column.get(name) for column in columns.values()}) > 1
    ]
    return Differences([*columns], rows)


def written(value: Any) -> str:
    """A value as text; a list by its items.

    >>> written([0.1, "full", True])
    '0.1, full, true'
    """
    if isinstance(value, list):
        return ", ".join(map(written, value))
    return tables.text(value)


def _ends(values: list[Any]) -> str:
    """The least and the greatest of many numbers, the first of other values; and how many."""
    numbers = [x for x in values if isinstance(x, (int, float)) and not isinstance(x, bool)]
    if len(numbers) == len(values):
        return f"{len(values)} from {written(min(numbers))} to {written(max(numbers))}"
    return f"{written(values[:_SHOWN])} and {len(values) - _SHOWN} more"


def title(name: str, folder: Folder) -> Title:
    """A folder's title."""
    is_said = folder.kind in name.replace("/", " ").replace("-", " ").lower().split()
    return Title(name, "" if is_said else folder.kind)


def counts(folder: Folder) -> str:
    """The numbers of configurations, seeds and rounds, in words."""
    runs, groups = folder.results.runs, configurations.groups(folder.results)
    seeds = words.span({len(group) for group in groups})
    rounds = words.span({run.done for run in runs})
    return (
        f"{len(groups)} configuration{'s' * (len(groups) != 1)}, "
        f"{seeds} seed{'s' * (seeds != '1')}, {rounds} round{'s' * (rounds != '1')}"
    )
