"""`fedjax-sim run`: one run."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.cli import files, folder, machine
from fedjax_sim.cli.options import add_config, add_out, add_setting, given, read, whole
from fedjax_sim.cli.signals import INTERRUPTED
from fedjax_sim.cli.values import setting
from fedjax_sim.core.checks import check_count
from fedjax_sim.host.driver import Interrupt
from fedjax_sim.host.keeping import check_keep_model
from fedjax_sim.host.manifest import Manifest
from fedjax_sim.host.simulate import Simulation, Writer, simulate
from fedjax_sim.host.stopping import Criterion, patience, reaches
from fedjax_sim.results.folder import CONFIGURATION, MODEL, RUN, RunFolder
from fedjax_sim.results.trained import KEPT, relabel
from fedjax_sim.settings import build as problem
from fedjax_sim.settings.setting import Setting
from fedjax_sim.writers import tensorboard, wandb

HELP = "train one model"
DESCRIPTION = (
    "Trains one model, saved as it goes, and writes configuration.toml (which can be given as "
    "CONFIG), model.npz (which fs.load reads), rounds.csv, table.csv and summary.json."
)
NEEDS = ("rich",)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of a setting, of the folder and of what is written beside."""
    add_config(parser)
    add_setting(parser)
    parser.add_argument(
        "--patience", type=whole, default=argparse.SUPPRESS, metavar="N",
        help="end the run once N evaluations in a row brought no better score",
    )  # fmt: skip
    parser.add_argument(
        "--keep-model", choices=KEPT, default=argparse.SUPPRESS,
        help="which model model.npz is: the final one (default), also where --patience ends the "
        "run, or the best by the score, which is of what --validation holds out, else of the test "
        "set",
    )  # fmt: skip
    add_out(parser, None, "go on with the run in --out, for more --rounds if they are given")
    parser.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="write TensorBoard's events there, too"
    )
    parser.add_argument(
        "--wandb", metavar="PROJECT",
        help="write a run of Weights & Biases in --out, too, offline (wandb sync sends it)",
    )  # fmt: skip
    parser.add_argument(
        "--baselines", nargs="+", default=argparse.SUPPRESS, metavar="NAME",
        help="train these too, for as many rounds as the run had, each in a folder of its name in "
        "--out: centralised (on all data in one place), local_only (every client alone, in the "
        "rounds that pick it)",
    )  # fmt: skip


def call(options: argparse.Namespace) -> int:
    """Trains, writes, prints."""
    import jax

    from fedjax_sim.cli import baselines, show

    out = RunFolder(options.out)
    out.check(RUN, options.resume, options.overwrite)
    values = read("run", options, more=("patience", "keep_model"))
    there = baselines.there(options.out) if options.resume else []
    names = baselines.named(there, values.pop("baselines", []), getattr(options, "baselines", []))
    waits = values.pop("patience", None)
    if waits is not None:
        check_count("patience", waits)
    keeps = values.pop("keep_model", "final")
    check_keep_model(keeps, None)
    if options.resume:
        _check_schedule(setting(values), options)
    chosen = setting(values).resolved()
    own = {
        "patience": waits,
        "keep_model": keeps if keeps == "best" else None,
        "baselines": names or None,
    }
    configuration = chosen.values() | {k: v for k, v in own.items() if v is not None}
    if options.resume:
        # Whether these may differ, `simulate` knows.
        beside = ("rounds", "target", "patience", "baselines")
        files.check_same(
            options.out, {k: v for k, v in configuration.items() if k not in beside}, beside
        )
        if (before := Manifest.read(out, RUN)) is not None:
            before.check_rounds_done(out, chosen.rounds, chosen.evaluate_every)
    baselines.check(names, chosen, out, options.resume, options.overwrite)
    mesh = machine.use_cores(chosen.cores)
    experiment = problem.experiment(chosen, mesh)
    experiment.check(jax.random.key(chosen.seed))
    writers: list[Writer] = []
    if options.tensorboard is not None:
        writers.append(tensorboard(options.tensorboard))
    if options.wandb is not None:
        writers.append(wandb(options.wandb, configuration=configuration, folder=options.out))
    for each in (out, *map(out.baseline, names)):
        each.prepare(options.overwrite)

    console = show.console()
    sizes = experiment.data.num_examples
    console.print(
        f"{chosen.algorithm} on {chosen.dataset} ({chosen.partition}): K={chosen.clients} clients "
        f"of {int(sizes.min())} to {int(sizes.max())} examples, {_cohort(chosen)}, "
        f"{chosen.rounds} rounds",
        soft_wrap=True,
    )
    stops: list[Criterion] = []
    if chosen.target is not None:
        stops.append(reaches(chosen.score, chosen.target))
    if waits is not None:
        stops.append(patience(chosen.score, waits))
    with Interrupt() as interrupt:  # one that comes too late for the run is for its baselines
        with folder.saying_what_is_saved(options.out), files.written(options.out, configuration):
            with show.run_progress(chosen.rounds, chosen.score) as tell:
                simulation = simulate(
                    experiment, chosen.seed, out=options.out, resume=options.resume,
                    stop=(stops[0] if len(stops) == 1 else stops) if stops else None,
                    on_progress=tell, writers=writers,
                    configuration=chosen.without_target().values(),
                    keep_model=keeps, metric=chosen.score if keeps == "best" else None,
                )  # fmt: skip
            if not len(simulation.history.evaluated):
                raise KeyboardInterrupt
            relabel(options.out / MODEL, configuration)
            results = simulation.results(seed=chosen.seed)
            summary = baselines.summary(configuration, chosen, simulation)
            written = results.save(options.out, summary | simulation.exchange.facts())
        for line in (*_said(options.out, chosen, simulation, waits), _kept(chosen, simulation)):
            console.print(line, soft_wrap=True)
        console.print(
            f"Wrote {', '.join((*written, MODEL, CONFIGURATION))} to {options.out}", soft_wrap=True
        )
        through = simulation.status != "interrupted"
        budget = experiment._replace(num_rounds=len(simulation.history.evaluated))
        for name in names if through else ():
            if interrupt.received is not None:
                line, through = f"Interrupted before {name}", False
            else:
                line, through = baselines.train(name, chosen, budget, options.out, options.resume)
            if not through:
                console.print(f"{line}: {_go_on(options.out)}", soft_wrap=True)
                break
            console.print(line, soft_wrap=True)
    return 0 if through else INTERRUPTED


def _cohort(chosen: Setting) -> str:
    """Who takes part in a round, in words."""
    if chosen.sampler == "everyone":
        return f"all m={chosen.clients} in each round"
    if chosen.sampler == "bernoulli":
        expected = (chosen.fraction or 0.0) * (chosen.clients or 0)
        return f"m={expected:g} in a round on average"
    return f"m={chosen.slots} in each round"


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
    own = replace(chosen, decay_rounds=None)
    spans = [replace(own, rounds=rounds).resolved().decay_rounds for rounds in (before, own.rounds)]
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


def _said(out: Path, chosen: Setting, simulation: Simulation, waits: int | None) -> list[str]:
    """How it ended, in a few lines."""
    run = simulation.results(seed=chosen.seed).runs[0]
    row, done = run.row(), run.done
    names = dict.fromkeys((chosen.score, chosen.test_score, "test_loss", "train_loss"))
    named = [(name, row.get(name)) for name in names]
    said = ", ".join(f"{name} {x:.4f}" for name, x in named if isinstance(x, float))
    traffic = f"{int(row['bytes_down'] or 0) / 1e6:.2f} MB down, "
    traffic += f"{int(row['bytes_up'] or 0) / 1e6:.2f} MB up"
    lines = [f"After {done} round{'s' if done > 1 else ''}: {said}; {traffic}."]
    if run.diverged:
        lines.append("DIVERGED: an update or a measure was not finite.")
    if simulation.status == "stopped":
        reached: Any = chosen.target is not None and run.rounds[chosen.score] >= chosen.target
        if np.any(reached):
            when = int(np.argmax(reached)) + 1
            before = f" in round {when} already" if when < done else ""
            lines.append(f"Stopped: {chosen.score} reached {chosen.target:g}{before}.")
        else:
            measured = run.measured(chosen.score)
            when = int(np.flatnonzero(run.rounds[chosen.score] == np.nanmax(measured))[0]) + 1
            lines.append(
                f"Stopped: {chosen.score} was no better in {waits} evaluations than the "
                f"{np.nanmax(measured):.4f} of round {when}."
            )
    if simulation.status == "interrupted":
        lines.append(
            f"Interrupted after {done} of {chosen.rounds} rounds, which are saved: {_go_on(out)}"
        )
    return lines


def _kept(chosen: Setting, simulation: Simulation) -> str:
    """Which model model.npz is, in words."""
    best, last = simulation.best, len(simulation.history.evaluated)
    if best is None:
        return f"{MODEL} is the final model, of round {last} (--keep-model best keeps the best)."
    if not best.round:
        return f"{MODEL} is the first model, for {chosen.score} was never measured."
    of = f"of round {int(best.round)} of {last}"
    return f"{MODEL} is the best model by {chosen.score}, {float(best.value):.4f}, {of}."


def _go_on(out: Path) -> str:
    return f"fedjax-sim run --resume --out {out}"
