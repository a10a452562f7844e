"""`fedjax-sim compare`: the aggregation modes of an algorithm side by side."""

import argparse
from collections.abc import Mapping
from typing import Any

from fedjax_sim.aggregation import RULES
from fedjax_sim.cli import files, folder, machine
from fedjax_sim.cli.arguments import add_config, add_out, whole
from fedjax_sim.cli.options import add_setting, read
from fedjax_sim.cli.parser import COMMANDS
from fedjax_sim.cli.signals import INTERRUPTED, runs_with_rounds
from fedjax_sim.cli.values import setting, typed
from fedjax_sim.compare import comparison, identities, measured, report
from fedjax_sim.compare.comparison import Comparison, ResolvedComparison
from fedjax_sim.compare.measured import Row
from fedjax_sim.results.folder import CONFIGURATION, SWEEP, RunFolder
from fedjax_sim.settings import build
from fedjax_sim.settings.common import OF_OPTIONAL
from fedjax_sim.settings.options import VOCABULARY, Vocabulary
from fedjax_sim.settings.rooms import NONE, declarations, default_of

DESCRIPTION = (
    "Trains FedAvg, or another --algorithm, with every aggregation mode (and codec), several "
    "participation fractions and several seeds; prints a table and writes compare.png, "
    "history.csv, configuration.toml (which can be given as CONFIG), summary.json, table.csv and "
    "rounds.csv."
)
HAS_SETTING = True
_SHARED = (
    "epochs",
    "batch_size",
    "client_lr",
    "server_lr",
    "rounds",
    "target",
    "execution",
    "cores",
)
_HELPS = {
    "server_lr": "server's learning rate (default: 1)",
    "target": "score to reach, accuracy or R^2 of a regression: the rounds until then are counted "
    "(default: one for each data set)",
    "validation": "hold out this share of each client's training examples: the score is then "
    "theirs, and the test set's is shown beside it (default: none)",
}
_MODELS = {"personal": "own", "global": "global"}  # of clients, and their columns
_COMPARED = COMMANDS["compare"].names


def _fields(vocabulary: Vocabulary) -> tuple[str, ...]:
    """Names of the values that all runs of a comparison share."""
    of_rooms = vocabulary.of_room("model", "algorithm", "clock")
    clock = ("clock", *OF_OPTIONAL["clock"])
    return (*vocabulary.of_data, "model", "algorithm", "unlabelled", *clock, *of_rooms, *_SHARED)


def _of_codecs(vocabulary: Vocabulary) -> tuple[str, ...]:
    """Names of the values of those runs that send by a codec."""
    return (*vocabulary.of_room("compress"), *OF_OPTIONAL["compress"])


def add_options(parser: argparse.ArgumentParser, vocabulary: Vocabulary = VOCABULARY) -> None:
    """Adds the options that all runs share, and those that name what is compared."""

    def fraction(text: str) -> float:
        value = float(text)
        if not 0 < value <= 1:
            raise argparse.ArgumentTypeError(f"must be in (0, 1]; got {text}")
        return value

    add_config(parser)
    add_setting(parser, vocabulary, [*_fields(vocabulary), *_of_codecs(vocabulary)], _HELPS)
    add = parser.add_argument
    add(
        "--fractions",
        "-C",
        type=fraction,
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="C",
        help="the cohort is m = max(1, round(C K)) (default: 0.1 0.3 1)",
    )
    add(
        "--modes",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="MODE",
        help=f"{', '.join(RULES)} (default: all)",
    )
    codecs = ", ".join((NONE, *declarations("compress")))
    add(
        "--compress",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="CODEC",
        help=f"how clients send, side by side: {codecs} (default: {NONE})",
    )
    add(
        "--seeds",
        type=whole,
        default=argparse.SUPPRESS,
        metavar="N",
        help="seeds 0 to N-1 (default: 5)",
    )
    add_out(parser, "compare-results", "go on with the comparison in --out")


def call(options: argparse.Namespace) -> int:
    """Trains, writes, prints."""
    from fedjax_sim.cli import show

    out = RunFolder(options.out)
    out.check(SWEEP, options.resume, options.overwrite)
    own_names = (*_fields(options.vocabulary), *_of_codecs(options.vocabulary))
    resolved = _setting(read("compare", options, own_names, _COMPARED), options.vocabulary)
    shared = resolved.base
    if options.resume:
        files.check_same(options.out, _values(resolved, own_names))
    mesh = machine.use_cores(shared.cores)
    experiment = build.experiment(shared)
    # The server is probed for the identity alone.
    linear = identities.compares_readings(resolved) and identities.is_linear(experiment)
    exchange = experiment.communication()
    of_codecs = {
        codec: build.experiment(
            resolved.at(resolved.fractions[0], resolved.modes[0], codec)
        ).communication()
        for codec in resolved.compress
        if codec != NONE
    }
    if options.overwrite and out.held():  # A round may refuse what results are removed for.
        build.check_rounds(map(resolved.of, resolved.grid))
    out.prepare(options.overwrite)

    console = show.console()
    sizes = experiment.data.num_examples
    console.print(
        f"{resolved.algorithm_name} on {shared.dataset} ({shared.partition}): "
        f"K={shared.clients} clients of {int(sizes.min())} to {int(sizes.max())} examples, "
        + (
            f"{exchange.down:,} bytes a model"
            if exchange.down == exchange.up
            else f"{exchange.down:,} bytes down and {exchange.up:,} up of a client"
        ),
        soft_wrap=True,
    )
    lines = len(resolved.fractions) * len(resolved.modes) * len(resolved.compress)
    total = lines * resolved.seeds
    with folder.saying_what_is_saved(options.out), out.kept_if_begun(SWEEP):
        files.write(options.out, _values(resolved, own_names))
        with show.sweep_progress(total) as tell:
            all_results = comparison.compare(
                resolved, mesh=mesh, out=options.out, resume=options.resume, on_progress=tell
            )
        results, complete = runs_with_rounds(all_results, total)
        curves = measured.curves(resolved, results)
        table = measured.rows(resolved, curves, exchange, of_codecs)
        # Written before anything is printed, which can fail (a closed pipe).
        names = report.write(
            options.out, resolved, results, curves, table, exchange, complete, linear
        )
    console.print(_table(resolved, table))
    for line in _legend(resolved, table):
        console.print(line)
    console.print()
    for line in _modes(resolved):
        console.print(line)
    console.print()
    if identities.compares_readings(resolved):
        console.print(identities.identity_of_modes(resolved, linear))
    for line in identities.identity(resolved, table, linear):
        console.print(line)
    if not complete:
        console.print("Interrupted: what was computed until then is kept.")
    console.print(f"Wrote {', '.join((*names, CONFIGURATION))} to {options.out}", soft_wrap=True)
    return 0 if complete else INTERRUPTED


def _setting(values: Mapping[str, Any], vocabulary: Vocabulary) -> ResolvedComparison:
    """The comparison that values by name describe, all of them checked and nothing computed."""
    compared = {name: values[name] for name in _COMPARED if name in values}
    kinds = (("fractions", (int, float), float), ("modes", str, str), ("compress", str, str))
    for name, kind, convert in kinds:
        if name in compared:
            listed = compared[name]
            if not isinstance(listed, list) or not all(isinstance(x, kind) for x in listed):
                called = "numbers" if convert is float else "names"
                raise ValueError(f"{name} must be a list of {called}; got {listed!r}")
            compared[name] = tuple(map(convert, listed))
    shared = setting(
        {name: value for name, value in values.items() if name in _fields(vocabulary)}, vocabulary
    )
    codec_options = {
        name: typed(name, values[name], vocabulary)
        for name in _of_codecs(vocabulary)
        if name in values
    }
    return Comparison(shared, **compared, codec_options=codec_options).resolved()


def _values(resolved: ResolvedComparison, names: tuple[str, ...]) -> dict[str, Any]:
    """The contents of configuration.toml."""
    shared = {name: value for name, value in resolved.base.values().items() if name in names}
    if resolved.base.algorithm == default_of("algorithm"):
        del shared["algorithm"]  # as older versions wrote it, so that their folders are resumed
    compared = {name: getattr(resolved, name) for name in _COMPARED if name != "compress"}
    return {**shared, **resolved.of_codecs, **compared}


def _modes(setting: ResolvedComparison) -> list[str]:
    """What the modes are, a line each."""
    return [f"{mode}: {declarations('mode')[mode].help}." for mode in setting.modes]


def _legend(setting: ResolvedComparison, rows: list[Row]) -> list[str]:
    """What the table's columns mean."""
    several, score_name = setting.seeds > 1, setting.score_name
    spread = f", mean ± sample standard deviation of {setting.seeds} seeds" if several else ""
    lines = [
        f"{score_name}: on the {setting.set_name} set after {setting.base.rounds} rounds{spread}.",
        f"rounds to {setting.target:g}: until the best {score_name} so far reaches it, "
        "interpolated; mean of the seeds that do.",
        "MB: 10^6 bytes over the whole run, all clients together. all_clients sends the model to "
        "all K; in brackets, if all K also send theirs back.",
    ]
    if any(row.personal_mean is not None for row in rows):
        lines.append(
            "own, global: of a client on its own part of the test set, by its own model and by the "
            "global one; mean over clients, and in brackets that of the worst tenth."
        )
    diverged = [f"{row.mode} at C={row.fraction:g}" for row in rows if row.diverged]
    if diverged:
        lines.append(f"DIVERGED (an update or a measure not finite): {', '.join(diverged)}.")
    return lines


def _of_clients(row: Row, model: str) -> str:
    """The mean over clients by their own or the global model, and that of the worst tenth."""
    values = row._asdict()
    return f"{values[f'{model}_mean']:.3f} ({values[f'{model}_worst_tenth']:.3f})"


def _with_spread(mean: float, std: float | None) -> str:
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def _table(setting: ResolvedComparison, rows: list[Row]) -> Any:
    from rich import box
    from rich.table import Table

    score_name, rounds = setting.score_name, setting.base.rounds
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    beside: tuple[str, ...]
    beside = () if setting.base.validation is None else (f"test {score_name}",)
    models = [x for x in _MODELS if any(getattr(row, f"{x}_mean") is not None for row in rows)]
    beside += tuple(_MODELS[model] for model in models)
    codec = ("codec",) if setting.is_of_codecs else ()
    names = ("C", "m", "mode", *codec, score_name, *beside, f"rounds to {setting.target:g}")
    has_clock = any(row.seconds is not None for row in rows)
    for name in (*names, "MB down", "MB up", *(["simulated s"] if has_clock else [])):
        table.add_column(
            name, justify="left" if name in ("mode", "codec") else "right", no_wrap=True
        )
    previous = None
    for row in rows:
        if previous not in (None, row.fraction):
            table.add_section()
        previous = row.fraction
        reached = "never" if row.rounds_to_target is None else f"{row.rounds_to_target:.1f}"
        if 0 < row.target_reached < row.seeds:
            reached += f" ({row.target_reached} of {row.seeds})"
        # A codec's megabytes may be hundredths.
        digits = ".3g" if setting.is_of_codecs else ".2f"
        up = f"{row.megabytes_up:{digits}}"
        if row.mode == "all_clients":
            up += f" ({row.megabytes_up_all_send:{digits}})"
        score = _with_spread(row.score_mean, row.score_std)
        test = () if row.test_mean is None else (_with_spread(row.test_mean, row.test_std),)
        if row.rounds < rounds:
            score += f" after {row.rounds} round{'s' if row.rounds > 1 else ''}"
        table.add_row(
            f"{row.fraction:g}",
            str(row.cohort),
            row.mode,
            *((row.compress,) if codec else ()),
            score,
            *test,
            *(_of_clients(row, model) for model in models),
            reached,
            f"{row.megabytes_down:{digits}}",
            up,
            *([f"{row.seconds:.4g}"] if has_clock else []),
        )
    return table
