"""The result of `fs.simulate`: its repr, its table, and its model in a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_sim.core.history import Communication, History
from fedjax_sim.core.notebook import card, number, words
from fedjax_sim.core.types import FederatedState
from fedjax_sim.host.keeping import Best, Keep
from fedjax_sim.results import Results, Run
from fedjax_sim.results.columns import columns
from fedjax_sim.results.trained import save_trained, trained_params


class Simulation(NamedTuple):
    """The result of `fs.simulate`.

    Attributes:
      state: after the last round done.
      history: of the rounds done, numpy leaves.
      status: "finished"; "stopped", by `stop`; or "interrupted", by a signal.
      exchange: the bytes of one exchange.
      num_rounds: R, the rounds that were asked for.
      best: with `keep_model="best"`: its params, the metric's value, and the rounds that it was
        trained for (0, and the first model, if the metric was never measured).
    """

    state: FederatedState
    history: History
    status: str
    exchange: Communication
    num_rounds: int
    best: Best | None = None

    def __repr__(self) -> str:
        return f"Simulation({words(self._facts())})"

    def _repr_html_(self) -> str:
        return card("Simulation", self._facts())

    def _facts(self) -> dict[str, Any]:
        measured = self.history._facts()
        rounds = f"{number(measured.pop('rounds'))} of {number(self.num_rounds)}"
        size = sum(x.size for x in jax.tree.leaves(trained_params(self.state)))
        return {"status": self.status, "rounds": rounds, **measured, "parameters": size}

    def results(self, configuration: Mapping[str, Any] | None = None, seed: int = 0) -> Results:
        """The run as a table of one: to print, to save, to hand to pandas.

        Args:
          configuration: hyper-parameter -> value, to label it with.
          seed: its label.
        """
        # A run that its criterion ended is complete.
        num_rounds = (
            self.num_rounds if self.status == "interrupted" else len(self.history.evaluated)
        )
        rounds = columns(self.history, self.exchange)
        return Results((Run(dict(configuration or {}), seed, rounds, {}, num_rounds),))


def save_model(
    path: Path,
    simulation: Simulation,
    keep: Keep | None,
    configuration: Mapping[str, Any],
    seed: int | None,
) -> None:
    """Writes the final model, or the best one, where `fs.load` finds it."""
    best = simulation.best
    save_trained(
        path,
        trained_params(simulation.state) if best is None else best.params,
        configuration=configuration,
        seed=seed,
        round=len(simulation.history.evaluated) if best is None else int(best.round),
        num_rounds=simulation.num_rounds,
        status=simulation.status,
        kept="final" if keep is None else keep.kept,
        metric=None if keep is None else keep.metric,
        value=None if best is None else float(best.value),
    )
