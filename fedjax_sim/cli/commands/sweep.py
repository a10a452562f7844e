"""`fedjax-sim sweep`: configurations times seeds."""

import argparse
from typing import Any

import numpy as np

from fedjax_sim.cli import files, folder, grids, machine
from fedjax_sim.cli.arguments import add_config, add_out, whole
from fedjax_sim.cli.options import add_setting, read, setting_options
from fedjax_sim.cli.signals import INTERRUPTED, runs_with_rounds
from fedjax_sim.cli.sweep_plan import Plan, plan_of
from fedjax_sim.core.checks import check_known
from fedjax_sim.results import Results, ranked
from fedjax_sim.results.columns import lowest_is_best, on_test
from fedjax_sim.results.folder import CONFIGURATION, MODELS, SWEEP, RunFolder
from fedjax_sim.results.targets import rounds_to_target
from fedjax_sim.results.trained import KEPT
from fedjax_sim.settings import build
from fedjax_sim.settings.options import VOCABULARY, Vocabulary
from fedjax_sim.sweeps import sweep, sweeping
from fedjax_sim.sweeps.shards import shard_of

DESCRIPTION = (
    "Trains every configuration of a grid with several seeds, many in one compiled call; prints "
    "them, the best first, and writes configuration.toml (which can be given as CONFIG), "
    "rounds.csv, table.csv and summary.json."
)
HAS_SETTING = True


def add_options(parser: argparse.ArgumentParser, vocabulary: Vocabulary = VOCABULARY) -> None:
    """Adds the options of a setting, of the grid and of the results folder."""
    add_config(parser)
    add_setting(parser, vocabulary)
    add = parser.add_argument
    add(
        "--seeds",
        type=whole,
        default=argparse.SUPPRESS,
        metavar="N",
        help="of each configuration, counted up from --seed (default: 1)",
    )
    add(
        "--grid",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="an axis, as client_lr=0.01,0.1; of several, each behind a --grid of its own, all "
        "combinations; in a file [grid] with client_lr = [0.01, 0.1] under it",
    )
    add(
        "--zip",
        action="append",
        nargs="+",
        default=[],
        metavar="NAME=VALUE,...",
        help="axes whose values go together, as epochs=1,5 batch_size=10,50; in a file [[zip]] "
        "with epochs = [1, 5] and batch_size = [10, 50] under it; several combine",
    )
    add(
        "--random",
        nargs="+",
        default=[],
        metavar="N",
        help="N configurations, then NAME=loguniform(LOW,HIGH), uniform(LOW,HIGH) or "
        "choice(VALUE,...) for each axis, and seed=SEED; in a file [random] with num = 20, "
        'seed = 0 and client_lr = "loguniform(0.01,1)" under it',
    )
    add(
        "--metric",
        default=argparse.SUPPRESS,
        help="what the best is best in (default: the score on what --validation holds out, else "
        "on the test set)",
    )
    add(
        "--keep-models",
        nargs="?",
        const="final",
        choices=KEPT,
        default=argparse.SUPPRESS,
        help="keep the final model of each run (default without a word), or the best by --metric, "
        "in --out's models, where fs.load reads them",
    )
    add(
        "--shard",
        metavar="I/N",
        help="which of N processes this one is that share --out, each started with the same "
        "options, as 3/16; auto: what Slurm, SGE or LSF says of its array, auto/N: PBS or "
        "Kubernetes, too. Each computes what no other one does, and takes over what is lost",
    )
    add_out(parser, None, "go on with the sweep in --out")


def call(options: argparse.Namespace) -> int:
    """Trains, writes, prints."""
    from fedjax_sim.cli import show

    out = RunFolder(options.out)
    shard = shard_of(options.shard)
    if shard is not None and options.overwrite:
        raise ValueError(
            "shard cannot be given with overwrite (--overwrite), by which each would remove what "
            "the others computed; name another folder"
        )
    joins = options.resume or shard is not None
    out.check(SWEEP, joins, options.overwrite)
    values = read("sweep", options, own_names=("seeds", "metric", "keep_models"))
    by_options = grids.from_options(options.grid, options.zip, options.random, options.vocabulary)
    if isinstance(values.get("grid"), dict) and "grid" in by_options:
        by_options["grid"] = values["grid"] | by_options["grid"]
    options.elsewhere |= grids.names(values | by_options)
    plan = plan_of(values | by_options, options.vocabulary)
    for name in setting_options(options):
        if name in plan.grid.names:
            raise ValueError(f"{name} is an axis and an option, too; give one of them")
    if joins:
        files.check_same(options.out, plan.values())
    mesh = machine.use_cores(plan.base.cores)
    for configuration in plan.settings:
        build.problem(configuration)  # refuses a split that cannot be made, before anything runs
    metrics = build.metrics(build.experiment(plan.settings[0]))
    check_known(plan.metric, metrics, "metric")
    if options.overwrite and out.held():  # What refuses the new sweep must leave the old one.
        sweeping.check(plan.experiment, plan.grid, plan.keys, mesh=mesh, **plan.options)
        build.check_rounds(plan.of_each_program)
    out.prepare(options.overwrite)

    console = show.console()
    for line in _before(plan):
        console.print(line, soft_wrap=True)
    total = len(plan.grid) * plan.seeds
    with folder.saying_what_is_saved(options.out), out.kept_if_begun(SWEEP):
        files.write(options.out, plan.values())
        with show.sweep_progress(total) as tell:
            all_results = sweep(
                plan.experiment,
                plan.grid,
                plan.keys,
                mesh=mesh,
                out=options.out,
                resume=options.resume,
                on_progress=tell,
                configuration={"command": "sweep", **plan.base.values()},
                shard=shard,
                **plan.options,
            )
        results, complete = runs_with_rounds(all_results, total)
        # A shard that is interrupted leaves the tables to those that go on, and to `report`.
        is_saved = complete or shard is None
        names = results.save(options.out, _summary(plan, complete)) if is_saved else ()
    for line in _after(plan, results):
        console.print(line, soft_wrap=isinstance(line, str))
    if not complete:
        through = sum(run.done == run.num_rounds for run in results.runs)
        console.print(
            f"Interrupted: {through} of {total} runs are through, and what was computed is saved: "
            + (
                f"fedjax-sim sweep --resume --out {options.out}"
                if shard is None
                else f"other shards go on, and fedjax-sim report {options.out} shows what is there"
            ),
            soft_wrap=True,
        )
    written = (*names, *([] if plan.keep_models is None else [MODELS]), CONFIGURATION)
    console.print(f"Wrote {', '.join(written)} to {options.out}", soft_wrap=True)
    return 0 if complete else INTERRUPTED


def _before(plan: Plan) -> list[str]:
    names = plan.grid.names
    static = plan.static
    traced = [name for name in names if name not in static]
    groups = len(plan.of_each_program)
    runs = len(plan.grid) * plan.seeds
    return [
        f"{len(plan.grid)} configuration{'s' * (len(plan.grid) > 1)} x {plan.seeds} "
        f"seed{'s' * (plan.seeds > 1)} = {runs} run{'s' * (runs > 1)} of {plan.base.rounds} "
        f"rounds, in {groups} group{'s' * (groups > 1)}, each compiled once; "
        f"traced: {', '.join(traced) or 'none'}; static: {', '.join(static) or 'none'}"
    ]


def _summary(plan: Plan, complete: bool) -> dict[str, Any]:
    return {
        "kind": "sweep",
        "configuration": plan.base.values(),
        "score": plan.metric,
        "seeds": list(plan.keys),
        "num_runs": len(plan.grid) * plan.seeds,
        "complete": complete,
    }


def _after(plan: Plan, results: Results) -> list[Any]:
    """The table of configurations, the best first, and the lines that explain it."""
    from fedjax_sim.cli import show

    means = results.mean(plan.metric)
    lowest = lowest_is_best(plan.metric)
    more_columns: dict[str, list[str]] = {}
    runs = [
        [run for run in results.runs if run.configuration == mean.configuration] for mean in means
    ]
    if any(run.done < run.num_rounds for run in results.runs):
        ends = [
            (min(r.done for r in runs_of_one), max(r.done for r in runs_of_one))
            for runs_of_one in runs
        ]
        more_columns["rounds"] = [str(a) if a == b else f"{a} to {b}" for a, b in ends]
    if plan.base.target is not None:
        more_columns[f"rounds to {plan.base.target:g}"] = [
            _to_target(runs_of_one, plan.settings[0].score, plan.base.target)
            for runs_of_one in runs
        ]
    lines = [
        f"{plan.metric}: after the last round, mean of the seeds, with the 95 % confidence "
        "interval of Student's t."
    ]
    best = ranked(means, lowest)[0]
    test_metric = on_test(plan.metric)
    if test_metric in results.metrics and means[best].competes:
        chosen = show.interval(results.mean(test_metric)[best])
        more_columns[test_metric] = [chosen if i == best else "" for i in range(len(means))]
        lines.append(f"{test_metric}: of the best, which {plan.metric} chose.")
    table, hidden = show.means(means, plan.metric, lowest, more_columns)
    return [table, *lines] + ([f"{hidden} more are in table.csv."] if hidden else [])


def _to_target(runs: list[Any], score: str, target: float) -> str:
    """The mean number of rounds of the runs that reach the target, in words."""
    times: list[float] = []
    for run in runs:
        time = rounds_to_target(run.measured(score), target, np.flatnonzero(run.has(score)) + 1)
        if time is not None:
            times.append(time)
    if not times:
        return "never"
    how_many = f" ({len(times)} of {len(runs)})" if len(times) < len(runs) else ""
    return f"{np.mean(times):.1f}{how_many}"
