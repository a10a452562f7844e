"""Cells that are one sweep each: configurations times seeds, after a fixed number of rounds.

While it runs, a sweep's folder is `swept/NAME`, as `fs.sweep` keeps it. A sweep that is complete
leaves the record `cells/NAME.json`, what was measured of each run, and its folder is removed.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from fedjax_sim.core.files import replace_file, to_json
from fedjax_sim.core.versions import versions
from fedjax_sim.host.manifest import differences
from fedjax_sim.results import Run
from fedjax_sim.results.folder import SWEEP, RunFolder
from fedjax_sim.sweeps import Swept, sweep


class SweptCell(NamedTuple):
    """One sweep.

    Attributes:
      name: unique within all tables.
      experiment: of a configuration, as `fs.sweep` takes it.
      grid: name -> values.
      columns: the measurements that its record keeps.
      facts: JSON-able values that identify what is swept, which a resume must find the same.
      seeds: how many seeds it has; None for as many as are asked for.
    """

    name: str
    experiment: Callable[..., Any]
    grid: Mapping[str, Sequence[Any]]
    columns: tuple[str, ...]
    facts: Mapping[str, Any]
    seeds: int | None = None


class SweptRun(NamedTuple):
    """What is kept of a run.

    Attributes:
      configuration: axis -> value.
      seed: the key's.
      num_rounds: R.
      at: Int[n], the rounds after which it was measured.
      measured: column -> [n].
    """

    configuration: Mapping[str, Any]
    seed: int
    num_rounds: int
    at: np.ndarray
    measured: Mapping[str, np.ndarray]


class Record(NamedTuple):
    """A sweep that is complete.

    Attributes:
      runs: of all configurations and seeds.
      seconds: that it took; NaN if it was interrupted.
      made_by: versions and device, by name.
    """

    runs: tuple[SweptRun, ...]
    seconds: float
    made_by: Mapping[str, str]

    def of(self, **configuration: Any) -> list[SweptRun]:
        """The runs whose configuration has these values."""
        return [
            run
            for run in self.runs
            if all(run.configuration[name] == value for name, value in configuration.items())
        ]

    @property
    def seeds(self) -> int:
        """How many seeds it has."""
        return len({run.seed for run in self.runs})


def num_runs(cell: SweptCell, seeds: int) -> int:
    """The configurations of its grid times its seeds, or the seeds that are asked for.

    >>> num_runs(SweptCell("any", print, {"q": [0.0, 1.0], "rate": [1, 2, 3]}, (), {}), 2)
    12
    """
    return math.prod(len(values) for values in cell.grid.values()) * (cell.seeds or seeds)


def is_through(cell: SweptCell, out: Path, seeds: int) -> bool:
    """Whether the sweep is complete, with at least so many seeds.

    Raises:
      ValueError: if it is complete with fewer seeds, because a sweep cannot be extended; if its
        record is of something else.
    """
    record = load(cell, out)
    if record is None:
        return False
    if record.seeds < (cell.seeds or seeds):
        raise ValueError(
            f"{_path(cell, out)} holds runs of {record.seeds} seeds, and is not given more; got "
            f"--seeds {seeds}; name another --out"
        )
    return True


def run(
    cell: SweptCell, out: Path, seeds: int, mesh: Mesh | None, tell: Callable[[Swept], None]
) -> bool:
    """Runs or resumes the sweep, and writes its record; returns whether it is complete.

    Raises:
      ValueError: if the folder is of another sweep.
      OSError: if it cannot be written.
    """
    folder = out / "swept" / cell.name
    is_resumed = RunFolder(folder).holds(SWEEP)
    start = time.perf_counter()
    results = sweep(
        cell.experiment,
        cell.grid,
        range(cell.seeds or seeds),
        out=folder,
        resume=is_resumed,
        mesh=mesh,
        on_progress=tell,
        configuration=_identity(cell),
    )
    seconds = math.nan if is_resumed else time.perf_counter() - start
    done = sum(each.done == each.num_rounds for each in results.runs)
    if done < num_runs(cell, seeds):
        return False
    _save(cell, out, results.runs, seconds)
    shutil.rmtree(folder, ignore_errors=True)
    return True


def load(cell: SweptCell, out: Path) -> Record | None:
    """The record of a sweep; None if it is not complete.

    Raises:
      ValueError: if it is of another sweep, or cannot be read.
    """
    path = _path(cell, out)
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}; remove it, or name another --out"
        ) from error
    identity = json.loads(to_json(_identity(cell)))
    if differs := differences(saved.get("what", {}), identity):
        raise ValueError(f"{path} is of another cell: {differs}; name another --out")
    runs = tuple(
        SweptRun(
            row["configuration"],
            row["seed"],
            row["num_rounds"],
            np.array(row["at"], int),
            # JSON has no NaN.
            {name: np.array(values, float) for name, values in row["measured"].items()},
        )
        for row in saved["runs"]
    )
    seconds = math.nan if saved["seconds"] is None else saved["seconds"]
    return Record(runs, seconds, saved["made_by"])


def _save(cell: SweptCell, out: Path, runs: Sequence[Run], seconds: float) -> None:
    rows = [
        {
            "configuration": run.configuration,
            "seed": run.seed,
            "num_rounds": run.num_rounds,
            "at": (np.flatnonzero(run.has(cell.columns[0])) + 1).tolist(),
            "measured": {name: _digits(run.measured(name)) for name in cell.columns},
        }
        for run in runs
    ]
    head = {"what": _identity(cell), "made_by": versions(), "seconds": seconds}
    fields = [f'"{name}": {_line(value)}' for name, value in head.items()]
    fields.append('"runs": [\n' + ",\n".join(map(_line, rows)) + "\n]")
    text = "{\n" + ",\n".join(fields) + "\n}\n"  # a line for each run, for whoever reads changes
    path = _path(cell, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: file.write(text.encode()))


def _line(value: Any) -> str:
    return json.dumps(json.loads(to_json({"value": value}))["value"])


def _digits(values: np.ndarray) -> list[float]:
    """Six significant digits, about what float32 has."""
    return [float(f"{value:.6g}") for value in values]


def _identity(cell: SweptCell) -> dict[str, Any]:
    """The values that identify a cell, and that a resume must find the same."""
    return {"command": "reproduce", "cell": cell.name, **cell.facts}


def _path(cell: SweptCell, out: Path) -> Path:
    return out / "cells" / f"{cell.name}.json"
