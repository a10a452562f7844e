"""The results of one run, a configuration's mean over its seeds, and the order of such means."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core.reprs import fields_of
from fedjax_sim.results.columns import BYTES, SECONDS, has_value, is_measured

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

    def __repr__(self) -> str:
        return fields_of(self)

    @property
    def done(self) -> int:
        """Rounds done."""
        return len(next(iter(self.rounds.values()))) if self.rounds else self.num_rounds

    @property
    def diverged(self) -> bool:
        """Whether an update or a measured value held a NaN or an infinity.

        A missing value is no divergence: the clients' loss in a round in which nobody trained, a
        metric of a client without examples, the rounds to a target that was not reached.
        """
        if np.any(self.rounds.get("nonfinite", 0)):
            return True
        names = [name for name in self.rounds if is_measured(name)]
        finite = all(_all_finite(self.measured(name)) for name in names)
        values = [x for name, x in self.values.items() if not name.startswith("rounds_to")]
        return not (finite and all(_is_finite(value) for value in values))

    def has(self, name: str) -> np.ndarray:
        """Whether the column has a value after each round, Bool[rounds done]."""
        return has_value(self.rounds, name)

    def measured(self, name: str) -> np.ndarray:
        """The column's values after the rounds in which it has one."""
        return self.rounds[name][self.has(name)]

    def row(self) -> dict[str, Scalar]:
        """One line of the table: the last value of each measurement, the sum of each cost."""
        cells: dict[str, Scalar] = {
            "seed": self.seed,
            "rounds": self.done,
            "complete": self.done == self.num_rounds,
            "diverged": self.diverged,
        }
        for name in self.rounds:
            if is_measured(name) and self.rounds[name].ndim == 1:
                values = self.measured(name)
                cells[name] = values[-1].item() if len(values) else None
        for name in ("client_steps", "lane_steps", "examples", "nonfinite"):
            if name in self.rounds:
                cells[name] = int(self.rounds[name].sum(dtype=np.int64))
        for name in BYTES:
            if name in self.rounds:
                cells[name] = int(self.rounds[name][-1]) if self.done else 0
        if SECONDS in self.rounds:
            cells[SECONDS] = float(self.rounds[SECONDS][-1]) if self.done else 0.0
        if cells.get("lane_steps"):
            # Sums of the ledger, which are integers; a row's cells may be text.
            cells["useful_share"] = int(cells["client_steps"]) / int(cells["lane_steps"])  # type: ignore[arg-type]
        return {**self.configuration, **cells, **self.values}


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

    @property
    def competes(self) -> bool:
        """Whether it can be the best: all seeds have a value and none diverged."""
        return math.isfinite(self.mean) and not self.diverged


def ranked(means: Sequence[Mean], lowest: bool) -> list[int]:
    """Their indices, the best first: those that compete, the diverged, those without a finite mean.

    >>> ranked([Mean({}, m, m, m, 2, lost) for m, lost in ((0.9, 1), (0.5, 0), (0.7, 0))], False)
    [2, 1, 0]
    """

    def place(i: int) -> tuple[bool, bool, float]:
        mean = means[i]
        is_finite = math.isfinite(mean.mean)
        value = mean.mean if lowest else -mean.mean
        return not is_finite, bool(mean.diverged), value if is_finite else 0.0

    return sorted(range(len(means)), key=place)


def _all_finite(measured: np.ndarray) -> bool:
    """Whether all values are finite; of several columns, those that are always NaN are left out."""
    if measured.ndim > 1:
        never = np.isnan(measured).all(axis=0)
        measured = measured[:, ~never] if not never.all() else measured
    return bool(np.isfinite(measured).all())


def _is_finite(value: Scalar) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
