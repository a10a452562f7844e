"""The cards of a page that show how a metric is spread over the clients of a run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from markupsafe import Markup

from fedjax_sim import plots
from fedjax_sim.plots import canvas
from fedjax_sim.report.cards import inline
from fedjax_sim.report.reading import Folder
from fedjax_sim.report.rendering import markup
from fedjax_sim.results.clients import worst_tenth

HEADS = ("mean", "worst tenth", "p10", "median", "p90")


class ClientCard(NamedTuple):
    """A folder's histogram of clients, and the numbers below it.

    Attributes:
      title: whose, and of how many clients.
      svg: the histogram.
      rows: (model, a cell for each of `HEADS`), as text.
    """

    title: str
    svg: "Markup"
    rows: list[tuple[str, list[str]]]


def client_cards(folders: Mapping[str, Folder]) -> list[ClientCard]:
    """The cards of the folders that have values by client.

    Args:
      folders: name -> what it holds.
    """
    shown: list[ClientCard] = []
    for name, folder in folders.items():
        clients = folder.clients
        if clients is None:
            continue
        metric = clients.metric
        values = clients.by_model(metric)
        values = {model: x[np.isfinite(x)] for model, x in values.items()}
        values = {model: x for model, x in values.items() if x.size}
        if not values:
            continue
        num_clients = max(x.size for x in values.values())
        of_folder = f" of {name}" if len(folders) > 1 else ""
        title = f"{metric} of {num_clients} clients{of_folder}"
        svg = inline(plots.clients(values, metric, width=canvas.WIDTH), f"c{len(shown) + 1}")
        rows = [(model, _numbers(x, metric)) for model, x in values.items()]
        shown.append(ClientCard(title, markup(svg, title), rows))
    return shown


def _numbers(values: np.ndarray, metric: str) -> list[str]:
    """The cells of a model's row."""
    numbers = (
        np.mean(values),
        worst_tenth(values, lowest_is_worst=metric != "loss"),
        *np.percentile(values, (10, 50, 90)),
    )
    return [f"{number:.3f}" for number in numbers]
