"""Aggregation modes side by side: an algorithm by mode, participation fraction and seed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from fedjax_sim import aggregation, grid
from fedjax_sim.core.checks import check_count, check_number
from fedjax_sim.results import Results
from fedjax_sim.settings.build import experiment
from fedjax_sim.settings.common import FULL
from fedjax_sim.settings.resolve import resolve
from fedjax_sim.settings.resolved import ResolvedSetting, cohort_size
from fedjax_sim.settings.rooms import default_of
from fedjax_sim.settings.setting import Setting
from fedjax_sim.sweeps import Swept, sweep
from fedjax_sim.training.experiment import Experiment


@dataclass(frozen=True)
class Comparison:
    """A comparison as the user gave it: a run's setting, and the modes, fractions and seeds."""

    base: Setting = Setting()  # noqa: RUF009  # a frozen value can be shared as a default
    fractions: tuple[float, ...] = (0.1, 0.3, 1.0)  # C; the cohort is max(1, round(C K))
    modes: tuple[str, ...] = tuple(aggregation.RULES)
    seeds: int = 5  # seeds 0, 1, ...

    def resolved(self) -> "ResolvedComparison":
        """The same with every default filled in, checked.

        Raises:
          ValueError: naming the field, what was given and what is allowed.
        """
        for name in ("modes", "fractions"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must be at least one, each once; got {values}")
        for fraction in self.fractions:
            check_number("fraction", fraction, lambda c: 0 < c <= 1, "in (0, 1]")
        base = replace(self.base, fraction=min(self.fractions)).resolved()
        for mode in self.modes:
            # Only averages: the report's server learning rates would be wrong for other rules.
            if mode not in aggregation.RULES:
                raise ValueError(
                    f"mode must be one of {', '.join(aggregation.RULES)}; got {mode!r}"
                )
            replace(self.base, fraction=min(self.fractions), mode=mode).resolved()
        check_count("seeds", self.seeds)
        cohorts = [cohort_size(fraction, base.clients) for fraction in self.fractions]
        if len(set(cohorts)) != len(cohorts):
            raise ValueError(
                f"fractions must make cohorts of different sizes; {self.fractions} of "
                f"{base.clients} clients make {cohorts}"
            )
        target = base.facts.target if base.target is None else base.target
        base_with_target = resolve({**base.values(), "target": target})
        return ResolvedComparison(base_with_target, self.fractions, self.modes, self.seeds, target)


@dataclass(frozen=True)
class ResolvedComparison:
    """A comparison with every default filled in."""

    base: ResolvedSetting
    fractions: tuple[float, ...]
    modes: tuple[str, ...]
    seeds: int
    target: float  # the score to reach

    def at(self, fraction: float, mode: str) -> ResolvedSetting:
        """The setting of the runs of one fraction and mode."""
        return resolve({**self.base.values(), "fraction": fraction, "mode": mode})

    @property
    def configuration(self) -> dict[str, Any]:
        """The values that all runs have in common, and the fractions, modes and seeds."""
        values = {k: v for k, v in self.base.values().items() if k not in ("mode", "fraction")}
        if values.get("batch_size") == FULL:
            values["batch_size"] = None
        return {
            **values,
            "fractions": list(self.fractions),
            "modes": list(self.modes),
            "seeds": self.seeds,
        }

    @property
    def algorithm_name(self) -> str:
        """Of the algorithm whose modes are compared, as it is printed."""
        is_default = self.base.algorithm == default_of("algorithm")
        return "FedAvg" if is_default else self.base.algorithm

    @property
    def set_name(self) -> str:
        """The set that the score is measured on."""
        return "test" if self.base.validation is None else "validation"

    @property
    def score_name(self) -> str:
        """The score's name as it is printed."""
        return "R^2" if self.base.measure == "r2" else "accuracy"


def compare(
    setting: ResolvedComparison,
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
