"""The progress that a sweep reports, and its pace."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax_sim.core.notebook import card, words
from fedjax_sim.host.driver import WARM_SECONDS
from fedjax_sim.sweeps.checks import label_of
from fedjax_sim.sweeps.plan import Group


class Swept(NamedTuple):
    """The progress of a sweep, reported after each chunk.

    Attributes:
      runs: runs (configurations times seeds) that are complete.
      num_runs: all runs.
      client_steps_per_second: of this chunk; 0 if the outputs have no `client_steps`.
      seconds_left: at the pace so far, without the compilation of further groups; NaN while no
        pace is known, after a first chunk that was short.
      says: the static values of the current batch, in words.
    """

    runs: int
    num_runs: int
    client_steps_per_second: float
    seconds_left: float
    says: str

    def __repr__(self) -> str:
        return f"Swept({words(self._facts())})"

    def _repr_html_(self) -> str:
        return card("Sweep", self._facts())

    def _facts(self) -> dict[str, Any]:
        return {
            "runs": f"{self.runs:,} of {self.num_runs:,}",
            "client steps a second": self.client_steps_per_second,
            "seconds left": self.seconds_left,
            **({"at work": self.says} if self.says else {}),
        }


class Teller:
    """Measures the pace of a sweep, and reports it with the progress."""

    def __init__(self, on_progress: Callable[[Swept], None] | None, num_runs: int) -> None:
        self.on_progress, self.num_runs = on_progress, num_runs
        self.before, self.worked, self.seconds, self.partly = 0, 0.0, 0.0, 0.0
        self.is_warm = False  # whether a chunk's time is that of its rounds alone

    def chunk(
        self, group: Group, new: int, runs: int, share: float, steps: float, seconds: float
    ) -> None:
        """Reports a chunk of a batch of `runs` runs, of which `new` are not padding."""
        fresh = new * share - self.partly
        self.partly = new * share
        if not seconds:
            return
        if self.is_warm or seconds >= WARM_SECONDS:
            self.worked, self.seconds = self.worked + fresh, self.seconds + seconds
        self.is_warm = True
        if self.on_progress is not None:
            left = max(self.num_runs - self.before - self.partly, 0.0)
            pace = self.seconds / self.worked if self.worked else math.nan
            says = ", ".join(f"{name}={label_of(value)}" for name, value in group.static.items())
            self.on_progress(
                Swept(
                    runs=min(self.before + int(self.partly), self.num_runs),
                    num_runs=self.num_runs,
                    client_steps_per_second=steps * new / runs / seconds,
                    seconds_left=left * pace if left else 0.0,
                    says=says,
                )
            )

    def through(self, runs: int) -> None:
        self.before, self.partly = runs, 0.0
