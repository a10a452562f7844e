"""Progress while a command runs, and the tables that it prints afterwards."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from fedjax_sim.core.words import span_of
from fedjax_sim.host import driver
from fedjax_sim.results import Mean, ranked
from fedjax_sim.sweeps import Swept

_NARROWEST = 76  # columns that a table needs
_MOST = 40  # rows that a table has at most
_BAR = 16  # columns of a bar


def console(quiet: bool = False) -> Console:
    """Standard output, wide enough for a table; or nowhere, of a process that does not write."""
    wide = Console(highlight=False, quiet=quiet)
    wide.width = max(wide.width, _NARROWEST)
    return wide


Update = Callable[..., None]  # (done, left, parts, phase="", within=0.0), as `_bar` says


@contextmanager
def _bar(unit: str, total: int) -> Iterator[Update]:
    """A bar on a terminal, on standard error; elsewhere a line for each tenth or new phase.

    It yields a function of (done, left, parts, phase, within): how many units are done, the time
    left in words, further words with the most important first, the phase of the work, and the
    share of the next unit that is done. A terminal's line holds the bar, the count, the time left,
    and as many of the parts as there is room for.
    """
    to = Console(stderr=True, highlight=False)
    if not to.is_terminal:
        last_state: tuple[str, int, int] = ("", -1, 0)

        def tell(
            done: int, left: str, parts: Sequence[str], phase: str = "", within: float = 0.0
        ) -> None:
            nonlocal last_state
            count = f"{done} of {total} {unit}"
            state = (phase, 10 * done // total, int(10 * within))
            if state != last_state:
                last_state = state
                to.print(", ".join(part for part in (count, left, *parts) if part), soft_wrap=True)

        yield tell
        return
    columns = (
        BarColumn(_BAR),
        TextColumn("{task.fields[line]}", table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=to, transient=True) as progress:
        task = progress.add_task("", total=total, line="compiling")

        def update(
            done: int, left: str, parts: Sequence[str], phase: str = "", within: float = 0.0
        ) -> None:
            # The width is asked for anew because a window may be resized; each of the two columns
            # is followed by one space.
            line = fitted(f"{done}/{total} {unit}", left, parts, to.width - _BAR - 2)
            progress.update(task, completed=done, line=escape(line))

        yield update


def fitted(count: str, left: str, parts: Sequence[str], width: int) -> str:
    """A line no wider than `width`: count and time left, and the first parts that fit whole.

    >>> fitted("22/200 rounds", "7 s left", ["accuracy 0.91", "loss 0.4"], 40)
    '22/200 rounds, 7 s left, accuracy 0.91'
    """
    line = ", ".join(part for part in (count, left) if part)
    for part in parts:
        if len(line) + 2 + len(part) > width:
            break
        line += f", {part}"
    return line[:width]


@contextmanager
def run_progress(
    num_rounds: int, score: str, is_shown: bool = True
) -> Iterator[Callable[[driver.Progress], None]]:
    """Yields what `fs.simulate` takes as `on_progress`: it shows rounds, scores and the pace."""
    if not is_shown:  # of a process that does not write
        yield lambda progress: None
        return
    with _bar("rounds", num_rounds) as update:

        def tell(progress: driver.Progress) -> None:
            shown = [x for x in dict.fromkeys((score, "train_loss")) if x in progress.metrics]
            parts = [f"{name} {progress.metrics[name]:.3f}" for name in shown]
            pace = f"{progress.rounds_per_second:.3g} rounds/s"
            update(
                progress.round,
                left(progress.seconds_left),
                [*parts, pace, steps(progress.client_steps_per_second)],
            )

        yield tell


@contextmanager
def sweep_progress(num_runs: int) -> Iterator[Callable[[Swept], None]]:
    """Yields what `fs.sweep` takes as `on_progress`: it shows the runs that are done."""
    with _bar("runs", num_runs) as update:

        def tell(progress: Swept) -> None:
            parts = [progress.says] if progress.says else []
            pace = steps(progress.client_steps_per_second)
            update(progress.runs, left(progress.seconds_left), [*parts, pace], progress.says)

        yield tell


@contextmanager
def cells_progress(
    num_cells: int,
) -> Iterator[tuple[Callable[[Any, float, int, driver.Progress], None], Callable[[Any], None]]]:
    """Yields two functions: one shows the progress of a race's run, one counts a finished cell."""
    with _bar("cells", max(num_cells, 1)) as update:
        count = 0

        def tell(cell: Any, rate: float, seed: int, progress: driver.Progress) -> None:
            score = progress.metrics.get(cell.setting.score)
            run_parts = [cell.name, f"rate {rate:.3g}", f"seed {seed}"]
            parts = [
                *run_parts,
                f"round {progress.round}",
                *([] if score is None else [f"{score:.4f}"]),
            ]
            parts.append(f"{progress.rounds_per_second:.3g} rounds/s")
            update(count, "", parts, ", ".join(run_parts), progress.round / progress.num_rounds)

        def cell_done(cell: Any) -> None:
            nonlocal count
            count += 1

        yield tell, cell_done


def steps(a_second: float) -> str:
    """Local steps a second, of all clients.

    >>> steps(12345.6), steps(0.12)
    ('12,346 client steps/s', '0.12 client steps/s')
    """
    number = f"{a_second:,.0f}" if a_second >= 10 else f"{a_second:.2g}"
    return f"{number} client steps/s"


def left(seconds: float) -> str:
    """The time left, in words; empty while it is not known.

    >>> left(61.3), left(math.nan)
    ('about 61 s left', '')
    """
    return "" if math.isnan(seconds) else f"about {span_of(seconds)} left"


def value(x: Any) -> str:
    """A value of a table."""
    if isinstance(x, float):
        return "" if math.isnan(x) else f"{x:.4g}"
    return "" if x is None else str(x)


def interval(mean: Mean) -> str:
    """A mean and half of its interval, where that is known.

    >>> interval(Mean({}, 0.9, 0.8, 1.0, 3, 0)), interval(Mean({}, 0.9, math.nan, math.nan, 1, 0))
    ('0.9000 ± 0.1000', '0.9000')
    """
    half = "" if math.isnan(mean.low) else f" ± {mean.high - mean.mean:.4f}"
    return f"{mean.mean:.4f}{half}" if math.isfinite(mean.mean) else "-"


def means(
    all_means: list[Mean], metric: str, lowest: bool, more_columns: Mapping[str, list[str]]
) -> tuple[Table, int]:
    """The table of configurations, the best first, and how many more than its rows there are.

    Args:
      more_columns: heading -> a cell for each of `all_means`.
    """
    order = ranked(all_means, lowest)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = list(all_means[0].configuration)
    for name in ["", *names, metric, "95 % CI", "seeds", *more_columns]:
        table.add_column(name, justify="right", overflow="fold")
    for i in order[:_MOST]:
        mean = all_means[i]
        best = i == order[0] and mean.competes
        interval = "" if math.isnan(mean.low) else f"± {mean.high - mean.mean:.4f}"
        score = f"{mean.mean:.4f}" if math.isfinite(mean.mean) else "-"
        if mean.diverged:
            score += f" DIVERGED ({mean.diverged} of {mean.seeds})"
        table.add_row(
            "best" if best else "",
            *(value(mean.configuration[name]) for name in names),
            score,
            interval,
            str(mean.seeds),
            *(cells[i] for cells in more_columns.values()),
            style="bold" if best else None,
        )
    return table, max(0, len(all_means) - _MOST)
