"""`fedjax-sim run`: one run."""

import argparse
from pathlib import Path

import numpy as np

from fedjax_sim import problem
from fedjax_sim.cli import files, folder, machine
from fedjax_sim.cli.options import add_config, add_out, add_setting, read
from fedjax_sim.cli.signals import INTERRUPTED
from fedjax_sim.cli.values import setting
from fedjax_sim.driver import Interrupt
from fedjax_sim.setting import Setting
from fedjax_sim.simulate import Simulation, Writer, reaches, simulate
from fedjax_sim.trained import MODEL
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
    add_out(parser, None, "go on with the run in --out")
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

    folder.check(options.out, options.resume, options.overwrite, folder.RUN)
    values = read("run", options)
    there = baselines.there(options.out) if options.resume else []
    names = baselines.named(there, values.pop("baselines", []), getattr(options, "baselines", []))
    chosen = setting(values).resolved()
    configuration = chosen.values() | ({"baselines": names} if names else {})
    if options.resume:
        files.check_same(options.out, chosen.values(), may_come="target", beside=("baselines",))
    baselines.check(names, chosen, options.out, options.resume, options.overwrite)
    mesh = machine.use_cores(chosen.cores)
    experiment = problem.experiment(chosen, mesh)
    experiment.check(jax.random.key(chosen.seed))
    writers: list[Writer] = []
    if options.tensorboard is not None:
        writers.append(tensorboard(options.tensorboard))
    if options.wandb is not None:
        writers.append(wandb(options.wandb, configuration=configuration, folder=options.out))
    folder.prepare(options.out, options.overwrite)
    for name in names:
        folder.prepare(options.out / name, options.overwrite)
    files.write(options.out, configuration)

    console = show.console()
    sizes = experiment.data.num_examples
    console.print(
        f"{chosen.algorithm} on {chosen.dataset} ({chosen.partition}): K={chosen.clients} clients "
        f"of {int(sizes.min())} to {int(sizes.max())} examples, {chosen.rounds} rounds",
        soft_wrap=True,
    )
    stop = None if chosen.target is None else reaches(chosen.score, chosen.target)
    with Interrupt() as interrupt:  # one that comes too late for the run is for its baselines
        with folder.saying_what_is_saved(options.out):
            with show.run_progress(chosen.rounds, chosen.score) as tell:
                simulation = simulate(
                    experiment, chosen.seed, out=options.out, resume=options.resume, stop=stop,
                    on_progress=tell, writers=writers,
                    configuration=chosen.without_target().values(),
                )  # fmt: skip
            if not len(simulation.history.evaluated):
                raise KeyboardInterrupt
            results = simulation.results(seed=chosen.seed)
            summary = baselines.summary(configuration, chosen, simulation)
            written = results.save(options.out, summary | {"bytes": simulation.exchange._asdict()})
        for line in _said(options.out, chosen, simulation):
            console.print(line, soft_wrap=True)
        console.print(
            f"Wrote {', '.join((*written, MODEL, files.NAME))} to {options.out}", soft_wrap=True
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


def _said(out: Path, chosen: Setting, simulation: Simulation) -> list[str]:
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
        when = int(np.argmax(run.rounds[chosen.score] >= chosen.target)) + 1
        before = f" in round {when} already" if when < done else ""
        lines.append(f"Stopped: {chosen.score} reached {chosen.target:g}{before}.")
    if simulation.status == "interrupted":
        lines.append(
            f"Interrupted after {done} of {chosen.rounds} rounds, which are saved: {_go_on(out)}"
        )
    return lines


def _go_on(out: Path) -> str:
    return f"fedjax-sim run --resume --out {out}"
