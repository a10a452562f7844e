"""What `fedjax-sim sweep` is asked for, checked: the setting that all share, and the grid."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from fedjax_sim.cli import grids
from fedjax_sim.cli.values import setting
from fedjax_sim.core.checks import check_count
from fedjax_sim.grid import Grid, Numbered
from fedjax_sim.results.trained import KEPT
from fedjax_sim.settings.configurations import in_common, resolved_each, resolved_one
from fedjax_sim.settings.modes import experiment_of, with_numbered_modes
from fedjax_sim.settings.options import VOCABULARY, Vocabulary
from fedjax_sim.settings.private import NOISE
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.settings.setting import Setting
from fedjax_sim.training.experiment import Experiment


class Plan(NamedTuple):
    """A sweep as it was asked for: everything is checked, nothing is computed."""

    base: Setting  # the values that all configurations have in common
    tables: dict[str, Any]
    grid: Grid
    settings: tuple[ResolvedSetting, ...]  # one for each configuration
    seeds: int
    metric: str
    keep_models: str | None
    vocabulary: Vocabulary

    def values(self) -> dict[str, Any]:
        """The contents of configuration.toml."""
        kept_models = {} if self.keep_models is None else {"keep_models": self.keep_models}
        of_the_sweep = {"seeds": self.seeds, "metric": self.metric, **kept_models}
        return {**self.base.values(), **of_the_sweep, **self.tables}

    @property
    def static(self) -> list[str]:
        """Names of the axes whose values are constants of a compiled program."""
        options = self.vocabulary.options
        values = self.grid.configurations[0]
        return [
            name
            for name in self.grid.names
            if not options[name].traced and not isinstance(values[name], Numbered)
        ]

    @property
    def of_each_program(self) -> Collection[ResolvedSetting]:
        """The setting of one configuration of each compiled program."""
        programs = (tuple(values[name] for name in self.static) for values in self.grid)
        return dict(zip(programs, self.settings, strict=True)).values()

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `fs.sweep`."""
        return {
            "static": self.static,
            "keep_models": self.keep_models,
            "metric": self.metric if self.keep_models == "best" else None,
        }

    def experiment(self, **hyper: Any) -> Experiment:
        """The experiment of a configuration, whose values may be traced."""
        shared = self.base.values()
        return experiment_of(
            self.grid, hyper, lambda own: resolved_one(shared, own, self.vocabulary)
        )

    @property
    def keys(self) -> range:
        """The seeds."""
        return range(self.base.seed, self.base.seed + self.seeds)


def plan_of(values: Mapping[str, Any], vocabulary: Vocabulary = VOCABULARY) -> Plan:
    """Makes the plan of a sweep from values by name, checking every one."""
    seeds, metric = values.get("seeds", 1), values.get("metric")
    check_count("seeds", seeds)
    shared = {name: value for name, value in values.items() if name in vocabulary.options}
    base = setting(shared, vocabulary)
    tables = {name: values[name] for name in grids.TABLES if name in values}
    tables = grids.checked(tables, vocabulary)
    grid = grids.build(tables, vocabulary)
    settings = resolved_each(base.values(), grid, vocabulary)
    # An epsilon stays in the place of the noise that it asks for, of which a grid may have several.
    asked_by_epsilon = () if base.epsilon is None else (NOISE,)
    common = in_common(settings, without=(*grid.names, *asked_by_epsilon))
    if base.seed + seeds > 2**32:
        raise ValueError(
            f"seeds must be at most {2**32 - base.seed}, counted up from seed {base.seed} to below "
            f"2^32; got {seeds}"
        )
    if metric is not None and not isinstance(metric, str):
        raise ValueError(f"metric must be text; got {metric!r}")
    keep_models = values.get("keep_models")
    if keep_models not in (None, *KEPT):
        raise ValueError(f"keep_models must be {' or '.join(KEPT)}; got {keep_models!r}")
    return Plan(
        base.but(**common),
        tables,
        with_numbered_modes(grid, settings),
        settings,
        seeds,
        metric or settings[0].score,
        keep_models,
        vocabulary,
    )
