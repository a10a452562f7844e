"""A claim, and how its rounds to a target are read from a sweep."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.reproduce.swept import Record, SweptCell, SweptRun
from fedjax_sim.results.targets import rounds_to_target


class Verdict(NamedTuple):
    """What a sweep says of a claim.

    Attributes:
      holds: whether the claim holds, by the claim's `criterion`.
      ours: the figures, in words.
    """

    holds: bool
    ours: str


class Claim(NamedTuple):
    """A claim of a paper.

    Attributes:
      statement: what the paper says, and which paper.
      published: the paper's figures, in words.
      criterion: when ours is said to hold.
      setting: what is run here, in words.
      cell: the sweep, which claims may share.
      judge: reads the sweep's record.
      seconds: about how long it takes, as measured on two cores that others used, too.
    """

    statement: str
    published: str
    criterion: str
    setting: str
    cell: SweptCell
    judge: Callable[[Record], Verdict]
    seconds: float


class Tuned(NamedTuple):
    """The rounds to a target at the best rate.

    Attributes:
      rounds: mean over the seeds; None if at no rate all seeds reach the target.
      best: name -> value of the tuned axes; of the most seeds that reach it, if not all do.
      most: the rounds after which a run ends.
    """

    rounds: float | None
    best: Mapping[str, Any]
    most: int

    def __str__(self) -> str:
        return f"> {self.most}" if self.rounds is None else f"{self.rounds:.0f}"

    @property
    def at_least(self) -> float:
        """The rounds, or infinity where the target is not reached."""
        return float("inf") if self.rounds is None else self.rounds


def tuned(record: Record, target: float, **configuration: Any) -> Tuned:
    """The fewest mean rounds to the target among the runs of this configuration."""
    runs = record.of(**configuration)
    others = {
        tuple((k, v) for k, v in run.configuration.items() if k not in configuration)
        for run in runs
    }
    candidates = []
    for other in sorted(others):
        times = [_reached(run, target) for run in record.of(**configuration, **dict(other))]
        missed = sum(time is None for time in times)
        whole = [time for time in times if time is not None]
        mean = float(np.mean(whole)) if whole else float("inf")
        candidates.append((missed, mean, other))
    missed, mean, best = min(candidates)
    return Tuned(None if missed else mean, dict(best), runs[0].num_rounds)


def _reached(run: SweptRun, target: float) -> float | None:
    return rounds_to_target(run.measured["test_accuracy"], target, run.at)


def last_mean(record: Record, name: str, last: int = 1, **configuration: Any) -> float:
    """A column's mean over the `last` measurements of all runs of this configuration."""
    runs = record.of(**configuration)
    return float(np.mean([run.measured[name][-last:] for run in runs]))
