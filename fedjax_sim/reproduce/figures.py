"""The pictures: rounds beside the published ones, and FedProx's curves."""

from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core.files import save_png
from fedjax_sim.plots import canvas
from fedjax_sim.plots.canvas import FAINT, INK, LINE
from fedjax_sim.plots.line_styles import MODE_STYLES, STYLES
from fedjax_sim.reproduce import fedprox, shakespeare
from fedjax_sim.reproduce.cells import COMPARED, Cell, Table
from fedjax_sim.reproduce.store import best_runs
from fedjax_sim.results import Results

_WORDS = {"C": "C={}", "E": "E={}", "B": "B={}"}
_APART = (*COMPARED, "clients")  # columns that are not part of a row's name
_OURS, _PUBLISHED, _GREY = "#0072b2", "#d55e00", "#777777"


def race(table: Table, records: dict[str, dict[str, Any]], path: Path) -> None:
    """Rounds to the target, a row for each C, E and B, those of one kind of clients together.

    Each row has the published rounds, and the mean and the range of ours; where the table compares
    modes and server rates, for each of those.
    """
    cells = [cell for cell in table.cells if cell.name in records]
    blocks: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        place = [_WORDS.get(k, "{}").format(v) for k, v in cell.says if k not in _APART]
        rows = blocks.setdefault(dict(cell.says)["clients"], {})
        rows.setdefault(", ".join(place), []).append(cell)
    largest_group = max(len(group) for rows in blocks.values() for group in rows.values())
    figure, ax = canvas.figure()
    named: dict[str, dict[str, Any]] = {}
    ticks: dict[float, str] = {}
    numbers: list[Any] = []
    y = 0.0
    for clients, rows in blocks.items():
        ax.text(
            0.005,
            y - 0.15,
            clients,
            transform=ax.get_yaxis_transform(),
            fontsize=10,
            fontweight="bold",
            color=INK,
            va="center",
        )
        for row, group in sorted(rows.items()) if table.name == "modes" else rows.items():
            y += 1
            ticks[y] = row
            for i, cell in enumerate(group):
                at = y + (i - (len(group) - 1) / 2) / (largest_group + 1)
                times = [run["reached"] for run in best_runs(records[cell.name])]
                numbers.append([cell.name, cell.published, cell.most, times])
                _cell(ax, at, cell, times, named)
        y += 1
        ax.axhline(y - 0.4, color=LINE, linewidth=0.7)
    for name, style in named.items():
        ax.plot([], [], linestyle="none", markersize=6, label=name, **style)
    shown_rounds = [time or limit for _, _, limit, times in numbers for time in times]
    shown_rounds += [published for _, published, *_ in numbers if published]
    canvas.scale(
        ax,
        "rounds to the target (mean and range of the seeds)",
        min(shown_rounds),
        max(shown_rounds),
    )
    ax.set_yticks([*ticks], [*ticks.values()], fontsize=9, color=INK)
    ax.set_ylim(y - 0.4, -0.6)
    figure.set_size_inches(7.2, 1.3 + (0.16 + 0.08 * largest_group) * y)
    figure.legend(
        loc="outside lower center", ncols=2 if largest_group > 1 else 3, frameon=False, fontsize=9.5
    )
    figure.set_facecolor("white")
    save_png(figure, path, numbers, 130)


def _cell(
    ax: Any, y: float, cell: Cell, times: list[float | None], named: dict[str, dict[str, Any]]
) -> None:
    """Draws a cell's marks, and adds their style to `named`."""
    if cell.published:
        named["published"] = {"marker": "s", "color": _PUBLISHED, "mfc": "none"}
        ax.plot(cell.published, y, markersize=6, **named["published"])
    name, style = _ours(cell)
    named[name] = {"marker": "o", **style}
    reached = [time for time in times if time is not None]
    if len(reached) < len(times):
        named["not reached by"] = {"marker": ">", "color": _GREY}
        ax.plot(cell.most, y, ">", markersize=6, **style)
    else:
        mean = sum(reached) / len(reached)
        ends = [min(reached), max(reached)]
        ax.plot(ends, [y, y], "-", color=style["color"], linewidth=2)
        ax.plot(mean, y, "o", markersize=5, **style)


def _ours(cell: Cell) -> tuple[str, dict[str, Any]]:
    """The name of our runs in the legend, and their style."""
    says = dict(cell.says)
    if "mode" not in says:
        return "ours", {"color": _OURS}
    color = MODE_STYLES[says["mode"]]["color"]
    inside = color if says["server"] == "tuned" else "white"
    return f"{says['mode']}, server rate {says['server']}", {"color": color, "mfc": inside}


def stragglers(results: Results, path: Path) -> None:
    """Loss on all training data by round: a row for each share of stragglers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), facecolor="white")
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        len(fedprox.STRAGGLERS), len(fedprox.FEDERATIONS), sharex=True, sharey=True, squeeze=False
    )
    numbers, means = [], []
    for i, share in enumerate(fedprox.STRAGGLERS):
        for j, federation in enumerate(fedprox.FEDERATIONS):
            ax = axes[i, j]
            ax.grid(color=FAINT, linewidth=0.7)
            ax.spines[["top", "right"]].set_visible(False)
            for method, style in zip(fedprox.METHODS, STYLES, strict=False):
                lines = fedprox.curve(results, federation, share, method, "all_loss")
                mean = lines.mean(axis=0)
                means.append(mean)
                numbers.append([federation, share, method, np.asarray(lines, float).tolist()])
                at = np.arange(1, len(mean) + 1)
                ax.plot(
                    at,
                    mean,
                    color=style["color"],
                    linestyle=style["linestyle"],
                    linewidth=1.6,
                    label=method,
                )
                ax.fill_between(
                    at,
                    lines.min(axis=0),
                    lines.max(axis=0),
                    color=style["color"],
                    alpha=0.15,
                    linewidth=0,
                )
            if i == 0:
                ax.set_title(federation, fontsize=11, color=INK)
            if j == 0:
                ax.set_ylabel(f"{share:.0%} stragglers\ntraining loss", fontsize=10, color=INK)
            if i == len(fedprox.STRAGGLERS) - 1:
                canvas.rounds(ax, results.runs[0].done)
    # All axes share a logarithmic scale, on which the curves differ at the end of training, too.
    low, high = min(map(np.nanmin, means)), max(map(np.nanmax, means))
    for ax in axes.flat:
        ax.set_yscale("log")
        ax.set_ylim(low / 1.05, high * 1.05)
    canvas.log_ticks(axes[0, 0].yaxis, low, high)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    save_png(figure, path, numbers, 110)


def first_rounds(results_of: dict[str, Results], path: Path) -> None:
    """Shakespeare's accuracy by round."""
    figure, ax = canvas.figure()
    numbers = []
    for style, (spread, results) in zip(STYLES, results_of.items(), strict=False):
        run = results.runs[0]
        evaluated = run.rounds["evaluated"].astype(bool)
        at = np.flatnonzero(evaluated) + 1
        look = {key: style[key] for key in ("color", "linestyle", "marker")}
        accuracy = run.measured("test_accuracy")
        numbers.append([spread, at.tolist(), np.asarray(accuracy, float).tolist()])
        ax.plot(at, accuracy, label=spread, markersize=4, **look)
    canvas.rounds(ax, shakespeare.ROUNDS)
    ax.set_ylabel("test accuracy")
    canvas.legend(figure, ax, [])
    figure.set_facecolor("white")
    save_png(figure, path, numbers, 130)
