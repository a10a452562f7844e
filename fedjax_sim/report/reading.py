"""Results folders read back: runs as they were, with typed values."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.results import FORMAT, ROUNDS, SUMMARY, TABLE, Results, Run, Scalar
from fedjax_sim.results.clients import Clients
from fedjax_sim.results.clients import read as read_clients
from fedjax_sim.results.columns import has_value, is_evaluated
from fedjax_sim.results.folder import CLIENTS, RunFolder

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,99})")
_NUMBER = re.compile(r"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?|nan|-?inf")

# What `Run.row` derives from the columns.
_DERIVED = frozenset(("seed", "rounds", "complete", "diverged", "useful_share"))


class Folder(NamedTuple):
    """The contents of a results folder.

    Attributes:
      path: the folder.
      summary: the object in summary.json.
      results: its runs, without arrays that are too wide for a table.
      clients: final values of each client of a run; None where it has none.
    """

    path: Path
    summary: dict[str, Any]
    results: Results
    clients: Clients | None = None

    @property
    def kind(self) -> str:
        """The command that made it: run, sweep or compare."""
        return str(self.summary.get("kind") or "results")

    @property
    def configuration(self) -> dict[str, Any]:
        """The settings that all its runs share."""
        return _mapping(self.summary.get("configuration"))

    @property
    def versions(self) -> dict[str, Any]:
        """The packages, the Python and the machine that made it."""
        return _mapping(self.summary.get("versions"))


def load(folder: str | Path) -> Folder:
    """Reads summary.json, table.csv and rounds.csv.

    A cell is read as None, a boolean, a whole number, a number or else as text. The summary names
    the axes and values that hold only text, and their cells stay text.

    Raises:
      ValueError: for a folder without results, of another format, or with files that are broken
        or do not belong together.
    """
    folder = Path(folder)
    if not folder.is_dir():
        reason = "is a file, and no results folder" if folder.exists() else "is not there"
        raise ValueError(f"{folder} {reason}")
    if missing := RunFolder(folder).missing():
        raise ValueError(
            f"{folder} holds no results: {', '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} missing"
        )
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / SUMMARY} is broken: {error}") from error
    if not isinstance(summary, dict):
        raise ValueError(f"{folder / SUMMARY} is broken: it is no JSON object")
    if summary.get("format") != FORMAT:
        raise ValueError(
            f"{folder / SUMMARY} must have format {FORMAT}; got {summary.get('format')!r}"
        )
    of_clients = folder / CLIENTS
    clients = read_clients(of_clients) if of_clients.is_file() else None
    return Folder(folder, summary, Results(_runs(folder, summary)), clients)


def value(cell: str) -> Scalar:
    """The value of a table's cell.

    >>> [value(cell) for cell in ("", "True", "3", "1e-3", "nan", "adam", "007")]
    [None, True, 3, 0.001, nan, 'adam', '007']
    """
    if cell == "":
        return None
    if cell in ("True", "False"):
        return cell == "True"
    if _WHOLE.fullmatch(cell):
        return int(cell)
    leading_zero = re.match(r"-?0[0-9]", cell)
    return float(cell) if _NUMBER.fullmatch(cell) and not leading_zero else cell


def _runs(folder: Path, summary: dict[str, Any]) -> tuple[Run, ...]:
    names, table = _rows(folder / TABLE)
    columns, lines = _rows(folder / ROUNDS)
    named_axes = summary.get("axes")
    axes = [name for name in names if name in (named_axes if isinstance(named_axes, list) else ())]
    lacking = [name for name in ("seed", "rounds", "complete") if name not in names]
    if lacking or not table:
        raise ValueError(f"{folder / TABLE} is broken: it has no {', '.join(lacking) or 'runs'}")
    if lines and not {*axes, "seed", "round"} <= set(columns):
        raise ValueError(f"{folder / ROUNDS} is broken: it has no axes, seed and round")
    measured = [name for name in columns if name not in (*axes, "seed", "round")]
    runs, place = [], 0
    for row in table:
        labels = [row[name] for name in (*axes, "seed")]
        lines_of_run: list[dict[str, str]] = []
        while place < len(lines):
            line = lines[place]
            if [line[name] for name in (*axes, "seed")] != labels:
                break
            if line["round"] != str(len(lines_of_run) + 1):
                break
            lines_of_run.append(line)
            place += 1
        if lines_of_run and str(len(lines_of_run)) != row["rounds"]:
            place = -1
            break
        runs.append(_run(folder, row, axes, measured, lines_of_run, summary))
    if place != len(lines):
        raise ValueError(
            f"{folder}: {TABLE} and {ROUNDS} do not belong together, as when a run is killed "
            "while it saves; resume it, and it saves both again"
        )
    return tuple(runs)


def _run(
    folder: Path,
    row: dict[str, str],
    axes: Sequence[str],
    measured: Sequence[str],
    lines: Sequence[dict[str, str]],
    summary: dict[str, Any],
) -> Run:
    rounds: dict[str, np.ndarray] = {}
    written: dict[str, np.ndarray] = {}  # where a column has a cell
    for name in measured if lines else ():
        cells = [value(line[name]) for line in lines]
        if any(isinstance(cell, str) for cell in cells):
            raise ValueError(f"{folder / ROUNDS} is broken: {name} must be numbers")
        rounds[name] = np.array([math.nan if cell is None else cell for cell in cells])
        written[name] = np.array([cell is not None for cell in cells])
    # A column in which this run has no cell at all belongs to other runs and is dropped. It is kept
    # if it is a column of evaluation and this run was never evaluated, or if it is another one that
    # is empty because this run aggregated nothing.
    evaluated = [name for name in rounds if is_evaluated(name)]
    was_evaluated = any(written[name].any() for name in evaluated)
    columns = {name: column for name, column in rounds.items() if written[name].any()}
    for name in [name for name in rounds if name not in columns]:
        alone = {**columns, name: rounds[name]}
        if was_evaluated if name in evaluated else has_value(alone, name).any():
            del rounds[name]
    if evaluated:
        rounds["evaluated"] = np.any([written[name] for name in evaluated], axis=0)
    texts = summary.get("text")

    def label(name: str) -> Scalar:
        is_text = isinstance(texts, list) and name in texts
        return (row[name] or None) if is_text else value(row[name])

    values = {
        name: label(name)
        for name in row
        if name not in _DERIVED and name not in axes and name not in measured
    }
    seed, num_done = value(row["seed"]), value(row["rounds"])
    if type(seed) is not int or type(num_done) is not int:
        raise ValueError(f"{folder / TABLE} is broken: seed and rounds must be whole numbers")
    num_rounds = (
        num_done if row["complete"] == "True" else max(num_done + 1, _rounds_asked(summary))
    )
    configuration = {name: label(name) for name in axes}
    run = Run(configuration, seed, rounds, values, num_rounds)
    # The first versions counted the NaN of a round in which nobody trained as divergence, and wrote
    # it to the table. A run that is marked as diverged for such a NaN alone has not diverged.
    explained = any(written[name][~run.has(name)].any() for name in {*written} & {*rounds})
    if row.get("diverged") == "True" and not run.diverged and not explained:
        # An array that is in no table made the run diverge. A column of NaN stands for it here.
        rounds["in_no_table"] = np.full((max(len(lines), 1), 1), math.nan)
    return run


def _rounds_asked(summary: dict[str, Any]) -> int:
    configuration = _mapping(summary.get("configuration"))
    numbers = [configuration.get(name) for name in ("rounds", "num_rounds")]
    return max((x for x in numbers if type(x) is int), default=0)


def _rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """A file's header and lines."""
    try:
        text = path.read_text(encoding="utf-8")
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is broken: {error}") from error
    header = lines[0] if lines else []
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            raise ValueError(
                f"{path} is broken: line {number} has {len(line)} cells of {len(header)}"
            )
    return header, [dict(zip(header, line, strict=True)) for line in lines[1:]]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
