"""Federations of one CSV file for each client."""

import csv as reader
import os
from pathlib import Path

import numpy as np

from fedjax_sim.datasets.files import halves
from fedjax_sim.datasets.formats.by_client import Examples, check_task, joined
from fedjax_sim.datasets.types import Dataset


def csv(directory: str | os.PathLike[str], y: str = "y", *, task: str | None = None) -> Dataset:
    """A federation in tables: `train/<client>.csv` and `test/<client>.csv`, of numbers.

    The first line names the columns; one of them is y, and the others are x, Float32[N, features]
    in their order, which is the same in all files. Clients in the natural order of their files'
    names (2 before 10), which are theirs.

    Args:
      directory: what holds train/ and test/.
      y: the column of labels or targets.
      task: "classification" or "regression"; None: labels if every y is a whole number, be it
        written as a float, else a regression.

    Raises:
      FileNotFoundError: if there are no such files.
      ValueError: if one has other columns than the first, no column y, or what is no number; if y
        is not of the task.
    """
    check_task(task)
    first: tuple[Path, list[str]] | None = None
    parts = []
    for files in halves(directory, ".csv"):
        clients: dict[str, Examples] = {}
        for file in files:
            columns, values = _table(file)
            first = first or (file, columns)
            if columns != first[1]:
                raise ValueError(
                    f"{file} must have the columns of {first[0]}, {', '.join(first[1])}; got "
                    f"{', '.join(columns)}"
                )
            if y not in columns or len(columns) < 2:
                raise ValueError(
                    f"{file} must have a column {y} and others beside it; got {', '.join(columns)}"
                )
            place = columns.index(y)
            # The columns x are measurements: as Int32, whole numbers would pass for tokens of text.
            x = np.delete(values, place, axis=1).astype(np.float32)
            clients[file.stem] = (x, values[:, place])
        parts.append(clients)
    return joined(*parts, task=task)


def _table(file: Path) -> tuple[list[str], np.ndarray]:
    """The names of the columns, and Float64[N, columns]."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = [row for row in reader.reader(lines) if row]
    if not rows:
        raise ValueError(f"{file} must have a first line that names its columns; it is empty")
    columns = [name.strip() for name in rows[0]]
    values = np.empty((len(rows) - 1, len(columns)))
    for i, row in enumerate(rows[1:]):
        try:
            numbers = [float(cell) for cell in row]
        except ValueError as error:
            raise ValueError(f"{file} must hold numbers; example {i + 1}: {error}") from None
        if len(numbers) != len(columns):
            raise ValueError(
                f"{file} must hold {len(columns)} numbers a line; example {i + 1} has "
                f"{len(numbers)}"
            )
        values[i] = numbers
    return columns, values
