"""`fedjax-sim run`: one run.

From top to bottom: `call` makes a `Plan` of the options and an experiment of the plan, trains it
into the results folder, and prints the results.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from fedjax_sim.cli import files, folder, machine
from fedjax_sim.cli.arguments import add_config, add_out, whole
from fedjax_sim.cli.options import add_setting
from fedjax_sim.cli.run_plan import Plan, in_a_line, plan_of
from fedjax_sim.cli.signals import INTERRUPTED
from fedjax_sim.host.driver import Interrupt
from fedjax_sim.host.held_states import IN_MEMORY, ON_DISK, check_on_disk
from fedjax_sim.host.processes import Processes, processes_of
from fedjax_sim.host.simulate import simulate
from fedjax_sim.host.simulation import Simulation
from fedjax_sim.host.telling import Writer
from fedjax_sim.results import Results, Run, Scalar
from fedjax_sim.results.folder import CLIENTS, CONFIGURATION, MODEL, RUN, RunFolder
from fedjax_sim.results.trained import KEPT, relabel
from fedjax_sim.settings import build, private
from fedjax_sim.settings.options import VOCABULARY, Vocabulary
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.training.experiment import Experiment
from fedjax_sim.writers import tensorboard, wandb

DESCRIPTION = (
    "Trains one model, saved as it goes, and writes configuration.toml (which can be given as "
    "CONFIG), model.npz (which fs.load reads), rounds.csv, table.csv and summary.json; with "
    "clients' own models, --per-client or --fine-tune also clients.csv, each client's final values."
)
HAS_SETTING = True


class _Trained(NamedTuple):
    """A run that is through, the files of its results, and what to say of each client's."""

    simulation: Simulation
    run: Run
    written: Sequence[str]
    of_clients: Sequence[str]


def add_options(parser: argparse.ArgumentParser, vocabulary: Vocabulary = VOCABULARY) -> None:
    """Adds the options of a setting, of the results folder and of what else is written."""
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
    parser.add_argument(
        "--fine-tune",
        type=whole,
        default=argparse.SUPPRESS,
        metavar="EPOCHS",
        help="after the run train each client's model so many epochs further on its own examples, "
        "at --client-lr, and measure it before and after",
    )
    parser.add_argument(
        "--client-states",
        choices=(IN_MEMORY, ON_DISK),
        default=argparse.SUPPRESS,
        help="where what clients keep is, as SCAFFOLD's control variates: in memory (default), or "
        "in --out but for the clients of the rounds at hand",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="deal each round's clients over the devices of all processes that were started with "
        "this command, which JAX finds (srun, mpirun, ...), or JAX_COORDINATOR_ADDRESS, "
        "JAX_NUM_PROCESSES and JAX_PROCESS_ID name; the first one writes",
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
    if options.distributed and plan.baselines:
        raise ValueError("baselines are trained by one process; run them without distributed")
    mesh = (
        machine.join_processes(plan.setting.cores)
        if options.distributed
        else machine.use_cores(plan.setting.cores)
    )
    # Of several processes, all have looked into the folder before the first one writes there.
    processes = processes_of(mesh)
    with processes.together():
        experiment = _experiment(plan, mesh, traced=options.overwrite and bool(out.held()))
        writers = _writers(plan, options) if processes.is_writer else []
        for results_folder in (out, *map(out.baseline, plan.baselines)):
            if processes.is_writer:
                results_folder.prepare(options.overwrite)

    console = show.console(quiet=not processes.is_writer)
    console.print(in_a_line(plan.setting, experiment, mesh), soft_wrap=True)
    # The interrupt spans the baselines, too: a signal after the run's last round ends those.
    with Interrupt() as interrupt:
        trained = _train(plan, experiment, writers, out, options.resume, processes)
        for line in _after(plan, trained, out):
            console.print(line, soft_wrap=True)
        through = trained.simulation.status != "interrupted"
        if through and plan.baselines:
            budget = experiment._replace(num_rounds=trained.run.done)
            through = _train_baselines(plan, budget, interrupt, out, options.resume)
    return 0 if through else INTERRUPTED


def _experiment(plan: Plan, mesh: Mesh | None, traced: bool = False) -> Experiment:
    """The experiment of a plan's setting, checked without being run; or with a round traced."""
    import jax

    experiment, key = build.experiment(plan.setting, mesh), jax.random.key(plan.setting.seed)
    state = experiment.check(key)
    if plan.client_states == ON_DISK:
        check_on_disk(experiment, state)
    if traced:  # because a round may refuse the setting, for which results would be removed
        experiment.shapes_of_round(key, state)
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
    processes: Processes,
) -> _Trained:
    """Trains, and writes the results.

    Raises:
      KeyboardInterrupt: if no round was computed.
    """
    from fedjax_sim.cli import show

    resolved, configuration = plan.setting, plan.configuration
    with folder.saying_what_is_saved(out.path), ExitStack() as stack:
        with processes.together():
            if processes.is_writer:
                stack.enter_context(out.kept_if_begun(RUN))
                stack.enter_context(files.written(out.path, configuration))
        with show.run_progress(resolved.rounds, resolved.score, processes.is_writer) as tell:
            simulation = simulate(
                experiment,
                resolved.seed,
                out=out.path,
                resume=resume,
                stop=plan.stop,
                on_progress=tell,
                writers=writers,
                configuration=resolved.values_without_target(),
                keep_model=plan.keep_model,
                client_states=plan.client_states,
                metric=resolved.score if plan.keep_model == "best" else None,
            )
        if not len(simulation.history.evaluated):
            raise KeyboardInterrupt
        run = _run(resolved, experiment, simulation)
        write = partial(_write, plan, experiment, simulation, run, out)
        written, told = processes.by_writer(write)
    return _Trained(simulation, run, written, told)


def _write(
    plan: Plan, experiment: Experiment, simulation: Simulation, run: Run, out: RunFolder
) -> tuple[Sequence[str], list[str]]:
    """Writes the results; returns the names of their files, and what to say of each client's."""
    from fedjax_sim.cli import baselines, client_report

    resolved, configuration = plan.setting, plan.configuration
    relabel(out.path / MODEL, configuration)
    summary = baselines.summary(configuration, resolved, simulation)
    written = Results((run,)).save(out.path, summary | simulation.exchange.facts())
    of_clients = client_report.measure(plan, experiment, simulation)
    if of_clients is None:
        (out.path / CLIENTS).unlink(missing_ok=True)  # of the run before it went on
        return written, []
    of_clients.save(out.path / CLIENTS)
    return (*written, CLIENTS), client_report.lines(resolved, of_clients)


def _run(resolved: ResolvedSetting, experiment: Experiment, simulation: Simulation) -> Run:
    """The run's columns, and with privacy what it has spent."""
    (run,) = simulation.results(seed=resolved.seed).runs
    evaluated = np.asarray(simulation.history.evaluated)
    return private.with_column(run, private.spent(resolved, experiment.sampler, evaluated))


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


def _after(plan: Plan, trained: _Trained, out: RunFolder) -> list[str]:
    """How it ended, in a few lines."""
    resolved = plan.setting
    simulation, run, written, of_clients = trained
    row, done = run.row(), run.done
    names = dict.fromkeys((resolved.score, resolved.test_score, "test_loss", "train_loss"))
    values = [(name, row.get(name)) for name in names]
    scores = ", ".join(f"{name} {x:.4f}" for name, x in values if isinstance(x, float))
    traffic = f"{int(row['bytes_down'] or 0) / 1e6:.2f} MB down, "
    traffic += f"{int(row['bytes_up'] or 0) / 1e6:.2f} MB up"
    lines = [f"After {done} round{'s' if done > 1 else ''}: {scores}; {traffic}.", *of_clients]
    if resolved.choices.privacy is not None:
        lines.append(_spent(resolved, row.get(private.EPSILON)))
    if run.diverged:
        lines.append("DIVERGED: an update or a measure was not finite.")
    if simulation.status == "stopped":
        lines.append(_why_stopped(plan, run))
    if simulation.status == "interrupted":
        lines.append(
            f"Interrupted after {done} of {resolved.rounds} rounds, which are saved: {_go_on(out)}"
        )
    lines.append(_kept(resolved, simulation))
    lines.append(f"Wrote {', '.join((*written, MODEL, CONFIGURATION))} to {out.path}")
    return lines


def _spent(resolved: ResolvedSetting, epsilon: Scalar) -> str:
    """Says what the rounds have spent of each client's privacy."""
    if not isinstance(epsilon, float):
        return "Nothing is private without noise: epsilon is infinite."
    z, delta = resolved.options[private.NOISE], resolved.extras["delta"]
    return f"Private: epsilon {epsilon:.3f} at delta {delta:g}, noise multiplier {z:.4g}."


def _why_stopped(plan: Plan, run: Run) -> str:
    """Says which criterion ended the run."""
    resolved, done = plan.setting, run.done
    reached: Any = resolved.target is not None and run.rounds[resolved.score] >= resolved.target
    if np.any(reached):
        round = int(np.argmax(reached)) + 1
        earlier = f" in round {round} already" if round < done else ""
        return f"Stopped: {resolved.score} reached {resolved.target:g}{earlier}."
    best = np.nanmax(run.measured(resolved.score))
    round = int(np.flatnonzero(run.rounds[resolved.score] == best)[0]) + 1
    return (
        f"Stopped: {resolved.score} was no better in {plan.patience} evaluations than the "
        f"{best:.4f} of round {round}."
    )


def _kept(resolved: ResolvedSetting, simulation: Simulation) -> str:
    """Says which model model.npz holds."""
    best, last = simulation.best, len(simulation.history.evaluated)
    if best is None:
        return f"{MODEL} is the final model, of round {last} (--keep-model best keeps the best)."
    if not best.round:
        return f"{MODEL} is the first model, for {resolved.score} was never measured."
    which_round = f"of round {int(best.round)} of {last}"
    return f"{MODEL} is the best model by {resolved.score}, {float(best.value):.4f}, {which_round}."


def _go_on(out: RunFolder) -> str:
    """The command that goes on with the run."""
    return f"fedjax-sim run --resume --out {out.path}"
