"""What runs left behind: labelled by configuration, seed and round; as tables and files."""

import csv
import io
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np
from scipy.special import stdtrit

from fedjax_sim.checks import check_number
from fedjax_sim.columns import BYTES, LEDGER, is_evaluated, is_measured
from fedjax_sim.saving import SaveError, reason, replace_file

SUMMARY, TABLE, ROUNDS = "summary.json", "table.csv", "rounds.csv"
FORMAT = 1  # of these files; read by `report`

Scalar = float | int | bool | str | None


class Run(NamedTuple):
    """One configuration and seed.

    Attributes:
      configuration: hyper-parameter -> value.
      seed: its label.
      rounds: column -> [rounds done]; wider arrays [rounds done, ...] are in no table.
      values: column -> one value of the whole run.
      num_rounds: R, the rounds asked for; 1 for a function that is no `fs.Experiment`.
    """

    configuration: dict[str, Any]
    seed: int
    rounds: dict[str, np.ndarray]
    values: dict[str, Scalar]
    num_rounds: int

    @property
    def done(self) -> int:
        """Rounds done."""
        return len(next(iter(self.rounds.values()))) if self.rounds else self.num_rounds

    @property
    def diverged(self) -> bool:
        """Whether an update or a measured value held a NaN or an infinity."""
        if np.any(self.rounds.get("nonfinite", 0)):
            return True
        names = [name for name in self.rounds if is_measured(name)]
        finite = all(np.isfinite(self.measured(name)).all() for name in names)
        return not (finite and all(_is_finite(value) for value in self.values.values()))

    def measured(self, name: str) -> np.ndarray:
        """The column's values after the rounds in which it was measured."""
        column = self.rounds[name]
        evaluated = self.rounds.get("evaluated")
        if evaluated is None or name.startswith("train_") or name in LEDGER:
            return column
        return column[evaluated.astype(bool)]

    def row(self) -> dict[str, Scalar]:
        """One line of the table: the last value of what is measured, the sum of what is spent."""
        found: dict[str, Scalar] = {
            "seed": self.seed,
            "rounds": self.done,
            "complete": self.done == self.num_rounds,
            "diverged": self.diverged,
        }
        for name in self.rounds:
            if is_measured(name) and self.rounds[name].ndim == 1:
                values = self.measured(name)
                found[name] = values[-1].item() if len(values) else None
        for name in ("client_steps", "lane_steps", "examples", "nonfinite"):
            if name in self.rounds:
                found[name] = int(self.rounds[name].sum(dtype=np.int64))
        for name in BYTES:
            if name in self.rounds:
                found[name] = int(self.rounds[name][-1]) if self.done else 0
        if found.get("lane_steps"):
            found["useful_share"] = int(found["client_steps"]) / int(found["lane_steps"])  # type: ignore[arg-type]
        return {**self.configuration, **found, **self.values}


class Mean(NamedTuple):
    """A configuration's mean over its seeds, with a confidence interval of Student's t.

    Attributes:
      configuration: hyper-parameter -> value.
      mean: over the seeds; NaN if one of them has no value.
      low: the lower end of the interval; NaN for one seed.
      high: the upper end.
      seeds: how many.
      diverged: how many of them diverged.
    """

    configuration: dict[str, Any]
    mean: float
    low: float
    high: float
    seeds: int
    diverged: int


@dataclass(frozen=True)
class Results:
    """A table of runs: what `fs.sweep` returns.

    Attributes:
      runs: by configuration, then by seed.
    """

    runs: tuple[Run, ...]

    def table(self) -> list[dict[str, Scalar]]:
        """One row a run."""
        return [run.row() for run in self.runs]

    def long(self) -> list[dict[str, Scalar]]:
        """One row a run and round, numbered from 1; what was not measured there is None."""
        rows: list[dict[str, Scalar]] = []
        for run in self.runs:
            columns = {k: x for k, x in run.rounds.items() if x.ndim == 1 and k != "evaluated"}
            evaluated = run.rounds.get("evaluated")
            for t in range(run.done if columns else 0):
                row: dict[str, Scalar] = {**run.configuration, "seed": run.seed, "round": t + 1}
                for name, column in columns.items():
                    skipped = evaluated is not None and not evaluated[t] and is_evaluated(name)
                    row[name] = None if skipped else column[t].item()
                rows.append(row)
        return rows

    @property
    def metrics(self) -> list[str]:
        """What can be compared: measured columns and values of the whole run."""
        names: dict[str, None] = {}
        for run in self.runs:
            names |= {k: None for k, x in run.rounds.items() if is_measured(k) and x.ndim == 1}
            names |= {k: None for k, x in run.values.items() if not isinstance(x, str)}
        return list(names)

    def mean(self, metric: str, confidence: float = 0.95) -> list[Mean]:
        """The last value of `metric` by configuration, over the seeds.

        `mean +- t_{(1 + confidence) / 2, n - 1} s / sqrt(n)` with the sample's standard deviation
        s of n seeds.

        Raises:
          ValueError: for an unknown metric, or a confidence not in (0, 1).
        """
        self._check_metric(metric)
        check_number("confidence", confidence, lambda x: 0 < x < 1, "in (0, 1)")
        groups: dict[str, list[Run]] = {}
        for run in self.runs:
            groups.setdefault(repr(run.configuration), []).append(run)
        found = []
        for runs in groups.values():
            last = np.array([_number(run.row().get(metric)) for run in runs])
            n, half = len(last), math.nan
            if n > 1:
                with np.errstate(invalid="ignore"):  # of an infinite value there is none
                    deviation = float(last.std(ddof=1))
                half = float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n)
            mean = float(last.mean())
            diverged = sum(run.diverged for run in runs)
            found.append(Mean(runs[0].configuration, mean, mean - half, mean + half, n, diverged))
        return found

    def best(self, metric: str, *, lowest: bool = False) -> Mean:
        """The configuration with the highest (or lowest) mean; those that diverged lose.

        Raises:
          ValueError: for an unknown metric, or if every configuration diverged.
        """
        means = [mean for mean in self.mean(metric) if math.isfinite(mean.mean)]
        if not means:
            raise ValueError(f"no configuration has a finite {metric}: all diverged")
        return (min if lowest else max)(means, key=lambda mean: mean.mean)

    def to_csv(self, path: str | Path, *, long: bool = False) -> None:
        """Writes the table, or with `long` a line a round, whole or not at all."""
        rows = self.long() if long else self.table()
        replace_file(Path(path), lambda file: _write_csv(file, rows))

    def to_parquet(self, path: str | Path, *, long: bool = False) -> None:
        """As `to_csv`, in Parquet; needs pyarrow (the `tables` extra)."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError("to_parquet needs pyarrow: pip install fedjax-sim[tables]") from error
        rows = self.long() if long else self.table()
        names = _names(rows)
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
        replace_file(Path(path), lambda file: pyarrow.parquet.write_table(table, file))

    def to_pandas(self, *, long: bool = False) -> Any:
        """The table as a pandas DataFrame; needs pandas (the `tables` extra)."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install fedjax-sim[tables]") from error
        return pandas.DataFrame(self.long() if long else self.table())

    def save(self, folder: str | Path, summary: Mapping[str, Any]) -> tuple[str, ...]:
        """Writes summary.json, table.csv and rounds.csv, each whole or not at all.

        Args:
          summary: what else is to be known, JSON-able; `kind`, `configuration` and `score` are
            read by `fedjax-sim report`.

        Raises:
          SaveError: saying which of them were not written, and why.
        """
        folder = Path(folder)
        labels = [{**run.configuration, **run.values} for run in self.runs]
        said = {
            "format": FORMAT,
            "complete": all(run.done == run.num_rounds for run in self.runs),
            "axes": sorted({name for run in self.runs for name in run.configuration}),
            # What a CSV does not tell: columns of text alone, where "1e-3" is no number.
            "text": sorted(name for name in _names(labels) if _is_text(labels, name)),
            "versions": versions(),
            **summary,
        }
        lost = [TABLE, ROUNDS, SUMMARY]
        try:
            self.to_csv(folder / TABLE)
            lost.remove(TABLE)
            self.to_csv(folder / ROUNDS, long=True)
            lost.remove(ROUNDS)
            replace_file(folder / SUMMARY, lambda file: file.write(to_json(said)))
        except SaveError as error:
            raise SaveError(
                f"not written in {folder}: {', '.join(lost)} ({reason(error)})"
            ) from error
        return SUMMARY, TABLE, ROUNDS

    def _check_metric(self, metric: str) -> None:
        if metric not in self.metrics:
            raise ValueError(f"metric must be one of {', '.join(self.metrics)}; got {metric!r}")


def _is_finite(value: Scalar) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _number(value: Scalar) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def versions() -> dict[str, str]:
    """What made a result: packages, Python, machine."""
    packages = ("fedjax-sim", "jax", "jaxlib", "flax", "optax", "numpy")
    device = jax.devices()[0]
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": f"{device.platform} ({device.device_kind})",
    }


def to_json(value: Any) -> bytes:
    """JSON text; it has no NaN and no infinity: null."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): clean(x) for key, x in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(x) for x in value]
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)

    return (json.dumps(clean(value), indent=2) + "\n").encode()


def _is_text(rows: Sequence[Mapping[str, Scalar]], name: str) -> bool:
    """Whether all that is in the column is text."""
    cells = [row.get(name) for row in rows]
    known = [cell for cell in cells if cell is not None]
    return bool(known) and all(isinstance(cell, str) for cell in known)


def _names(rows: Sequence[Mapping[str, Scalar]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _write_csv(file: IO[bytes], rows: Sequence[Mapping[str, Scalar]]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, _names(rows), restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if x is None else x for k, x in row.items()})
    text.detach()
