"""Aggregation modes side by side: an algorithm by mode, codec, participation fraction and seed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from fedjax_sim import aggregation
from fedjax_sim.core.checks import check_count, check_number
from fedjax_sim.grid import Grid, product
from fedjax_sim.results import Results
from fedjax_sim.settings.common import FULL
from fedjax_sim.settings.configurations import resolved_each, resolved_one
from fedjax_sim.settings.modes import MODE, experiment_of, with_numbered_modes
from fedjax_sim.settings.resolve import resolve
from fedjax_sim.settings.resolved import ResolvedSetting, cohort_size
from fedjax_sim.settings.rooms import NONE, default_of
from fedjax_sim.settings.setting import Setting
from fedjax_sim.sweeps import Swept, sweep


@dataclass(frozen=True)
class Comparison:
    """A comparison as the user gave it: a run's setting, and the modes, fractions and seeds."""

    base: Setting = Setting()  # noqa: RUF009  # a frozen value can be shared as a default
    fractions: tuple[float, ...] = (0.1, 0.3, 1.0)  # C; the cohort is max(1, round(C K))
    modes: tuple[str, ...] = tuple(aggregation.RULES)
    seeds: int = 5  # seeds 0, 1, ...
    compress: tuple[str, ...] = (NONE,)  # codecs of what clients send
    codec_options: Mapping[str, Any] = field(default_factory=dict)  # of those codecs that have them

    def resolved(self) -> "ResolvedComparison":
        """The same with every default filled in, checked.

        Raises:
          ValueError: naming the field, what was given and what is allowed.
        """
        for name in ("modes", "fractions", "compress"):
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
        resolved = ResolvedComparison(
            base_with_target,
            self.fractions,
            self.modes,
            self.compress,
            self.codec_options,
            self.seeds,
            target,
        )
        several = [resolved.values_of(self.fractions[0], self.modes[0], x) for x in self.compress]
        resolved_each(resolved.shared, several)
        return resolved


@dataclass(frozen=True)
class ResolvedComparison:
    """A comparison with every default filled in."""

    base: ResolvedSetting
    fractions: tuple[float, ...]
    modes: tuple[str, ...]
    compress: tuple[str, ...]
    codec_options: Mapping[str, Any]
    seeds: int
    target: float  # the score to reach

    def at(self, fraction: float, mode: str, codec: str = NONE) -> ResolvedSetting:
        """The setting of the runs of one fraction, mode and codec."""
        return resolved_one(self.shared, self.values_of(fraction, mode, codec))

    @property
    def grid(self) -> Grid:
        """All fractions with all modes, and codecs where any is used."""
        axes: dict[str, Any] = {"fraction": self.fractions, MODE: self.modes}
        return product(**axes, **({"compress": self.compress} if self.is_of_codecs else {}))

    def of(self, configuration: Mapping[str, Any]) -> ResolvedSetting:
        """The setting of the runs of a configuration of the grid."""
        codec = configuration.get("compress", NONE)
        return self.at(configuration["fraction"], configuration[MODE], codec)

    @staticmethod
    def values_of(fraction: float, mode: str, codec: str) -> dict[str, Any]:
        """The values in which runs differ."""
        return {"fraction": fraction, "mode": mode, "compress": codec}

    @property
    def shared(self) -> dict[str, Any]:
        """The values of all runs that take them: a codec's own are of its runs alone."""
        return {**self.base.values(), **self.codec_options}

    @property
    def is_of_codecs(self) -> bool:
        """Whether any run sends by a codec."""
        return self.compress != (NONE,)

    def label(self, mode: str, codec: str) -> str:
        """The name of a line: what differs between lines of a mode and a codec."""
        several = len(self.modes) > 1, len(self.compress) > 1
        words = [word for word, shown in zip((mode, codec), several, strict=True) if shown]
        return ", ".join(words) or (codec if self.is_of_codecs else mode)

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
            **self.of_codecs,
            "seeds": self.seeds,
        }

    @property
    def algorithm_name(self) -> str:
        """Of the algorithm whose modes are compared, as it is printed."""
        is_default = self.base.algorithm == default_of("algorithm")
        return "FedAvg" if is_default else self.base.algorithm

    @property
    def of_codecs(self) -> dict[str, Any]:
        """The codecs and their options; nothing where none is used."""
        if not self.is_of_codecs:
            return {}
        return {"compress": list(self.compress), **self.codec_options}

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
    settings = [setting.of(configuration) for configuration in setting.grid]
    configurations = with_numbered_modes(setting.grid, settings)
    return sweep(
        lambda **hyper: experiment_of(configurations, hyper, setting.of),
        configurations,
        range(setting.seeds),
        static=tuple(name for name in setting.grid.names if name != MODE),
        mesh=mesh,
        out=out,
        resume=resume,
        checkpoint_every=checkpoint_every,
        on_progress=on_progress,
        configuration={"command": "compare", **setting.configuration},
    )
