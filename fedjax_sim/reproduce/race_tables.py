"""A race's table: rounds to the target beside the published ones, a line for each cell."""

import math
from typing import Any

import numpy as np

from fedjax_sim.reproduce.cells import Cell, Table
from fedjax_sim.reproduce.store import Store, best_runs, mean_rounds

_COLUMNS = (
    "published",
    "ours (range)",
    "ours / published",
    "without seed 0",
    "rate (tried)",
    "in time",
    "at the published round",
    "best accuracy",
    "minutes",
)


def rounds_text(cell: Cell, record: dict[str, Any]) -> str:
    """The mean of the seeds and their range, or that the target was not reached."""
    mean = mean_rounds(record)
    times = [run["reached"] for run in best_runs(record)]
    if mean is None:
        num_reached = sum(time is not None for time in times)
        some = f" ({num_reached} of {len(times)} reached it)" if num_reached else ""
        return f"> {cell.most}{some}"
    if len(times) == 1:
        return f"{mean:.0f}"
    return f"{mean:.0f} ({min(times):.0f} to {max(times):.0f})"


def rows(table: Table, records: dict[str, dict[str, Any]]) -> list[str]:
    """The table's lines.

    Args:
      records: those that are complete, by the names of their cells.
    """
    names = [name for name, _ in table.cells[0].says]
    lines = [_line([*names, *_COLUMNS]), "|" + "---|" * (len(names) + len(_COLUMNS))]
    for cell in table.cells:
        if (record := records.get(cell.name)) is None:
            continue
        mean, best = mean_rounds(record), best_runs(record)
        tried = sorted({run["rate"] for run in record["runs"]})
        low, high = (f"{f([run['best'] for run in best]):.4f}" for f in (np.nanmin, np.nanmax))
        minutes = sum(run["seconds"] for run in record["runs"]) / 60
        values = (
            f"{cell.published:g}",
            rounds_text(cell, record),
            "" if mean is None or not cell.published else f"{mean / cell.published:.2f}",
            _fresh(best),
            f"{record['rate']:.3g} ({tried[0]:.2g} to {tried[-1]:.2g}, {len(tried)})",
            f"{sum(run['reached'] is not None for run in best)} of {len(best)}",
            _at_published(cell, best),
            high if mean is not None or low == high else f"{low} to {high}",
            "unknown" if math.isnan(minutes) else f"{minutes:.1f}",
        )
        lines.append(_line([*(word for _, word in cell.says), *values]))
    return lines


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _fresh(runs: list[dict[str, Any]]) -> str:
    """The mean of the seeds that did not choose the rate."""
    times = [run["reached"] for run in runs if run["seed"] != 0]
    return f"{sum(times) / len(times):.0f}" if times and None not in times else ""


def _at_published(cell: Cell, runs: list[dict[str, Any]]) -> str:
    """The best accuracy until the published round, over the seeds; nothing if all ended before."""
    assert cell.published is not None
    if all(run["rounds"][-1] < cell.published for run in runs):
        return ""
    best = []
    for run in runs:
        until = max(cell.published, run["rounds"][0])
        scores = [x for at, x in zip(run["rounds"], run["scores"], strict=True) if at <= until]
        best += [max(x for x in scores if x is not None)] if any(scores) else []  # NaN is null
    if not best:
        return "unknown"
    ended = any(run["rounds"][-1] < cell.published for run in runs)
    text = f"{'>= ' if ended else ''}{sum(best) / len(best):.4f}"
    return text if len(best) == 1 else f"{text} ({min(best):.4f} to {max(best):.4f})"


def held_back_tables(table: Table, store: Store) -> list[list[str]]:
    """Rates chosen on the test set beside those chosen on held-back examples, by their share.

    Of the cells with a choice on held-back examples; the other one's columns are empty where it was
    not run. Each table has a sentence that says what the choice changes.
    """
    pairs: dict[float, list[tuple[Cell, Cell]]] = {}
    for cell in table.cells:
        for held_back in store.held_back(cell):
            share = held_back.setting.validation
            assert share is not None
            pairs.setdefault(share, []).append((cell, held_back))
    parts = []
    for share, cells in pairs.items():
        records = [(cell, store.load(cell), store.load(other)) for cell, other in cells]
        complete = [
            (cell, by_test if by_test and by_test["complete"] else None, by_held_back)
            for cell, by_test, by_held_back in records
            if by_held_back and by_held_back["complete"]
        ]
        if complete:
            parts.append(_held_back(share, complete))
    return parts


def _held_back(
    share: float, records: list[tuple[Cell, dict[str, Any] | None, dict[str, Any]]]
) -> list[str]:
    names = [name for name, _ in records[0][0].says]
    columns = ("by the test set", "rate", "by validation", "rate", "ratio")
    lines = [_line([*names, *columns]), "|" + "---|" * (len(names) + len(columns))]
    ratios, num_same, num_both = [], 0, 0
    for cell, by_test, by_held_back in records:
        ratio, of_test = None, ("", "")
        if by_test is not None:
            means = mean_rounds(by_held_back), mean_rounds(by_test)
            ratio = None if means[0] is None or means[1] is None else means[0] / means[1]
            of_test = rounds_text(cell, by_test), f"{by_test['rate']:.3g}"
            num_same += math.isclose(by_test["rate"], by_held_back["rate"], rel_tol=1e-6)
            num_both += 1
        if ratio is not None:
            ratios.append(ratio)
        values = (
            *of_test,
            rounds_text(cell, by_held_back),
            f"{by_held_back['rate']:.3g}",
            "" if ratio is None else f"{ratio:.2f}",
        )
        lines.append(_line([*(word for _, word in cell.says), *values]))
    spread = (
        f" By validation they are {min(ratios):.2f} to {max(ratios):.2f} times the rounds."
        if ratios
        else ""
    )
    return [
        f"Rates chosen on {100 * share:g} % of each client's examples, which nobody trains on "
        f"(`--validation {share:g}`), and rounds to the target on the test set in both:",
        "",
        *lines,
        "",
        f"The rate is the same in {num_same} of the {num_both} cells that were run both ways."
        f"{spread} Clients that hold examples back train on fewer, so rounds differ by that, too.",
    ]
