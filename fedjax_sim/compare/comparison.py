"""Aggregation modes side by side: FedAvg by mode, participation fraction and seed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_sim import aggregation, grid
from fedjax_sim.core.checks import check_count, check_number
from fedjax_sim.results import Results
from fedjax_sim.settings.build import experiment
from fedjax_sim.settings.defaults import OF_DATASET, REGRESSIONS
from fedjax_sim.settings.setting import Setting as One
from fedjax_sim.settings.setting import cohort_size as cohort_size
from fedjax_sim.sweeps import Swept, sweep
from fedjax_sim.training.communication import Communication, communication
from fedjax_sim.training.experiment import Experiment


@dataclass(frozen=True)
class Setting:
    """What is compared: one run, but for its mode, fraction and seed."""

    one: One = One()  # noqa: RUF009  # frozen
    fractions: tuple[float, ...] = (0.1, 0.3, 1.0)  # C; the cohort is max(1, round(C K))
    modes: tuple[str, ...] = tuple(aggregation.RULES)
    seeds: int = 5  # seeds 0, 1, ...

    def resolved(self) -> "Setting":
        """The same with every None of a default filled in, checked.

        Raises:
          ValueError: naming the field, what was given and what is allowed.
        """
        for name in ("modes", "fractions"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must be at least one, each once; got {values}")
        for fraction in self.fractions:
            check_number("fraction", fraction, lambda c: 0 < c <= 1, "in (0, 1]")
        base = replace(self.one, fraction=min(self.fractions)).resolved()
        for mode in self.modes:
            replace(base, mode=mode).resolved()
        check_count("seeds", self.seeds)
        clients: Any = base.clients
        cohorts = [cohort_size(fraction, clients) for fraction in self.fractions]
        if len(set(cohorts)) != len(cohorts):
            raise ValueError(
                f"fractions must make cohorts of different sizes; {self.fractions} of {clients} "
                f"clients make {cohorts}"
            )
        if base.target is None:
            base = replace(base, target=OF_DATASET[base.dataset].target)
        return replace(self, one=base)

    def at(self, fraction: float, mode: str) -> One:
        """The setting of its runs there."""
        return replace(self.one, fraction=fraction, mode=mode)

    @property
    def configuration(self) -> dict[str, Any]:
        """What all runs have in common, and what is compared."""
        values = {k: v for k, v in self.one.values().items() if k not in ("mode", "fraction")}
        if values["batch_size"] == "full":
            values["batch_size"] = None
        return {
            **values,
            "fractions": list(self.fractions),
            "modes": list(self.modes),
            "seeds": self.seeds,
        }

    @property
    def target(self) -> float:
        """The score to reach, of a resolved setting."""
        assert self.one.target is not None
        return self.one.target

    @property
    def set_name(self) -> str:
        """Of which set the score is."""
        return "test" if self.one.validation is None else "validation"

    @property
    def score_name(self) -> str:
        """As it is printed."""
        return "R^2" if self.one.dataset in REGRESSIONS else "accuracy"


def bytes_of(made: Experiment) -> Communication:
    """Bytes of one exchange."""
    params: Any = made.params
    return communication(made.algorithm, params(jax.random.key(0)), made.data)


def compare(
    setting: Setting,
    *,
    mesh: Mesh | None = None,
    out: Path | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    on_progress: Callable[[Swept], None] | None = None,
) -> Results:
    """Trains every mode and fraction with every seed of a resolved setting.

    The modes of one seed and fraction share initial model, cohorts and shuffles (common random
    numbers), so that they differ by aggregation alone. The arguments are those of `fs.sweep`.
    """

    def factory(fraction: float, mode: str) -> Experiment:
        return experiment(setting.at(fraction, mode))

    return sweep(
        factory,
        grid.product(fraction=setting.fractions, mode=setting.modes),
        range(setting.seeds),
        static=("fraction",),
        mesh=mesh,
        out=out,
        resume=resume,
        checkpoint_every=checkpoint_every,
        on_progress=on_progress,
        configuration={"command": "compare", **setting.configuration},
    )


def rounds_to_target(
    scores: np.ndarray, target: float, rounds: np.ndarray | None = None
) -> float | None:
    """Rounds until the score first reaches the target; None if it never does.

    The curve is made monotone by the best value so far and interpolated linearly, as in
    McMahan et al. 2017.

    Args:
      scores: [n].
      target: the score to reach.
      rounds: Int[n], after which each was measured; None for 1, 2, ..., n.

    >>> rounds_to_target(np.array([0.5, 0.4, 0.7]), 0.6)
    2.5
    >>> rounds_to_target(np.array([0.5, 0.4, 0.7]), 0.6, np.array([10, 20, 30]))
    25.0
    """
    at = np.arange(1, len(scores) + 1) if rounds is None else rounds
    best = np.maximum.accumulate(np.where(np.isfinite(scores), scores, -np.inf))
    # Of 32 bits each, as accuracies are: 0.7 is above its nearest of those.
    reached = np.flatnonzero(best.astype(np.float32) >= np.float32(target))
    if not reached.size:
        return None
    i = int(reached[0])
    if i == 0 or not np.isfinite(best[i - 1]):
        return float(at[i])
    share = min(1.0, (target - best[i - 1]) / (best[i] - best[i - 1]))
    return float(at[i - 1] + share * (at[i] - at[i - 1]))
