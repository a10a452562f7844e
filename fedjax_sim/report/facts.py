"""What results folders are: their settings as they were run, and in what they differ."""

from collections.abc import Mapping
from typing import Any

from fedjax_sim.plots import words
from fedjax_sim.report import tables
from fedjax_sim.report.reading import Folder
from fedjax_sim.results import configurations

_WIDE = 36  # characters of a name and its value that need a line of their own
_SHOWN = 6  # values of an axis that are written out


def entries(folder: Folder) -> dict[str, str]:
    """Name -> value of a folder's settings, as text.

    An axis has its values, rounds those that were run where that is fewer than asked for, and
    seeds those of the runs. A list that repeats an axis is left out.
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
    asked = folder.configuration.get("rounds")
    done = words.span({run.done for run in runs})
    if isinstance(asked, int) and done != str(asked):
        settings["rounds"] = f"{done} of {asked}"
    seeds = [*dict.fromkeys(run.seed for run in runs)]
    settings["seeds"] = written(seeds) if len(seeds) <= _SHOWN else f"{len(seeds)} of them"
    return settings


def described(values: Mapping[str, str]) -> str:
    """Names and values as a list in HTML; long ones have a line of their own."""
    items = (
        f"<div{' class=wide' if len(name) + len(value) > _WIDE else ''}>"
        f"<dt>{tables.text(name)}</dt><dd>{tables.text(value)}</dd></div>"
        for name, value in values.items()
    )
    return f"<dl>{''.join(items)}</dl>" if values else ""


def versions(folder: Folder) -> dict[str, str]:
    """Package -> its version, and the machine, as text."""
    return {name: written(value) for name, value in folder.versions.items()}


def differences(folders: Mapping[str, Folder]) -> str:
    """The settings and the versions in which folders differ, as a table in HTML."""
    columns = {
        name: entries(folder) | {f"{key} (version)": x for key, x in versions(folder).items()}
        for name, folder in folders.items()
    }
    names = dict.fromkeys(name for column in columns.values() for name in column)
    differ = [name for name in names if len({x.get(name) for x in columns.values()}) > 1]
    if not differ:
        return "<h2>What differs</h2><p>Nothing in settings or versions.</p>"
    head = "".join(f'<th scope="col">{tables.text(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{tables.text(name)}</th>'
        + "".join(f"<td>{tables.text(x.get(name, tables.NONE))}</td>" for x in columns.values())
        + "</tr>"
        for name in differ
    )
    return (
        '<h2>What differs</h2><div class="box"><table class="wraps"><thead><tr><th></th>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def written(value: Any) -> str:
    """A value as text; a list by its items.

    >>> written([0.1, "full", True])
    '0.1, full, true'
    """
    if isinstance(value, list):
        return ", ".join(map(written, value))
    return tables.said(value)


def _ends(values: list[Any]) -> str:
    """The least and the greatest of many numbers, the first of other values; and how many."""
    numbers = [x for x in values if isinstance(x, (int, float)) and not isinstance(x, bool)]
    if len(numbers) == len(values):
        return f"{len(values)} from {written(min(numbers))} to {written(max(numbers))}"
    return f"{written(values[:_SHOWN])} and {len(values) - _SHOWN} more"


def title(name: str, folder: Folder) -> str:
    """A folder's name and its kind, which a name may say by itself."""
    says = folder.kind in name.replace("/", " ").replace("-", " ").lower().split()
    kind = "" if says else f" <small>{tables.text(folder.kind)}</small>"
    return f"<h2>{tables.text(name)}{kind}</h2>"


def counts(folder: Folder) -> str:
    """How many configurations, seeds and rounds."""
    runs, groups = folder.results.runs, configurations.groups(folder.results)
    seeds = words.span({len(group) for group in groups})
    rounds = words.span({run.done for run in runs})
    many = len(groups)
    return (
        f"{many} configuration{'s' * (many != 1)}, {seeds} seed{'s' * (seeds != '1')}, "
        f"{rounds} round{'s' * (rounds != '1')}"
    )
