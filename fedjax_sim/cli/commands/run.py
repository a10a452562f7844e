"""`fedjax-sim run`: one run.

Read from above: `call` makes a `Plan` of the options, an experiment of the plan, trains it into the
results folder, and says what came of it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.cli import files, folder, machine
from fedjax_sim.cli.arguments import add_config, add_out, whole
from fedjax_sim.cli.options import add_setting
from fedjax_sim.cli.run_plan import Plan, plan_of
from fedjax_sim.cli.signals import INTERRUPTED
from fedjax_sim.host.driver import Interrupt
from fedjax_sim.host.simulate import simulate
from fedjax_sim.host.simulation import Simulation
from fedjax_sim.host.telling import Writer
from fedjax_sim.results import Run
from fedjax_sim.results.folder import CONFIGURATION, MODEL, RUN, RunFolder
from fedjax_sim.results.trained import KEPT, relabel
from fedjax_sim.settings import build as problem
from fedjax_sim.settings.options import VOCABULARY, Vocabulary
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.training.experiment import Experiment
from fedjax_sim.writers import tensorboard, wandb

DESCRIPTION = (
    "Trains one model, saved as it goes, and writes configuration.toml (which can be given as "
    "CONFIG), model.npz (which fs.load reads), rounds.csv, table.csv and summary.json."
)
HAS_SETTING = True


def add_options(parser: argparse.ArgumentParser, vocabulary: Vocabulary = VOCABULARY) -> None:
    """Those of a setting, of the folder and of what is written beside."""
    add_config(parser)
    add_setting(parser, vocabulary)
    parser.add_argument(
        "--patience",
        type=whole,
        default=argparse.SUPPRESS,
        metavar="N",
        help="end the run once N evaluations in a row brought no better score",
    )
    parser.add_argument(
        "--keep-model",
        choices=KEPT,
        default=argparse.SUPPRESS,
        help="which model model.npz is: the final one (default), also where --patience ends the "
        "run, or the best by the score, which is of what --validation holds out, else of the test "
        "set",
    )
    add_out(parser, None, "go on with the run in --out, for more --rounds if they are given")
    parser.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="write TensorBoard's events there, too"
    )
    parser.add_argument(
        "--wandb",
        metavar="PROJECT",
        help="write a run of Weights & Biases in --out, too, offline (wandb sync sends it)",
    )
    parser.add_argument(
        "--baselines",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="train these too, for as many rounds as the run had, each in a folder of its name in "
        "--out: centralised (on all data in one place), local_only (every client alone, in the "
        "rounds that pick it)",
    )


def call(options: argparse.Namespace) -> int:
    """Trains, writes, prints."""
    from fedjax_sim.cli import show

    out = RunFolder(options.out)
    out.check(RUN, options.resume, options.overwrite)
    plan = plan_of(options, out)
    experiment = _experiment(plan.setting)
    writers = _writers(plan, options)
    for each in (out, *map(out.baseline, plan.baselines)):
        each.prepare(options.overwrite)

    console = show.console()
    console.print(_before(plan.setting, experiment), soft_wrap=True)
    with Interrupt() as interrupt:  # one that comes too late for the run is for its baselines
        simulation, written = _train(plan, experiment, writers, out, options.resume)
        for line in _after(plan, simulation, written, out):
            console.print(line, soft_wrap=True)
        through = simulation.status != "interrupted"
        if through and plan.baselines:
            budget = experiment._replace(num_rounds=len(simulation.history.evaluated))
            through = _train_baselines(plan, budget, interrupt, out, options.resume)
    return 0 if through else INTERRUPTED


def _experiment(chosen: ResolvedSetting) -> Experiment:
    """The experiment of a setting, checked without being run."""
    import jax

    mesh = machine.use_cores(chosen.cores)
    experiment = problem.experiment(chosen, mesh)
    experiment.check(jax.random.key(chosen.seed))
    return experiment


def _writers(plan: Plan, options: argparse.Namespace) -> list[Writer]:
    """Where the run's numbers go while it runs, beside the folder."""
    writers: list[Writer] = []
    if options.tensorboard is not None:
        writers.append(tensorboard(options.tensorboard))
    if options.wandb is not None:
        configuration = plan.configuration
        writers.append(wandb(options.wandb, configuration=configuration, folder=options.out))
    return writers


def _train(
    plan: Plan,
    experiment: Experiment,
    writers: Sequence[Writer],
    out: RunFolder,
    resume: bool,
) -> tuple[Simulation, Sequence[str]]:
    """The run, and the names of the files of its results.

    Raises:
      KeyboardInterrupt: if no round was computed.
    """
    from fedjax_sim.cli import baselines, show

    chosen, configuration = plan.setting, plan.configuration
    with folder.saying_what_is_saved(out.path), files.written(out.path, configuration):
        with show.run_progress(chosen.rounds, chosen.score) as tell:
            simulation = simulate(
                experiment,
                chosen.seed,
                out=out.path,
                resume=resume,
                stop=plan.stop,
                on_progress=tell,
                writers=writers,
                configuration=chosen.values_without_target(),
                keep_model=plan.keep_model,
                metric=chosen.score if plan.keep_model == "best" else None,
            )
        if not len(simulation.history.evaluated):
            raise KeyboardInterrupt
        relabel(out.path / MODEL, configuration)
        summary = baselines.summary(configuration, chosen, simulation)
        results = simulation.results(seed=chosen.seed)
        written = results.save(out.path, summary | simulation.exchange.facts())
    return simulation, written


def _train_baselines(
    plan: Plan, budget: Experiment, interrupt: Interrupt, out: RunFolder, resume: bool
) -> bool:
    """The run's baselines, one after the other; whether all of them are through.

    Args:
      budget: the run's experiment, of as many rounds as it had.
    """
    from fedjax_sim.cli import baselines, show

    console = show.console()
    for name in plan.baselines:
        if interrupt.received is not None:
            line, through = f"Interrupted before {name}", False
        else:
            line, through = baselines.train(name, plan.setting, budget, out.path, resume)
        if not through:
            console.print(f"{line}: {_go_on(out)}", soft_wrap=True)
            return False
        console.print(line, soft_wrap=True)
    return True


def _before(chosen: ResolvedSetting, experiment: Experiment) -> str:
    """What is about to run, in a line."""
    sizes = experiment.data.num_examples
    return (
        f"{chosen.algorithm} on {chosen.dataset} ({chosen.partition}): K={chosen.clients} clients "
        f"of {int(sizes.min())} to {int(sizes.max())} examples, {_cohort(chosen)}, "
        f"{chosen.rounds} rounds"
    )


def _cohort(chosen: ResolvedSetting) -> str:
    """Who takes part in a round, in words."""
    if chosen.choices.sampler.takes("q"):
        return f"m={chosen.expected_cohort:g} in a round on average"
    if not chosen.choices.sampler.takes("m"):
        return f"all m={chosen.clients} in each round"
    return f"m={chosen.slots} in each round"


def _after(plan: Plan, simulation: Simulation, written: Sequence[str], out: RunFolder) -> list[str]:
    """How it ended, in a few lines."""
    chosen = plan.setting
    run = simulation.results(seed=chosen.seed).runs[0]
    row, done = run.row(), run.done
    names = dict.fromkeys((chosen.score, chosen.test_score, "test_loss", "train_loss"))
    known = [(name, row.get(name)) for name in names]
    scores = ", ".join(f"{name} {x:.4f}" for name, x in known if isinstance(x, float))
    traffic = f"{int(row['bytes_down'] or 0) / 1e6:.2f} MB down, "
    traffic += f"{int(row['bytes_up'] or 0) / 1e6:.2f} MB up"
    lines = [f"After {done} round{'s' if done > 1 else ''}: {scores}; {traffic}."]
    if run.diverged:
        lines.append("DIVERGED: an update or a measure was not finite.")
    if simulation.status == "stopped":
        lines.append(_why_stopped(plan, run))
    if simulation.status == "interrupted":
        lines.append(
            f"Interrupted after {done} of {chosen.rounds} rounds, which are saved: {_go_on(out)}"
        )
    lines.append(_kept(chosen, simulation))
    lines.append(f"Wrote {', '.join((*written, MODEL, CONFIGURATION))} to {out.path}")
    return lines


def _why_stopped(plan: Plan, run: Run) -> str:
    """Which criterion ended it, in words."""
    chosen, done = plan.setting, run.done
    reached: Any = chosen.target is not None and run.rounds[chosen.score] >= chosen.target
    if np.any(reached):
        round = int(np.argmax(reached)) + 1
        earlier = f" in round {round} already" if round < done else ""
        return f"Stopped: {chosen.score} reached {chosen.target:g}{earlier}."
    best = np.nanmax(run.measured(chosen.score))
    round = int(np.flatnonzero(run.rounds[chosen.score] == best)[0]) + 1
    return (
        f"Stopped: {chosen.score} was no better in {plan.patience} evaluations than the "
        f"{best:.4f} of round {round}."
    )


def _kept(chosen: ResolvedSetting, simulation: Simulation) -> str:
    """Which model model.npz is, in words."""
    best, last = simulation.best, len(simulation.history.evaluated)
    if best is None:
        return f"{MODEL} is the final model, of round {last} (--keep-model best keeps the best)."
    if not best.round:
        return f"{MODEL} is the first model, for {chosen.score} was never measured."
    of = f"of round {int(best.round)} of {last}"
    return f"{MODEL} is the best model by {chosen.score}, {float(best.value):.4f}, {of}."


def _go_on(out: RunFolder) -> str:
    """The command that does."""
    return f"fedjax-sim run --resume --out {out.path}"
