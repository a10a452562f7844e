"""The records of cells on disk: a JSON file for each cell, replaced after every run.

A record is no results folder: it has the runs of several rates and seeds, each a few numbers, and
is only ever replaced as a whole. So `RunFolder` and `Manifest` do not apply to it. They do to the
folder of the run at hand, `Store.running`, which `racing` opens by them.
"""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedjax_sim.core.files import locked, replace_file, to_json
from fedjax_sim.host.manifest import differences
from fedjax_sim.reproduce.cells import HELD_BACK, Cell, held_back

ESTIMATES = "estimates.json"


class Store:
    """A folder with `cells/NAME.json`, and the checkpoints of the run at hand in `running/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells = folder / "cells"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Locks the folder, and refuses one in which another process is at work.

        Raises:
          ValueError: if there is one.
          OSError: if the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock", f"--out {self.folder} is in use by another process"):
            yield

    def load(self, cell: Cell) -> dict[str, Any] | None:
        """The record of a cell; None if the cell has no run yet.

        Raises:
          ValueError: if it is of another setting, or cannot be read.
        """
        path = self.cells / f"{cell.name}.json"
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read: {error}; remove it, or name another --out"
            ) from error
        identity = json.loads(to_json(identity_of(cell)))
        saved_identity = {name: record.get("what", {}).get(name) for name in identity}
        if differs := differences(saved_identity, identity):
            raise ValueError(f"{path} is of another cell and cannot be resumed: {differs}")
        for run in record["runs"]:  # JSON has no NaN
            for part in (run, run.get("validation", {})):
                part |= {
                    name: math.nan for name in ("best", "seconds") if part.get(name, 0) is None
                }
        return record

    def save(self, cell: Cell, record: dict[str, Any]) -> None:
        """Replaces the record of a cell in one step.

        Raises:
          OSError: if it cannot be written; the one before it is then unchanged.
        """
        self.cells.mkdir(parents=True, exist_ok=True)
        text = to_json({"what": identity_of(cell), **record})
        replace_file(self.cells / f"{cell.name}.json", lambda file: file.write(text))

    def held_back(self, cell: Cell) -> list[Cell]:
        """The cells of `cells.held_back` that have a record here, by their shares."""
        prefix = f"{cell.name}{HELD_BACK}"
        paths = self.cells.glob(f"{prefix}*.json")
        shares = sorted(float(path.stem.removeprefix(prefix)) for path in paths)
        return [held_back(cell, share) for share in shares]

    def running(self, cell: Cell, rate: float, seed: int) -> Path:
        """The folder of a run's checkpoints while it runs."""
        return self.folder / "running" / f"{cell.name}-{rate:.6g}-{seed}"

    def through(self, cell: Cell, rate: float, seed: int) -> None:
        """Removes the checkpoints of a run that is complete."""
        shutil.rmtree(self.running(cell, rate, seed), ignore_errors=True)

    def estimates(self) -> dict[str, float]:
        """Cell -> the seconds that it takes, about, by the last `--estimate` here."""
        path = self.folder / ESTIMATES
        return json.loads(path.read_text()) if path.exists() else {}

    def save_estimates(self, seconds_of: dict[str, float]) -> None:
        """Saves estimates, and keeps those of other cells."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = to_json({**self.estimates(), **seconds_of})
        replace_file(self.folder / ESTIMATES, lambda file: file.write(text))


def identity_of(cell: Cell) -> dict[str, Any]:
    """The values that identify a cell, and that a resume must find the same."""
    return {
        "name": cell.name,
        "setting": cell.setting.identity(),
        "most": cell.most,
        "axis": cell.axis,
        "rates": list(cell.rates),
        "after": cell.after,
    }


def best_run(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The first seed's run that reached the target first, or else the most accurate.

    It is the accuracy on the validation set that counts where there is one.
    """
    first = first_seed(runs)
    reached = [run for run in first if chooses(run)["reached"] is not None]
    if reached:
        return min(reached, key=lambda run: chooses(run)["reached"])

    def accuracy(run: dict[str, Any]) -> float:
        best = float(chooses(run)["best"])
        return best if math.isfinite(best) else -1.0

    return max(first, key=accuracy)


def chooses(run: dict[str, Any]) -> dict[str, Any]:
    """The part of a run by which a rate is chosen: of the validation set if there is one."""
    part: dict[str, Any] = run.get("validation", run)
    return part


def first_seed(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first seed's runs, which choose the rate."""
    return [run for run in runs if run["seed"] == 0]


def best_runs(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a record's best rate, one for each seed."""
    return [run for run in record["runs"] if run["rate"] == record["rate"]]


def mean_rounds(record: dict[str, Any]) -> float | None:
    """The mean rounds to the target over the seeds; None unless all of them reached it."""
    times = [run["reached"] for run in best_runs(record)]
    return None if None in times else sum(times) / len(times)
