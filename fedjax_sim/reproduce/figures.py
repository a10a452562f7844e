"""The pictures: rounds beside the published ones, and FedProx's curves."""

from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim import canvas
from fedjax_sim.canvas import FAINT, INK, LINE, MODE_STYLES, STYLES
from fedjax_sim.reproduce import fedprox, shakespeare
from fedjax_sim.reproduce.cells import COMPARED, Cell, Table
from fedjax_sim.reproduce.store import best_runs, mean_rounds
from fedjax_sim.results import Results
from fedjax_sim.saving import replace_file

_WORDS = {"C": "C={}", "E": "E={}", "B": "B={}"}
_OURS, _PUBLISHED, _GREY = "#0072b2", "#d55e00", "#777777"


def race(table: Table, records: dict[str, dict[str, Any]], path: Path) -> None:
    """Rounds to the target, a row for each C, E, B and clients.

    In it: published, and the mean and the range of ours, by mode and server rate where the table
    compares those.
    """
    cells = [cell for cell in table.cells if cell.name in records]
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        place = [_WORDS.get(k, "{}").format(v) for k, v in cell.says if k not in COMPARED]
        rows.setdefault(", ".join(place), []).append(cell)
    most = max(map(len, rows.values()))
    made, ax = canvas.figure()
    made.set_size_inches(7.2, 1.3 + (0.16 + 0.08 * most) * len(rows))
    named: dict[str, dict[str, Any]] = {}
    for row, group in enumerate(rows.values()):
        for i, cell in enumerate(group):
            y = row + (i - (len(group) - 1) / 2) / (most + 1)
            if cell.published:
                named["published"] = {"marker": "s", "color": _PUBLISHED, "mfc": "none"}
                ax.plot(cell.published, y, markersize=6, **named["published"])
            name, style = _ours(cell)
            named[name] = {"marker": "o", **style}
            mean = mean_rounds(records[cell.name])
            if mean is None:
                named["not reached by"] = {"marker": ">", "color": _GREY}
                ax.plot(cell.most, y, ">", markersize=6, **style)
            else:
                times = [one["reached"] for one in best_runs(records[cell.name])]
                ax.plot([min(times), max(times)], [y, y], "-", color=style["color"], linewidth=2)
                ax.plot(mean, y, "o", markersize=5, **style)
    for name, style in named.items():
        ax.plot([], [], linestyle="none", markersize=6, label=name, **style)
    said = [one["reached"] or cell.most for cell in cells for one in best_runs(records[cell.name])]
    said += [cell.published for cell in cells if cell.published]
    canvas.scale(ax, "rounds to the target (mean and range of the seeds)", min(said), max(said))
    ax.set_yticks(range(len(rows)))
    ax.set_yticklabels(list(rows), fontsize=9, color=INK)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.axhline(len(rows) - 0.4, color=LINE)
    made.legend(loc="outside lower center", ncols=2 if most > 1 else 3, frameon=False, fontsize=9.5)
    made.set_facecolor("white")
    replace_file(path, lambda file: made.savefig(file, format="png", dpi=130))


def _ours(cell: Cell) -> tuple[str, dict[str, Any]]:
    """What a run of ours is called, and its style."""
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

    made = Figure(figsize=(11, 7), facecolor="white")
    made.set_layout_engine("constrained")
    FigureCanvasAgg(made)
    axes = made.subplots(len(fedprox.STRAGGLERS), len(fedprox.FEDERATIONS), sharex=True,
                         squeeze=False)  # fmt: skip
    for i, share in enumerate(fedprox.STRAGGLERS):
        for j, federation in enumerate(fedprox.FEDERATIONS):
            ax = axes[i, j]
            ax.grid(color=FAINT, linewidth=0.7)
            ax.spines[["top", "right"]].set_visible(False)
            means = []
            for method, style in zip(fedprox.METHODS, STYLES, strict=False):
                lines = fedprox.curve(results, federation, share, method, "all_loss")
                mean = lines.mean(axis=0)
                means.append(mean)
                at = np.arange(1, len(mean) + 1)
                ax.plot(at, mean, color=style["color"], linestyle=style["linestyle"],
                        linewidth=1.6, label=method)  # fmt: skip
                ax.fill_between(at, lines.min(axis=0), lines.max(axis=0), color=style["color"],
                                alpha=0.15, linewidth=0)  # fmt: skip
            canvas.limit(ax, means, lowest=True)
            if i == 0:
                ax.set_title(federation, fontsize=11, color=INK)
            if j == 0:
                ax.set_ylabel(f"{share:.0%} stragglers\ntraining loss", fontsize=10, color=INK)
            if i == len(fedprox.STRAGGLERS) - 1:
                ax.set_xlabel("round", fontsize=10, color=INK)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    replace_file(path, lambda file: made.savefig(file, format="png", dpi=110))


def first_rounds(found: dict[str, Results], path: Path) -> None:
    """Shakespeare's accuracy by round."""
    made, ax = canvas.figure()
    for style, (spread, results) in zip(STYLES, found.items(), strict=False):
        run = results.runs[0]
        evaluated = run.rounds["evaluated"].astype(bool)
        at = np.flatnonzero(evaluated) + 1
        look = {key: style[key] for key in ("color", "linestyle", "marker")}
        ax.plot(at, run.measured("test_accuracy"), label=spread, markersize=4, **look)
    ax.set_xlabel("round")
    ax.set_ylabel("test accuracy")
    ax.set_xlim(0, shakespeare.ROUNDS + 0.5)
    canvas.legend(made, ax, [])
    made.set_facecolor("white")
    replace_file(path, lambda file: made.savefig(file, format="png", dpi=130))
