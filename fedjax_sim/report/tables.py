"""The table of configurations on a page, and the form in which values are written there."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_sim.plots import words
from fedjax_sim.report import cards
from fedjax_sim.report.reading import Folder
from fedjax_sim.results import Mean, Run, configurations, ranked
from fedjax_sim.results.columns import BYTES, lowest_is_best

NONE = "\N{EN DASH}"
_MOST = 6  # metrics in the table


class Line(NamedTuple):
    """A line of the table: a configuration of a folder.

    Attributes:
      folder: the folder's name.
      configuration: hyper-parameter -> value.
      runs: one for each seed.
      means: metric -> its mean over the seeds.
    """

    folder: str
    configuration: dict[str, Any]
    runs: list[Run]
    means: dict[str, Mean]

    @property
    def finite(self) -> bool:
        """Whether no seed diverged."""
        return not any(run.diverged for run in self.runs)


class Head(NamedTuple):
    """The heading of a column, in two lines if it is long."""

    first: str
    second: str
    is_number: bool


class Tag(NamedTuple):
    """A word on a coloured ground; `kind` is good, bad or warn."""

    kind: str
    words: str


class Cell(NamedTuple):
    """A cell of the table.

    Attributes:
      text: the cell's content.
      is_number: whether the content is a number.
      is_best: whether the cell is the best of its column.
      tags: words that are shown in place of a text.
    """

    text: str
    is_number: bool = False
    is_best: bool = False
    tags: Sequence[Tag] = ()


class Row(NamedTuple):
    """A configuration's cells, and whether it is the best of all."""

    is_best: bool
    cells: list[Cell]


class Table(NamedTuple):
    """Headings, and rows of as many cells."""

    heads: list[Head]
    rows: list[Row]


class _Columns(NamedTuple):
    """The columns that the table has.

    Attributes:
      several: whether there is a column of folders.
      axes: hyper-parameters.
      scores: metrics that configurations are compared by.
      is_marked: whether there is a column of tags.
      targets: names of columns of the rounds until a target is reached.
      is_sent: whether there is a column of bytes sent.
      other_metrics: those that no configuration is compared by.
    """

    several: bool
    axes: list[str]
    scores: list[str]
    is_marked: bool
    targets: list[str]
    is_sent: bool
    other_metrics: list[str]

    def names(self) -> list[str]:
        """The columns' names, from the left."""
        return [
            *(["folder"] if self.several else []),
            *self.axes,
            *self.scores,
            *([""] if self.is_marked else []),
            *(name.replace("_", " ") for name in self.targets),
            *(["MB sent"] if self.is_sent else []),
            "seeds",
            "rounds",
            *self.other_metrics,
        ]


def table(folders: Mapping[str, Folder]) -> Table:
    """One line for each configuration: means, tags, bytes sent, and rounds to a target."""
    lines = [line for name, folder in folders.items() for line in lines_of(name, folder)]
    scores = [metric for metric in map(cards.score, folders.values()) if metric is not None]
    metrics = _metrics(lines, list(dict.fromkeys(scores)))
    best = {metric: _best(lines, metric) for metric in metrics}
    winners = [line for line in lines if any(best.get(metric) is line for metric in scores)]
    tags = [_tags(line, line in winners) for line in lines]
    values = dict.fromkeys(name for line in lines for name in line.runs[0].values)
    columns = _Columns(
        several=len(folders) > 1,
        axes=list(dict.fromkeys(name for line in lines for name in line.configuration)),
        scores=[name for name in metrics if name in scores],
        is_marked=any(tags),
        targets=[name for name in values if name.startswith("rounds_to")],
        is_sent=any("bytes_down" in run.rounds for line in lines for run in line.runs),
        other_metrics=[name for name in metrics if name not in scores],
    )
    axes, names = columns.axes, columns.names()
    numbers = {name for name in axes if any(_is_number(x.configuration.get(name)) for x in lines)}
    numbers |= {*names} - {"folder", "", *axes}
    rows = [
        Row(line in winners, _cells(line, mark, folders[line.folder], columns, numbers, best))
        for line, mark in zip(lines, tags, strict=True)
    ]
    return Table([Head(*_in_two(name), name in numbers) for name in names], rows)


def _cells(
    line: Line,
    tags: Sequence[Tag],
    folder: Folder,
    columns: _Columns,
    numbers: Collection[str],
    best: Mapping[str, Line | None],
) -> list[Cell]:
    """A line's cells, in the order of the columns."""
    cells = [Cell(line.folder)] if columns.several else []
    for name in columns.axes:
        # An axis of another folder may be a fixed value in this one's configuration.
        value = line.configuration.get(name, folder.configuration.get(name))
        cells.append(Cell(text(value), name in numbers))
    cells += [_mean(line, metric, best[metric]) for metric in columns.scores]
    if columns.is_marked:
        cells.append(Cell("", tags=tags))
    cells += [Cell(_reached(line, name), is_number=True) for name in columns.targets]
    if columns.is_sent:
        cells.append(Cell(_megabytes(line), is_number=True))
    counts = str(len(line.runs)), words.span({run.done for run in line.runs})
    cells += [Cell(count, is_number=True) for count in counts]
    return cells + [_mean(line, metric, best[metric]) for metric in columns.other_metrics]


def lines_of(name: str, folder: Folder) -> list[Line]:
    """A folder's configurations."""
    results = folder.results
    means = {metric: results.mean(metric) for metric in results.metrics}
    return [
        Line(name, runs[0].configuration, runs, {k: of_metric[i] for k, of_metric in means.items()})
        for i, runs in enumerate(configurations.groups(results))
    ]


def interval(mean: Mean) -> str:
    """A mean and half of its interval, both to the interval's second digit.

    >>> interval(Mean({}, 0.95321, 0.94909, 0.95733, 4, 0))
    '0.9532 ± 0.0041'
    """
    half = mean.high - mean.mean
    if not math.isfinite(mean.mean):
        return NONE
    if not math.isfinite(half) or half <= 0:
        return f"{mean.mean:.4g}"
    digits = 1 - math.floor(math.log10(half))
    if not -4 <= digits <= 8:
        return f"{mean.mean:.4g} ± {half:.2g}"
    digits = max(digits, 0)
    return f"{mean.mean:.{digits}f} ± {half:.{digits}f}"


def _metrics(lines: Sequence[Line], scores: Sequence[str]) -> list[str]:
    """The metrics that the table shows, the scores first."""
    metrics = dict.fromkeys(name for line in lines for name in line.means)

    def place(name: str) -> int:
        if name in scores:
            return scores.index(name) - len(scores)
        if name.startswith(("personal_", "global_")) and not lowest_is_best(name):
            return 1 if name.endswith("_worst_tenth") else 2
        if name.startswith("clients_"):
            return 1 if name.endswith("_worst_tenth") else 2 if name.endswith("_mean") else 5
        if name.startswith(("validation_", "test_")):
            return 0
        return 4 if name.startswith("train_") else 3

    names = [x for x in metrics if not x.startswith("rounds_to") and place(x) < 5]
    return sorted(names, key=place)[:_MOST]


def _best(lines: Sequence[Line], metric: str) -> Line | None:
    """The line with the best mean; None if there is nothing to choose from."""
    competing = [line for line in lines if metric in line.means and line.means[metric].competes]
    if len(lines) < 2 or not competing:
        return None
    means = [line.means[metric] for line in competing]
    return competing[ranked(means, lowest_is_best(metric))[0]]


def _mean(line: Line, metric: str, best: Line | None) -> Cell:
    text = interval(line.means[metric]) if metric in line.means else NONE
    return Cell(text, is_number=True, is_best=best is line)


def _tags(line: Line, best: bool) -> list[Tag]:
    tags = [Tag("good", "best")] if best else []
    if not line.finite:
        num_diverged, seeds = sum(run.diverged for run in line.runs), len(line.runs)
        tags.append(
            Tag(
                "bad",
                "diverged" if num_diverged == seeds else f"diverged {num_diverged} of {seeds}",
            )
        )
    if any(run.done != run.num_rounds for run in line.runs):
        tags.append(Tag("warn", "interrupted"))
    return tags


def _reached(line: Line, name: str) -> str:
    """Mean over the seeds that reached the target, and how many did."""
    values = [run.values.get(name) for run in line.runs]
    # `_is_number` has ruled out texts and None, which the type checker does not see.
    reached = [float(x) for x in values if _is_number(x) and math.isfinite(x)]  # type: ignore[arg-type]
    if not reached:
        return NONE
    how_many = "" if len(reached) == len(values) else f" ({len(reached)} of {len(values)})"
    return f"{sum(reached) / len(reached):.4g}{how_many}"


def _megabytes(line: Line) -> str:
    sent = [
        sum(float(run.rounds[k][-1]) for k in BYTES)
        for run in line.runs
        if {*BYTES} <= set(run.rounds) and run.done
    ]
    return f"{sum(sent) / len(sent) / 1e6:,.4g}" if sent else NONE


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested entries under dotted names."""
    flattened: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flattened |= flat(value, f"{prefix}{key}.")
        else:
            flattened[f"{prefix}{key}"] = value
    return flattened


def text(value: Any) -> str:
    """A value as text; a dash for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _in_two(heading: str) -> tuple[str, str]:
    """A heading's two lines; the second is empty if it is short."""
    parts = heading.split("_")
    if len(heading) <= 16 or len(parts) == 1:
        return heading, ""
    starts = ["_".join(parts[:i]) + "_" for i in range(1, len(parts))]
    start = min(starts, key=lambda start: abs(len(start) - len(heading) / 2))
    return start, heading[len(start) :]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
