"""The picture of a metric's final mean against the axis that varies."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_sim.plots import canvas, line_styles, words
from fedjax_sim.plots.heat_map import axes_of, heat_map
from fedjax_sim.results import Mean, Results, joined
from fedjax_sim.results.columns import lowest_is_best
from fedjax_sim.results.configurations import numeric_axes, varying

_APART = 3.0  # points between the intervals of two lines at one value


def response(
    results: Results | Sequence[Results] | Mapping[str, Results],
    metric: str,
    *,
    confidence: float = 0.95,
    most: int = 8,
    width: float = canvas.WIDE,
) -> Any:
    """The final mean of a metric against the numeric axis that varies, with its interval.

    Intervals of one value stand side by side; one that is longer than the axes ends in an arrow,
    and of a share, as an accuracy is one, it ends at 0 and 1.

    A line for each combination of the other axes (of more than `most` the best, as the legend
    says); a logarithmic scale for values that span a factor of 20 or more. A grid of just two
    numeric axes with three values or more is a heat map, and so is one of just two axes that are
    not numeric, as an attack and a rule. Without a numeric axis other configurations stand side by
    side. A configuration that has no finite mean is a cross at the lower edge.

    Returns:
      A matplotlib Figure.

    Raises:
      ValueError: for an unknown metric.
    """
    results = joined(results)
    means = results.mean(metric, confidence)
    names, numeric = varying(results), numeric_axes(results)
    if (axes := axes_of(results)) is not None:
        return heat_map(*axes, means, metric, width)
    axis = next(iter(numeric), None)
    other_axes = [name for name in names if name != axis]
    lines: dict[str, list[tuple[float, Mean]]] = {}
    texts = words.labels([mean.configuration for mean in means], other_axes)
    for i, (mean, text) in enumerate(zip(means, texts, strict=True)):
        # Configurations drawn at random along several numeric axes would each be a line of its own.
        alone = axis is None or (len(numeric) > 1 and len(numeric[axis]) == len(means))
        label = "" if alone else text
        x = i + 1 if axis is None else mean.configuration[axis]
        lines.setdefault(label, []).append((float(x), mean))
    note = []
    if len(lines) > most:
        note.append(f"the {most} best of {len(lines)} by their best mean")
        sign = 1 if lowest_is_best(metric) else -1
        rank = {
            label: min((sign * m.mean for _, m in line if math.isfinite(m.mean)), default=math.inf)
            for label, line in lines.items()
        }
        lines = {label: lines[label] for label in sorted(lines, key=rank.__getitem__)[:most]}
    figure, ax = canvas.figure(width)
    styles = line_styles.of_configurations([line[0][1].configuration for line in lines.values()])
    connected = max(len(line) for line in lines.values()) > 1 and axis is not None
    connected &= len(numeric) < 2 or len(numeric[axis or ""]) < len(means)
    limits: list[np.ndarray] = []
    ends: list[tuple[Any, ...]] = []
    for i, ((label, line), style) in enumerate(zip(lines.items(), styles, strict=True)):
        line.sort(key=lambda point: point[0])
        x = np.array([point for point, _ in line])
        middle = np.array([m.mean for _, m in line])
        half = np.array([m.high - m.mean for _, m in line])
        middle[~np.isfinite(middle)] = math.nan
        half[~np.isfinite(half)] = 0
        low, high = canvas.interval([metric], middle, half)
        limits += [middle, *_within(middle, low, high)]
        small_markers = {"markersize": 3.2} if len(x) > 24 else {}
        look = {**style, "marker": style.get("marker", "o"), **small_markers}
        look["linestyle"] = style["linestyle"] if connected else "none"
        beside = canvas.moved(ax, _APART * (i - (len(lines) - 1) / 2))
        ax.plot(x, middle, label=words.plain(label) or None, transform=beside, **look)
        ax.errorbar(
            x,
            middle,
            yerr=np.stack([middle - low, high - middle]),
            color=style["color"],
            linestyle="none",
            elinewidth=1,
            capsize=0 if len(x) > 24 else 2,
            alpha=0.75,
            zorder=2,
            transform=beside,
        )
        ends.append((x, low, high, style["color"], beside))
    canvas.limit(ax, limits, lowest_is_best(metric))
    cut = [_arrows(ax, *end) for end in ends]
    _crosses(ax, [point for line in lines.values() for point in line])
    ax.set_ylabel(words.plain(metric))
    if axis is None:
        ticks = words.labels([mean.configuration for mean in means], names)
        canvas.name_ticks(ax, [text or "all" for text in ticks])
    else:
        ax.set_xlabel(words.plain(axis))
        canvas.scale(ax, axis, numeric[axis][0], numeric[axis][-1])
    if not connected and axis is not None:
        note.append(f"each point a configuration, differing in {', '.join(other_axes)} too")
    seeds = {mean.seeds for mean in means}
    if max(seeds) > 1:
        note.append(f"mean over {words.span(seeds)} seeds, {confidence:.0%} interval")
    if any(cut):
        note.append("arrows: an interval goes on")
    canvas.legend(figure, ax, note)
    return figure


def _within(mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The intervals' ends, at most as far from the means as the range of the means."""
    finite = mean[np.isfinite(mean)]
    apart = float(np.ptp(finite)) if finite.size else 0.0
    if not apart:
        return low, high
    return np.maximum(low, mean - apart), np.minimum(high, mean + apart)


def _arrows(
    ax: Any, x: np.ndarray, lows: np.ndarray, highs: np.ndarray, color: str, transform: Any
) -> bool:
    """Marks the intervals that leave the axes where they leave them; whether any does."""
    low, high = ax.get_ylim()
    up, down = highs > high, lows < low
    for leaves, edge, marker in ((up, high, "^"), (down, low, "v")):
        if leaves.any():
            ax.plot(
                x[leaves],
                np.full(leaves.sum(), edge),
                color=color,
                linestyle="none",
                marker=marker,
                markersize=5,
                clip_on=False,
                transform=transform,
                zorder=4,
            )
    return bool((up | down).any())


def _crosses(ax: Any, points: Sequence[tuple[float, Mean]]) -> None:
    """Marks configurations that diverged at their mean, or at the lower edge without one."""
    diverged = [(x, m.mean) for x, m in points if m.diverged and math.isfinite(m.mean)]
    lost = [(x, m) for x, m in points if not math.isfinite(m.mean)]
    look = {"color": canvas.INK, "linestyle": "none", "marker": "x", "zorder": 20}
    if diverged:
        ax.plot(*zip(*diverged, strict=True), label="diverged" if not lost else None, **look)
    if lost:
        label = "diverged" if all(m.diverged for _, m in lost) else "no finite value"
        ax.plot(
            [x for x, _ in lost],
            [0.02] * len(lost),
            label=label,
            clip_on=False,
            transform=ax.get_xaxis_transform(),
            **look,
        )
