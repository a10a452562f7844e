"""The look of figures: axes, scales, limits and legends, on a matplotlib canvas."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_sim.plots.words import plain
from fedjax_sim.results.columns import is_share

# The ink and two greys. A page may replace them and the lines' colours by ones for a dark ground.
INK, LINE, FAINT = "#1b1b1b", "#8b8b8b", "#dcdcdc"

WIDTH, HEIGHT, ROW = 380, 250, 16  # points: a figure without its legend, and a row of that
WIDE = 580  # points: a figure that stands alone
_KEY, _LETTER = 55, 5.7  # points of a legend's entry: its line, and a letter on average
_SHADES = ("#ffffff", "#9ed0ef", "#2f93d1", "#0a5a96", "#05294a")
TEXT, SMALL = 11.0, 10.5


def figure(width: float = WIDTH) -> tuple[Any, Any]:
    """An empty figure, some points wide, and its axes.

    Raises:
      ImportError: if matplotlib is missing: which extra has it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from fedjax_sim.plots.inline_figure import InlineFigure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install fedjax-sim[cli]") from error
    height = max(HEIGHT, 0.58 * width)
    figure = InlineFigure(figsize=(width / 72, height / 72), facecolor="none")
    figure.set_layout_engine("constrained", w_pad=0.05, h_pad=0.04)
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    dress(ax)
    return figure, ax


def dress(ax: Any) -> None:
    """The look of axes: a faint grid, no box, grey lines and dark words."""
    ax.set_facecolor("none")
    ax.grid(color=FAINT, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(LINE)
    ax.tick_params(which="both", color=LINE, labelcolor=INK, labelsize=SMALL)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set(fontsize=TEXT, color=INK)


def rounds(ax: Any, last: float) -> None:
    """Names the axis x and sets its range: rounds, from 0, with whole ticks."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("round")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    ax.set_xlim(0, 1.02 * last)


def moved(ax: Any, points: float) -> Any:
    """The axes' transform of data, shifted by some points to the right."""
    from matplotlib.transforms import ScaledTranslation

    return ax.transData + ScaledTranslation(points / 72, 0, ax.get_figure().dpi_scale_trans)


def limit(ax: Any, lines: Sequence[np.ndarray], lowest: bool) -> None:
    """Sets the range of y: that of `ends`, and a margin.

    The scale is logarithmic if low is good and the values are positive and span a factor of 50.
    """
    shown = ends(lines, lowest)
    if shown is None:
        ax.set_yticks([])
        ax.annotate(
            "no finite value",
            (0.5, 0.5),
            xycoords="axes fraction",
            ha="center",
            fontsize=TEXT,
            color=INK,
        )
        return
    low, high = shown
    if lowest and low > 0 and high > 50 * low:
        ax.set_yscale("log")
        log_ticks(ax.yaxis, low, high)
        ax.set_ylim(low / 1.3, high * 1.3)
    else:
        ax.set_ylim(*with_margin(low, high))


def ends(lines: Sequence[np.ndarray], lowest: bool) -> tuple[float, float] | None:
    """The range of the lines to be shown; None if nothing is finite.

    Of lines of over 20 rounds, the worst are left out: where high is good, the lowest 3 %; where
    low is good, values above 1.2 times the first.

    >>> ends([np.array([0.1, 0.5, np.nan]), np.array([0.2])], lowest=False)
    (0.1, 0.5)
    """
    finite = [line[np.isfinite(line)] for line in lines]
    values = np.concatenate([*finite, np.zeros(0)])
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    # Up to 20 rounds are all shown, because 3 % of them is less than one round.
    if max(map(len, finite)) > 20:
        if lowest:
            first = max(float(line[0]) for line in finite if line.size)
            high = min(high, 1.2 * first if first > 0 else float(np.quantile(values, 0.97)))
            high = max(high, *(float(line.min()) for line in finite if line.size))
        else:
            low = float(np.quantile(values, 0.03))
    return low, high


def with_margin(low: float, high: float) -> tuple[float, float]:
    """Limits with 6 % room for markers on either side; of the value itself if low equals high."""
    span = high - low or abs(high) or 1.0
    return low - 0.06 * span, high + 0.06 * span


def interval(
    names: Sequence[str], mean: np.ndarray, half: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The ends of a band; where all metrics are shares, as accuracies are, within [0, 1].

    Student's t of two seeds is 12.7 deviations wide, which leaves [0, 1]. Only figures are cut so.

    >>> interval(["test_accuracy"], np.array([0.75]), np.array([0.5]))
    (array([0.25]), array([1.]))
    """
    low, high = mean - half, mean + half
    if not all(map(is_share, names)):
        return low, high
    return np.clip(low, np.minimum(mean, 0), None), np.clip(high, None, np.maximum(mean, 1))


def band(
    ax: Any, x: np.ndarray, low: np.ndarray, high: np.ndarray, color: str, alpha: float
) -> None:
    """A band behind a line; where the line is one point, a bar."""
    if len(x) == 1:
        ax.vlines(x, low, high, color=color, alpha=0.5, linewidth=1.5, zorder=1)
    else:
        ax.fill_between(x, low, high, color=color, alpha=alpha, linewidth=0, zorder=1)


def scale(ax: Any, name: str, low: float, high: float) -> None:
    """Names the axis x and sets its range: logarithmic for positive values that span 20x."""
    ax.set_xlabel(plain(name))
    if low > 0 and high >= 20 * low:
        ax.set_xscale("log")
        log_ticks(ax.xaxis, low, high)
        wide = (high / low) ** 0.04
        ax.set_xlim(low / wide, high * wide)
    elif high > low:
        ax.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Logarithmic ticks as plain numbers, few enough to be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3.2 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12 if len(subs) > 1 else 7))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def shades() -> Any:
    """A colour map from white to dark blue, which keeps its order in greyscale."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", _SHADES)


def legend(figure: Any, ax: Any, note: Sequence[str]) -> None:
    """A legend below the axes, with a note; the figure grows by its rows."""
    handles, labels = ax.get_legend_handles_labels()
    rows = 0
    width, height = 72 * figure.get_size_inches()
    # A figure whose lines have no names has a note alone.
    if handles:
        longest = min(50, max(map(len, labels)))
        columns = max(1, min(4, int(width / (_KEY + _LETTER * longest)), len(labels)))
        rows = -(-len(labels) // columns)
        columns = -(-len(labels) // rows)
        figure_legend = figure.legend(
            handles,
            [_short(label, 50) for label in labels],
            ncols=columns,
            loc="outside lower center",
            frameon=False,
            fontsize=SMALL,
            labelcolor=INK,
            handlelength=3,
            columnspacing=1.2,
            labelspacing=0.35,
            borderpad=0.2,
        )
        if note:
            title, title_rows = _wrapped(note)
            figure_legend.set_title(title, prop={"size": SMALL})
            figure_legend.get_title().set(color=INK, multialignment="center")
            rows += title_rows
    elif note:
        title, rows = _wrapped(note)
        ax.set_xlabel(f"{ax.get_xlabel()}\n{title}")
    figure.set_size_inches(width / 72, (height + ROW * rows) / 72)


def name_ticks(ax: Any, names: Sequence[str]) -> None:
    """Words below the ticks 1, 2, ..., turned where they need the room."""
    ax.set_xticks(range(1, len(names) + 1))
    turned = sum(map(len, names)) > 40
    ax.set_xticklabels(
        [plain(_short(name, 24)) for name in names],
        rotation=40 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor",
    )
    ax.set_xlim(0.5, len(names) + 0.5)


def _wrapped(parts: Sequence[str]) -> tuple[str, int]:
    """The parts on one line if they fit, else each on its own; and the number of lines."""
    joined = "; ".join(parts)
    lines = [joined] if len(joined) <= 56 else list(parts)
    return "\n".join(plain(line) for line in lines), len(lines)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
