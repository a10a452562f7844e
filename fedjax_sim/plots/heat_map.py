"""The picture of a metric's final mean against two axes: coloured cells with their numbers."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.plots import canvas, words
from fedjax_sim.results import Mean, Results
from fedjax_sim.results.configurations import crossed, numeric_axes, varying

_LONGEST = 28  # characters of a tick


class Axis(NamedTuple):
    """A hyper-parameter and its values; of text all have a tick, of numbers a few."""

    name: str
    values: Sequence[Any]
    is_numeric: bool


def axes_of(results: Results) -> tuple[Axis, Axis] | None:
    """The axes x and y of a grid that a heat map shows; None for one that it does not.

    Just two hyper-parameters vary: both are numbers, of three values or more, or neither is.
    """
    names, numeric = varying(results), numeric_axes(results)
    if len(numeric) == 2 == len(names) and all(len(x) > 2 for x in numeric.values()):
        first, second = (Axis(name, values, True) for name, values in numeric.items())
        num_configurations = len({repr(run.configuration) for run in results.runs})
        # Draws at random are no grid: each has values of its own.
        crosses = num_configurations > max(len(first.values), len(second.values))
        return (first, second) if crosses else None
    pair = crossed(results)
    if pair is None:
        return None
    x, y = (
        Axis(name, [*dict.fromkeys(run.configuration[name] for run in results.runs)], False)
        for name in reversed(pair)
    )
    return x, y


def heat_map(x: Axis, y: Axis, means: Sequence[Mean], metric: str, width: float) -> Any:
    """A matplotlib Figure of cells with their means, if there is room; a hatch for none."""
    columns = {value: i for i, value in enumerate(x.values)}
    rows = {value: i for i, value in enumerate(y.values)}
    cells = np.full((len(rows), len(columns)), math.nan)
    for mean in means:
        place = rows[mean.configuration[y.name]], columns[mean.configuration[x.name]]
        cells[place] = mean.mean
    figure, ax = canvas.figure(width)
    figure.set_size_inches(width / 72, (max(canvas.HEIGHT, 0.58 * width) + 30) / 72)
    ax.grid(visible=False)
    finite = cells[np.isfinite(cells)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    high = high if high > low else low + (abs(low) or 1.0) * 1e-6
    ax.patch.set(facecolor="none", hatch="////", edgecolor=canvas.LINE)
    shown = np.ma.masked_invalid(cells)
    mesh = ax.pcolormesh(
        shown, cmap=canvas.shades(), vmin=low, vmax=high, edgecolors="face", lw=0.3
    )
    room = len(columns) <= 8 and len(rows) <= 12
    for (row, column), value in np.ndenumerate(cells):
        if room and math.isfinite(value):
            dark = (value - low) / (high - low) > 0.55
            ax.text(
                column + 0.5,
                row + 0.5,
                f"{value:.3g}",
                ha="center",
                va="center",
                fontsize=canvas.SMALL if len(columns) <= 6 else 9.5,
                color="#ffffff" if dark else "#000000",
            )
    _ticks(ax.xaxis, x)
    _ticks(ax.yaxis, y)
    if not x.is_numeric and sum(len(str(value)) for value in x.values) > width / 9:
        ax.tick_params("x", rotation=30)
    if not y.is_numeric:
        ax.invert_yaxis()  # the first value on top, as in a table
    bar = figure.colorbar(mesh, ax=ax, pad=0.02, aspect=25)
    bar.set_label(words.plain(metric), fontsize=canvas.TEXT, color=canvas.INK)
    bar.ax.tick_params(color=canvas.LINE, labelcolor=canvas.INK, labelsize=canvas.SMALL)
    bar.outline.set_visible(False)
    bar.solids.set_edgecolor("face")
    return figure


def _ticks(axis: Any, of: Axis) -> None:
    interval = max(1, -(-len(of.values) // 7)) if of.is_numeric else 1
    axis.set_ticks(np.arange(0, len(of.values), interval) + 0.5)
    values = of.values[::interval]
    texts = [f"{value:.3g}" if of.is_numeric else words.plain(str(value)) for value in values]
    axis.set_ticklabels([text[:_LONGEST] for text in texts])
    axis.set_label_text(words.plain(of.name))
