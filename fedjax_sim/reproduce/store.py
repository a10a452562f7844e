"""What is known of each cell, on disk: one JSON file a cell, written after every run."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedjax_sim.core.files import replace_file, to_json
from fedjax_sim.host.manifest import differences
from fedjax_sim.reproduce.cells import Cell

ESTIMATES = "estimates.json"


class Store:
    """A folder: `cells/NAME.json`, and the checkpoints of the run at hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells = folder / "cells"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Refuses a folder in which another process is at work.

        Raises:
          ValueError: if there is one.
          OSError: if the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            held = lock.acquire()
        except Timeout as error:
            raise ValueError(f"--out {self.folder} is in use by another process") from error
        with held:
            yield

    def load(self, cell: Cell) -> dict[str, Any] | None:
        """The record of a cell; None if it was not begun.

        Raises:
          ValueError: if it is of another setting, or cannot be read.
        """
        path = self.cells / f"{cell.name}.json"
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read: {error}; remove it, or name another --out"
            ) from error
        here = json.loads(to_json(what(cell)))
        there = {name: found.get("what", {}).get(name) for name in here}
        if differs := differences(there, here):
            raise ValueError(f"{path} is of another cell and cannot be resumed: {differs}")
        for one in found["runs"]:  # JSON has no NaN
            one |= {name: math.nan for name in ("best", "seconds") if one.get(name, 0) is None}
        return found

    def save(self, cell: Cell, record: dict[str, Any]) -> None:
        """Replaces the record of a cell in one step.

        Raises:
          OSError: if it cannot be written; the one before it is as it was.
        """
        self.cells.mkdir(parents=True, exist_ok=True)
        text = to_json({"what": what(cell), **record})
        replace_file(self.cells / f"{cell.name}.json", lambda file: file.write(text))

    def running(self, cell: Cell, rate: float, seed: int) -> Path:
        """Where the checkpoints of a run are while it runs."""
        return self.folder / "running" / f"{cell.name}-{rate:.6g}-{seed}"

    def through(self, cell: Cell, rate: float, seed: int) -> None:
        """Removes them."""
        shutil.rmtree(self.running(cell, rate, seed), ignore_errors=True)

    def estimates(self) -> dict[str, float]:
        """Cell -> about the seconds that it takes, as last measured here."""
        path = self.folder / ESTIMATES
        return json.loads(path.read_text()) if path.exists() else {}

    def save_estimates(self, found: dict[str, float]) -> None:
        """Keeps them beside those of other cells."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = to_json({**self.estimates(), **found})
        replace_file(self.folder / ESTIMATES, lambda file: file.write(text))


def what(cell: Cell) -> dict[str, Any]:
    """What a record is of, to be found the same by a resume."""
    return {
        "name": cell.name,
        "setting": cell.setting.values(),
        "most": cell.most,
        "axis": cell.axis,
        "rates": list(cell.rates),
        "after": cell.after,
    }


def best_runs(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a record's best rate, one a seed."""
    return [one for one in record["runs"] if one["rate"] == record["rate"]]


def mean_rounds(record: dict[str, Any]) -> float | None:
    """The mean over the seeds; None unless all of them reached the target."""
    times = [one["reached"] for one in best_runs(record)]
    return None if None in times else sum(times) / len(times)
