"""The picture of a split: each client's classes, and the clients' numbers of examples."""

from typing import Any

import numpy as np

from fedjax_sim.partition import Description
from fedjax_sim.plots import canvas, line_styles, words

_IN_ORDER = 60  # up to so many clients are shown by number; more are sorted by their largest class
_COLUMNS = 200  # columns of clients at most; more clients are averaged with their neighbours
_BINS = 24  # bars of the histogram at most


def split(description: Description) -> Any:
    """A heat map of clients and classes beside a histogram of the clients' sizes.

    The map has the share of each class in a client's examples: 60 clients or fewer by number, more
    sorted by their largest class, and of more than 200 the mean of neighbours in that order.
    Clients without examples are hatched, or left out where sorted. Without labels there is the
    histogram alone.

    Args:
      description: of `fs.partition.describe`.

    Returns:
      A matplotlib Figure.

    Raises:
      ImportError: if matplotlib is missing: which extra has it.
    """
    figure, ax = canvas.figure()
    if description.counts is None:
        _histogram(ax, description)
        return figure
    figure.set_size_inches(2 * canvas.WIDTH / 72, 1.1 * canvas.HEIGHT / 72)
    grid = figure.add_gridspec(1, 2, width_ratios=(1.75, 1))
    ax.set_subplotspec(grid[0])
    _map(figure, ax, description)
    sizes = figure.add_subplot(grid[1])
    canvas.dress(sizes)
    _histogram(sizes, description)
    return figure


def _map(figure: Any, ax: Any, description: Description) -> None:
    shares, x_label = _columns(description)
    ax.grid(visible=False)
    ax.patch.set(facecolor="none", hatch="////", edgecolor=canvas.LINE)
    # A class that a client lacks is white, so that the classes it has stand out, also with two
    # classes, where most shares are near a half.
    mesh = ax.pcolormesh(
        np.ma.masked_invalid(shares.T),
        cmap=canvas.shades(),
        vmin=0,
        vmax=1,
        edgecolors="face",
        lw=0.2,
    )
    ax.set_yticks(np.arange(1, shares.shape[1]), minor=True)
    ax.grid(which="minor", axis="y", color=canvas.LINE, linewidth=0.5)
    ax.tick_params(which="minor", length=0)
    ax.set_axisbelow(False)
    classes = description.classes
    assert classes is not None
    interval = -(-len(classes) // 12)
    ax.set_yticks(np.arange(0, len(classes), interval) + 0.5, [str(c) for c in classes[::interval]])
    ax.set_ylabel("class")
    if description.num_clients <= _IN_ORDER:
        interval = -(-description.num_clients // 11)
        places = np.arange(0, description.num_clients, interval)
        ax.set_xticks(places + 0.5, [str(k) for k in places])
    else:  # sorted: a place says nothing
        ax.set_xticks([])
    ax.set_xlabel(x_label)
    bar = figure.colorbar(mesh, ax=ax, pad=0.02, aspect=25)
    bar.set_label("share of the client's examples", fontsize=canvas.TEXT, color=canvas.INK)
    bar.ax.tick_params(color=canvas.LINE, labelcolor=canvas.INK, labelsize=canvas.SMALL)
    bar.outline.set_visible(False)
    bar.solids.set_edgecolor("face")


def _columns(description: Description) -> tuple[np.ndarray, str]:
    """Shares [columns, C], NaN for a client without examples, and the label of the columns."""
    counts, sizes = description.counts, description.sizes
    assert counts is not None
    shares = np.where(sizes[:, None] > 0, counts / np.maximum(sizes, 1)[:, None], np.nan)
    if len(shares) <= _IN_ORDER:
        return shares, "client"
    shares = shares[sizes > 0]
    largest = shares.argmax(axis=1)
    shares = shares[np.lexsort((-shares.max(axis=1), largest))]
    x_label = f"{len(shares)} clients, sorted by their largest class"
    if len(shares) > _COLUMNS:
        parts = np.array_split(shares, _COLUMNS)
        shares = np.stack([part.mean(axis=0) for part in parts])
        x_label += f",\nin {_COLUMNS} columns of {words.span({len(part) for part in parts})}"
    return shares, x_label


def _histogram(ax: Any, description: Description) -> None:
    """A histogram of the sizes of clients with examples; logarithmic if these span a factor 20."""
    sizes = description.sizes[description.sizes > 0]
    low, high = int(sizes.min()), int(sizes.max())
    x_label = "examples of a client"
    if description.empty:
        x_label += f"\n({description.empty} of {description.num_clients} clients have none)"
    bins = min(_BINS, max(6, round(2 * len(sizes) ** 0.5)))
    wide = high - low >= bins and high >= 20 * low
    if wide:
        edges = np.unique(np.geomspace(low, high + 1, bins + 1).round()) - 0.5
    else:  # every bar of as many sizes
        edges = np.arange(low, high + 1 + (step := -(-(high - low + 1) // bins)), step) - 0.5
    ax.hist(
        sizes, bins=edges, color=line_styles.STYLES[0]["color"], edgecolor="white", linewidth=0.5
    )
    if wide:
        canvas.scale(ax, x_label, edges[0], edges[-1])
    else:
        from matplotlib.ticker import MaxNLocator

        ax.xaxis.set_major_locator(MaxNLocator(5 if high < 1000 else 3, integer=True))
        if low == high:  # one size: a bar that does not fill the axes
            ax.set_xlim(low - 3, high + 3)
            ax.set_xticks([low])
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel(x_label)
    ax.set_ylabel("clients")
