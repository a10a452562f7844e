"""The picture of how a metric is spread over clients, of one model beside another."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_sim.plots import canvas, line_styles, words
from fedjax_sim.results.clients import MODELS

_BINS = 20
_LOOKS = 4  # models that a figure has at most


def clients(values: Mapping[str, Any], name: str, *, width: float = canvas.WIDE) -> Any:
    """A histogram of the clients' values for each model, over the same bins, and its median.

    Args:
      values: model, as "global" or "personal" -> Float[K], one value a client; those that are not
        finite are left out.
      name: of the metric, as "accuracy".
      width: points.

    Returns:
      A matplotlib Figure.

    Raises:
      ValueError: for no model, or more than four.
      ImportError: if matplotlib is missing: which extra has it.
    """
    if not 0 < len(values) <= _LOOKS:
        raise ValueError(f"values must be of one to {_LOOKS} models; got {len(values)}")
    finite = {model: np.asarray(x, float) for model, x in values.items()}
    finite = {model: x[np.isfinite(x)] for model, x in finite.items()}
    figure, ax = canvas.figure(width)
    together = np.concatenate([*finite.values()])
    low, high = (0.0, 1.0) if not together.size else (float(together.min()), float(together.max()))
    if name == "accuracy":
        # Of bins that end at 1, the last has the clients of whom every example is right.
        low, high = min(low, 0.95), 1.0
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    for place, (model, x) in enumerate(finite.items()):
        # A model has its own colour, so that figures of other models can be compared.
        style = line_styles.STYLES[MODELS.index(model) if model in MODELS else len(MODELS) + place]
        counts, _ = np.histogram(x, edges)
        color, dashes = style["color"], style["linestyle"]
        ax.stairs(counts, edges, fill=True, color=color, alpha=0.18, linewidth=0)
        ax.stairs(
            counts, edges, color=color, linestyle=dashes, linewidth=1.8, label=words.plain(model)
        )
        if x.size:
            ax.axvline(float(np.median(x)), color=color, linestyle=dashes, linewidth=1)
    ax.set_xlabel(words.plain(f"{name} of a client"))
    ax.set_ylabel("clients")
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set_ylim(bottom=0)
    canvas.legend(figure, ax, ["upright: the median"])
    return figure
