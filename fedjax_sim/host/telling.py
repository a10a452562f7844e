"""Reports a run while it goes on: each round to writers, each chunk to `on_progress`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from fedjax_sim.core.history import History
from fedjax_sim.host.driver import WARM_SECONDS, Progress
from fedjax_sim.results.columns import columns, has_value


class Writer(Protocol):
    """A destination of a run's numbers while it runs; `fs.writers` has some."""

    def write(self, round: int, values: Mapping[str, float]) -> None:
        """The scalars of round `round`, counted from 1. After a resume, of saved ones again.

        What has no value there, as a metric that was not evaluated, is left out; a NaN is of a
        run that diverged.
        """

    def close(self) -> None:
        """Everything is written."""


class Teller:
    """Reports each round to the writers and each chunk to `on_progress`, and closes the writers."""

    def __init__(
        self,
        writers: Sequence[Writer],
        on_progress: Callable[[Progress], None] | None,
        num_rounds: int,
    ) -> None:
        self.writers, self.on_progress, self.num_rounds = writers, on_progress, num_rounds
        self.is_warm = False  # whether a chunk's time is that of its rounds alone

    def chunk(self, first: int, rows: History, seconds: float) -> None:
        """Reports the rounds from `first` on; `seconds` is 0 for rounds read from a checkpoint."""
        scalars = {name: x for name, x in columns(rows).items() if x.ndim == 1}
        has = {name: has_value(scalars, name) for name in scalars if name != "evaluated"}
        for i in range(len(rows.evaluated)):
            values = {
                name: float(scalars[name][i]) for name, has_values in has.items() if has_values[i]
            }
            for writer in self.writers:
                writer.write(first + i + 1, values)
        if self.on_progress is not None and seconds:
            self.is_warm = self.is_warm or seconds >= WARM_SECONDS
            progress = progress_of(scalars, first, self.num_rounds, seconds, self.is_warm)
            self.on_progress(progress)
        self.is_warm = self.is_warm or seconds > 0

    def close(self, earlier: BaseException | None = None) -> None:
        """Closes all writers.

        Args:
          earlier: an error, on which those of closing are noted.

        Raises:
          Exception: what closing the first one that fails raises, unless there is an earlier error.
        """
        first = earlier
        for writer in self.writers:
            try:
                writer.close()
            except Exception as error:
                if first is None:
                    first = error
                else:
                    first.add_note(f"{type(writer).__name__}.close() then raised {error!r}")
        if earlier is None and first is not None:
            raise first


def progress_of(
    chunk_columns: Mapping[str, np.ndarray],
    first: int,
    num_rounds: int,
    seconds: float,
    is_warm: bool = True,
) -> Progress:
    """The pace and the latest metrics of a chunk, by its columns [rounds, ...].

    Args:
      is_warm: whether its seconds say how long the rounds to come will take.
    """
    count = len(next(iter(chunk_columns.values())))
    steps = float(np.sum(chunk_columns.get("client_steps", 0)))
    scalars = {name: x for name, x in chunk_columns.items() if x.ndim == 1 and x.dtype.kind == "f"}
    measured = {name: x[has_value(chunk_columns, name)] for name, x in scalars.items()}
    metrics = {name: float(x[-1]) for name, x in measured.items() if len(x)}
    rounds_done = first + count
    return Progress(
        round=rounds_done,
        num_rounds=num_rounds,
        rounds_per_second=count / seconds,
        client_steps_per_second=steps / seconds,
        seconds_left=(num_rounds - rounds_done) * seconds / count
        if is_warm or rounds_done == num_rounds
        else math.nan,
        metrics=metrics,
    )
