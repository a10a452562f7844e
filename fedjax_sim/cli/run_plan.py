"""The plan of `fedjax-sim run`, made of options, CONFIG and the folder that is to be resumed."""

import argparse
from typing import Any, NamedTuple

from jax.sharding import Mesh

from fedjax_sim.cli import files
from fedjax_sim.cli.options import read, setting_options
from fedjax_sim.cli.values import setting
from fedjax_sim.core.checks import check_count
from fedjax_sim.host.held_states import IN_MEMORY, check_states_are_in
from fedjax_sim.host.keeping import check_keep_model
from fedjax_sim.host.manifest import Manifest
from fedjax_sim.host.stopping import Criterion, patience, reaches
from fedjax_sim.results.folder import CONFIGURATION, RUN, RunFolder
from fedjax_sim.settings.clients import check_fine_tune
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.settings.setting import Setting
from fedjax_sim.training.experiment import Experiment

# Values of CONFIG that are the command's own, but for `baselines`, which adds to those of a folder.
_BESIDE_THE_SETTING = ("patience", "keep_model", "fine_tune", "client_states")
# Values that may change when a run is resumed; `simulate` checks under which conditions.
_MAY_CHANGE = ("rounds", "target", "patience", "baselines", "fine_tune")


class Plan(NamedTuple):
    """A run as it was asked for: everything is checked, nothing is computed.

    Attributes:
      patience: evaluations in a row without a better score that end the run; None for none.
      keep_model: which model is kept, "final" or "best".
      baselines: names of those that are trained after it.
      fine_tune: epochs that each client's model is trained further after it; None for none.
      client_states: where what clients keep is, "memory" or "disk".
    """

    setting: ResolvedSetting
    patience: int | None
    keep_model: str
    baselines: list[str]
    fine_tune: int | None = None
    client_states: str = IN_MEMORY

    @property
    def configuration(self) -> dict[str, Any]:
        """The contents of configuration.toml, without values that are their defaults."""
        beside_the_setting = {
            "patience": self.patience,
            "keep_model": None if self.keep_model == "final" else self.keep_model,
            "baselines": self.baselines or None,
            "fine_tune": self.fine_tune,
            "client_states": None if self.client_states == IN_MEMORY else self.client_states,
        }
        return self.setting.values() | {
            name: x for name, x in beside_the_setting.items() if x is not None
        }

    @property
    def stop(self) -> Criterion | list[Criterion] | None:
        """The criteria that end the run before its last round; None without any."""
        resolved = self.setting
        criteria: list[Criterion] = []
        if resolved.target is not None:
            criteria.append(reaches(resolved.score, resolved.target))
        if self.patience is not None:
            criteria.append(patience(resolved.score, self.patience))
        return (criteria[0] if len(criteria) == 1 else criteria) if criteria else None


def plan_of(options: argparse.Namespace, out: RunFolder) -> Plan:
    """Makes the plan of a run, checking every value.

    Raises:
      ValueError: for values that are refused, or that cannot continue the run in `out`.
    """
    # Imported here because it needs rich, whose absence is reported once a command is called.
    from fedjax_sim.cli import baselines

    values = read("run", options, own_names=_BESIDE_THE_SETTING)
    saved_baselines = baselines.saved_names(out.path) if options.resume else []
    names = baselines.names_to_train(
        saved_baselines, values.pop("baselines", []), getattr(options, "baselines", [])
    )
    evaluations = values.pop("patience", None)
    if evaluations is not None:
        check_count("patience", evaluations)
    fine_tune = values.pop("fine_tune", None)
    keep_model = values.pop("keep_model", "final")
    check_keep_model(keep_model, None)
    client_states = values.pop("client_states", IN_MEMORY)
    check_states_are_in(client_states)
    if options.resume:
        _check_schedule(setting(values, options.vocabulary), options)
    resolved = setting(values, options.vocabulary).resolved()
    if fine_tune is not None:
        check_fine_tune(resolved, fine_tune)
    plan = Plan(resolved, evaluations, keep_model, names, fine_tune, client_states)
    if options.resume:
        _check_resumed(plan, out)
    baselines.check(names, plan.setting, out, resume=options.resume, overwrite=options.overwrite)
    return plan


def in_a_line(resolved: ResolvedSetting, experiment: Experiment, mesh: Mesh | None) -> str:
    """What is about to run, in a line."""
    sizes = experiment.data.num_examples
    devices = [] if mesh is None else [*mesh.devices.flat]
    processes = {device.process_index for device in devices}
    where = f", on {len(devices)} devices of {len(processes)} processes"
    return (
        f"{resolved.algorithm} on {resolved.dataset} ({resolved.partition}): "
        f"K={resolved.clients} clients of {int(sizes.min())} to {int(sizes.max())} examples, "
        f"{_cohort(resolved)}, {resolved.rounds} rounds{where if len(processes) > 1 else ''}"
    )


def _cohort(resolved: ResolvedSetting) -> str:
    """Who takes part in a round, in words."""
    if resolved.choices.asynchronous is not None:
        return f"c={resolved.options['concurrency']} in training at a time"
    if resolved.choices.sampler.takes("q"):
        return f"m={resolved.expected_cohort:g} in a round on average"
    if not resolved.choices.sampler.takes("m"):
        return f"all m={resolved.clients} in each round"
    return f"m={resolved.slots} in each round"


def _check_resumed(plan: Plan, out: RunFolder) -> None:
    """Refuses to go on with another run than the folder's, if it has one.

    Raises:
      ValueError: saying what differs.
    """
    fixed = {name: x for name, x in plan.configuration.items() if name not in _MAY_CHANGE}
    files.check_same(out.path, fixed, _MAY_CHANGE)
    manifest = Manifest.read(out, RUN)
    if manifest is not None:
        manifest.check_rounds_done(out, plan.setting.rounds, plan.setting.evaluate_every)


def _check_schedule(unresolved: Setting, options: argparse.Namespace) -> None:
    """Refuses other rounds than before for a schedule that spans the rounds by default.

    The saved configuration.toml does not say whether `decay_rounds` was given or is the default,
    the number of rounds.

    Args:
      unresolved: the saved values and the options over them.

    Raises:
      ValueError: if the saved span is the default of the saved rounds and would be another one by
        default here; the message says how to go on, where that is possible.
    """
    path = options.out / CONFIGURATION
    if (
        options.config is not None
        or not path.exists()
        or "decay_rounds" in setting_options(options)
    ):
        return
    saved = files.read(path)
    saved_rounds: Any = saved.get("rounds")
    if "decay_rounds" not in saved or saved_rounds == unresolved.rounds:
        return
    spans = [
        unresolved.but(decay_rounds=None, rounds=rounds).resolved().values().get("decay_rounds")
        for rounds in (saved_rounds, unresolved.rounds)
    ]
    if spans[0] != unresolved.decay_rounds or spans[0] == spans[1]:
        return
    rounds = unresolved.rounds
    new = f"fedjax-sim run {path} --rounds {rounds} --decay-rounds {spans[1]} --out ANOTHER"
    cure = f"give --decay-rounds {spans[0]} to go on with the one that is there, or start anew"
    if saved.get("decay_end") == 0 and rounds > saved_rounds:
        cure = (
            "behind the end of the one that is there the rate is 0, and nobody trains; start anew"
        )
    raise ValueError(
        f"--out {options.out} cannot be resumed: rounds is {saved_rounds} there and "
        f"{rounds} here, on which the {unresolved.schedule} schedule depends: by default it has "
        f"decay_rounds {spans[0]} there and {spans[1]} here; {cure}: {new}"
    )
