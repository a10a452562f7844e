"""Tables of accuracies after a fixed number of rounds: a cell is one split, swept over methods."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_sim.reproduce.swept import Record, SweptCell
from fedjax_sim.settings import build
from fedjax_sim.settings.setting import Setting
from fedjax_sim.settings.splits import split
from fedjax_sim.training.experiment import Experiment

# Of one record: method -> its figure in words, in per cent.
Published = Mapping[str, str]


class AccuracyCell(NamedTuple):
    """The accuracies of all methods on one split.

    Attributes:
      place: data and split, in the table's words.
      settings: method -> what is run.
      score: the metric that is compared, as "test_accuracy".
      published: record -> its figures; a record that has none of this split is left out.
      cell: the sweep over methods and seeds.
      experiment_of: what runs a setting.
    """

    place: str
    settings: Mapping[str, Setting]
    score: str
    published: Mapping[str, Published]
    cell: SweptCell
    experiment_of: Callable[[Setting], Experiment]


class AccuracyTable(NamedTuple):
    """A table: its heading, which names the publication, its cells, and how it is read.

    Attributes:
      ordered: whether the methods' order is written below each cell, ours beside the records'.
    """

    name: str
    heading: str
    note: str
    cells: tuple[AccuracyCell, ...]
    ordered: bool = False


def of_settings(setting: Setting) -> Experiment:
    """The experiment of a setting."""
    return build.experiment(setting.resolved())


def accuracy_cell(
    name: str,
    place: str,
    settings: Mapping[str, Setting],
    published: Mapping[str, Published],
    *,
    score: str = "test_accuracy",
    seeds: int | None = None,
    experiment_of: Callable[[Setting], Experiment] = of_settings,
) -> AccuracyCell:
    """A cell, whose sweep has the method for its only axis."""

    def experiment(method: str) -> Experiment:
        return experiment_of(settings[method])

    facts = {"settings": {method: setting.identity() for method, setting in settings.items()}}
    cell = SweptCell(name, experiment, {"method": tuple(settings)}, (score,), facts, seeds)
    return AccuracyCell(place, settings, score, published, cell, experiment_of)


def check_data(cells: Sequence[AccuracyCell]) -> None:
    """Reads and splits the data of the first cell of each data set, so that what lacks is told.

    Raises:
      FileNotFoundError: if a data set must be fetched first; the message says how.
      ValueError: if its split is impossible.
    """
    by_dataset = {next(iter(each.settings.values())).dataset: each for each in cells}
    for each in by_dataset.values():
        split(next(iter(each.settings.values())).resolved().data)


def rows(table: AccuracyTable, records: Mapping[str, Record]) -> list[str]:
    """The cells that are complete, as lines of a Markdown table; their orders below it."""
    methods = tuple(dict.fromkeys(m for each in table.cells for m in each.settings))
    lines = [
        f"| data and split | whose | {' | '.join(methods)} | seeds | minutes |",
        "|" + "---|" * (len(methods) + 4),
    ]
    orders = []
    for each in table.cells:
        if (record := records.get(each.cell.name)) is None:
            continue
        for whose, figures in each.published.items():
            texts = [figures.get(method, "") for method in methods]
            lines.append(f"| {each.place} | {whose} | {' | '.join(texts)} | | |")
        ours = {m: accuracies(each, record, m) for m in each.settings}
        texts = [_text(ours[m]) if m in ours else "" for m in methods]
        lines.append(
            f"| {each.place} | ours | {' | '.join(texts)} | {record.seeds} | {_minutes(record)} |"
        )
        if table.ordered:
            means = {method: float(values.mean()) for method, values in ours.items()}
            orders.append(f"- {each.place}, ours: {_order(means)}")
            for whose, figures in each.published.items():
                values = {method: float(figure.split()[0]) for method, figure in figures.items()}
                orders.append(f"- {each.place}, {whose}: {_order(values)}")
    return [*lines, "", *orders] if orders else lines


def accuracies(cell: AccuracyCell, record: Record, method: str) -> np.ndarray:
    """[seeds] of a method after the last round, in per cent."""
    curves = [run.measured[cell.score] for run in record.of(method=method)]
    return np.array([100 * curve[-1] for curve in curves])


def _text(values: np.ndarray) -> str:
    spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}"


def _order(means: Mapping[str, float]) -> str:
    """Methods from the most accurate to the least."""
    return " > ".join(sorted(means, key=lambda method: -means[method]))


def _minutes(record: Record) -> str:
    return "unknown" if math.isnan(record.seconds) else f"{record.seconds / 60:.0f}"
