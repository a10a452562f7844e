"""What `fedjax-sim run` runs: of the options, of CONFIG and of what is to be resumed."""

import argparse
from typing import Any, NamedTuple

from fedjax_sim.cli import files
from fedjax_sim.cli.options import given, read
from fedjax_sim.cli.values import setting
from fedjax_sim.core.checks import check_count
from fedjax_sim.host.keeping import check_keep_model
from fedjax_sim.host.manifest import Manifest
from fedjax_sim.host.stopping import Criterion, patience, reaches
from fedjax_sim.results.folder import CONFIGURATION, RUN, RunFolder
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.settings.setting import Setting

# What may be another where a run is resumed; on which conditions, `simulate` knows.
_MAY_CHANGE = ("rounds", "target", "patience", "baselines")


class Plan(NamedTuple):
    """What a run is of, all of it checked and nothing computed.

    Attributes:
      patience: evaluations in a row without a better score that end the run; None for none.
      keep_model: which model is kept, "final" or "best".
      baselines: names of those that are trained behind it.
    """

    setting: ResolvedSetting
    patience: int | None
    keep_model: str
    baselines: list[str]

    @property
    def configuration(self) -> dict[str, Any]:
        """As configuration.toml has it, without what is as it is by default."""
        own = {
            "patience": self.patience,
            "keep_model": None if self.keep_model == "final" else self.keep_model,
            "baselines": self.baselines or None,
        }
        return self.setting.values() | {name: x for name, x in own.items() if x is not None}

    @property
    def stop(self) -> Criterion | list[Criterion] | None:
        """What ends the run before its last round."""
        chosen = self.setting
        criteria: list[Criterion] = []
        if chosen.target is not None:
            criteria.append(reaches(chosen.score, chosen.target))
        if self.patience is not None:
            criteria.append(patience(chosen.score, self.patience))
        return (criteria[0] if len(criteria) == 1 else criteria) if criteria else None


def plan_of(options: argparse.Namespace, out: RunFolder) -> Plan:
    """What is to run, of the options, of CONFIG and of what is to be resumed.

    Raises:
      ValueError: for what cannot be, or cannot go on with what is there.
    """
    from fedjax_sim.cli import baselines  # here: it needs rich, whose absence a command tells

    values = read("run", options, more=("patience", "keep_model"))
    before = baselines.there(out.path) if options.resume else []
    names = baselines.named(before, values.pop("baselines", []), getattr(options, "baselines", []))
    evaluations = values.pop("patience", None)
    if evaluations is not None:
        check_count("patience", evaluations)
    keep_model = values.pop("keep_model", "final")
    check_keep_model(keep_model, None)
    if options.resume:
        _check_schedule(setting(values, options.vocabulary), options)
    chosen = setting(values, options.vocabulary).resolved()
    plan = Plan(chosen, evaluations, keep_model, names)
    if options.resume:
        _check_resumed(plan, out)
    baselines.check(names, plan.setting, out, resume=options.resume, overwrite=options.overwrite)
    return plan


def _check_resumed(plan: Plan, out: RunFolder) -> None:
    """Refuses to go on with another run than the one that is there, if any is.

    Raises:
      ValueError: saying what differs.
    """
    fixed = {name: x for name, x in plan.configuration.items() if name not in _MAY_CHANGE}
    files.check_same(out.path, fixed, _MAY_CHANGE)
    before = Manifest.read(out, RUN)
    if before is not None:
        before.check_rounds_done(out, plan.setting.rounds, plan.setting.evaluate_every)


def _check_schedule(chosen: Setting, options: argparse.Namespace) -> None:
    """Refuses other rounds than before for a schedule that spans the rounds by default.

    What is there does not say whether its span was given or is that of all rounds.

    Args:
      chosen: of what is there and the options, not resolved.

    Raises:
      ValueError: if the span is that of what is there, and by default another here: what does go
        on, where anything does.
    """
    path = options.out / CONFIGURATION
    if options.config is not None or not path.exists() or "decay_rounds" in given(options):
        return
    there = files.read(path)
    before: Any = there.get("rounds")
    if "decay_rounds" not in there or before == chosen.rounds:
        return
    spans = [
        chosen.but(decay_rounds=None, rounds=rounds).resolved().values().get("decay_rounds")
        for rounds in (before, chosen.rounds)
    ]
    if spans[0] != chosen.decay_rounds or spans[0] == spans[1]:
        return
    new = f"fedjax-sim run {path} --rounds {chosen.rounds} --decay-rounds {spans[1]} --out ANOTHER"
    cure = f"give --decay-rounds {spans[0]} to go on with the one that is there, or start anew"
    if there.get("decay_end") == 0 and chosen.rounds > before:
        cure = (
            "behind the end of the one that is there the rate is 0, and nobody trains; start anew"
        )
    raise ValueError(
        f"--out {options.out} cannot be resumed: rounds is {before} there and {chosen.rounds} "
        f"here, on which the {chosen.schedule} schedule depends: by default it has "
        f"decay_rounds {spans[0]} there and {spans[1]} here; {cure}: {new}"
    )
