"""What is shown while it runs, and the tables behind it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from fedjax_sim.host import driver
from fedjax_sim.results import Mean, ranked
from fedjax_sim.sweeps import Swept

_NARROWEST = 76  # columns that a table needs
_MOST = 40  # rows of one
_BAR = 16  # columns of a bar


def console() -> Console:
    """Standard output, wide enough for a table."""
    made = Console(highlight=False)
    made.width = max(made.width, _NARROWEST)
    return made


Update = Callable[..., None]  # (done, left, parts, phase="", within=0.0), as `_bar` says


@contextmanager
def _bar(unit: str, total: int) -> Iterator[Update]:
    """A bar on a terminal, on standard error; elsewhere a line for each tenth or new phase.

    What it gives is told how many are done, the time left in words, what else there is to say with
    what matters most first, what is at work, and the share of the next unit that is done. A
    terminal's line holds the bar, the count, the time left, and as many of the other parts as there
    is room for.
    """
    to = Console(stderr=True, highlight=False)
    if not to.is_terminal:
        told: tuple[str, int, int] = ("", -1, 0)

        def tell(
            done: int, left: str, parts: Sequence[str], phase: str = "", within: float = 0.0
        ) -> None:
            nonlocal told
            count = f"{done} of {total} {unit}"
            now = (phase, 10 * done // total, int(10 * within))
            if now != told:
                told = now
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
            # The width may change while it runs. Each column has one space behind it.
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
def run_progress(num_rounds: int, score: str) -> Iterator[Callable[[driver.Progress], None]]:
    """What `fs.simulate` tells of a run."""
    with _bar("rounds", num_rounds) as update:

        def tell(now: driver.Progress) -> None:
            shown = [x for x in dict.fromkeys((score, "train_loss")) if x in now.metrics]
            parts = [f"{name} {now.metrics[name]:.3f}" for name in shown]
            pace = f"{now.rounds_per_second:.3g} rounds/s"
            update(
                now.round,
                left(now.seconds_left),
                [*parts, pace, steps(now.client_steps_per_second)],
            )

        yield tell


@contextmanager
def sweep_progress(num_runs: int) -> Iterator[Callable[[Swept], None]]:
    """What `fs.sweep` tells of one."""
    with _bar("runs", num_runs) as update:

        def tell(now: Swept) -> None:
            parts = [now.says] if now.says else []
            pace = steps(now.client_steps_per_second)
            update(now.runs, left(now.seconds_left), [*parts, pace], now.says)

        yield tell


@contextmanager
def cells_progress(
    num_cells: int,
) -> Iterator[tuple[Callable[[Any, float, int, driver.Progress], None], Callable[[Any], None]]]:
    """What a race tells of its runs, and that a cell is through."""
    with _bar("cells", max(num_cells, 1)) as update:
        count = 0

        def tell(cell: Any, rate: float, seed: int, now: driver.Progress) -> None:
            score = now.metrics.get(cell.setting.score)
            which = [cell.name, f"rate {rate:.3g}", f"seed {seed}"]
            parts = [*which, f"round {now.round}", *([] if score is None else [f"{score:.4f}"])]
            parts.append(f"{now.rounds_per_second:.3g} rounds/s")
            update(count, "", parts, ", ".join(which), now.round / now.num_rounds)

        def done(cell: Any) -> None:
            nonlocal count
            count += 1

        yield tell, done


def steps(a_second: float) -> str:
    """Local steps a second, of all clients.

    >>> steps(12345.6), steps(0.12)
    ('12,346 client steps/s', '0.12 client steps/s')
    """
    said = f"{a_second:,.0f}" if a_second >= 10 else f"{a_second:.2g}"
    return f"{said} client steps/s"


def left(seconds: float) -> str:
    """A time to go, in words; none while it is not known.

    >>> left(61.3), left(math.nan)
    ('about 61 s left', '')
    """
    return "" if math.isnan(seconds) else f"about {driver.span_of(seconds)} left"


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
    found: list[Mean], metric: str, lowest: bool, more: Mapping[str, list[str]]
) -> tuple[Table, int]:
    """Configurations, the best first, and how many more there are.

    Args:
      more: heading -> a cell for each of `found`.
    """
    order = ranked(found, lowest)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = list(found[0].configuration)
    for name in ["", *names, metric, "95 % CI", "seeds", *more]:
        table.add_column(name, justify="right", overflow="fold")
    for i in order[:_MOST]:
        mean = found[i]
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
            *(cells[i] for cells in more.values()),
            style="bold" if best else None,
        )
    return table, max(0, len(found) - _MOST)
