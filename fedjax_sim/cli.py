"""The command line: parses, calls, prints."""

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from fedjax_sim import __version__

_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs `fedjax-sim`; returns its exit code."""
    parser = _Parser(prog="fedjax-sim", description="Federated learning in JAX.")
    parser.add_argument("--version", action="version", version=f"fedjax-sim {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compare = commands.add_parser(
        "compare",
        help="compare the aggregation modes",
        description="Trains FedAvg with every aggregation mode, several participation "
        "fractions and several seeds; prints a table and writes compare.png, history.csv and "
        "summary.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    _add_compare_options(compare)
    options = parser.parse_args(arguments)
    try:
        import matplotlib  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        compare.error(f"{error.name} is missing; install the cli extra: fedjax-sim[cli]")
    try:
        return _compare(options)
    except ValueError as error:
        compare.error(str(error))


def _add_compare_options(parser: argparse.ArgumentParser) -> None:
    def fraction(text: str) -> float:
        value = float(text)
        if not 0 < value <= 1:
            raise argparse.ArgumentTypeError(f"must be in (0, 1]; got {text}")
        return value

    def batch(text: str) -> int | None:
        if text in ("full", "inf"):
            return None
        if not text.isdecimal():
            raise argparse.ArgumentTypeError(f"must be a whole number or full; got {text!r}")
        return int(text)

    # The defaults are those of comparison.Setting, said here so that --help is instant.
    add = parser.add_argument
    add("--dataset", default="digits", help="digits (10 classes) or wind (regression)")
    add("--partition", metavar="HOW", help="iid, shards, dirichlet or natural "
        "(default: dirichlet for digits, natural for wind)")  # fmt: skip
    add("--alpha", type=float, help="of --partition dirichlet (default: 0.3)")
    add("--shards-per-client", type=int, metavar="S", help="of --partition shards (default: 2)")
    add("--partition-seed", type=int, default=0, metavar="SEED", help="the split, for all seeds")
    add("--model", help="logistic, 2nn or mlp (default: logistic for digits, mlp for wind)")
    add("--clients", "-K", type=int, metavar="K", help="number of clients (default: 50, wind 10)")
    add("--fractions", "-C", type=fraction, nargs="+", default=[0.1, 0.3, 1.0], metavar="C",
        help="participation fractions; the cohort is max(1, round(C K))")  # fmt: skip
    add("--modes", nargs="+", default=["selected", "all_clients", "uniform", "unbiased"],
        metavar="MODE", help="aggregation modes")  # fmt: skip
    add("--epochs", "-E", type=int, default=5, metavar="E", help="local epochs")
    add("--batch-size", "-B", type=batch, default=10, metavar="B", help="block size, or full")
    add("--client-lr", type=float, default=0.1, metavar="ETA", help="clients' SGD learning rate")
    add("--server-lr", type=float, default=1.0, metavar="ETA", help="server's learning rate")
    add("--rounds", type=int, default=100, metavar="R", help="rounds of each run")
    add("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N-1")
    add("--target", type=float, help="score to reach (default: accuracy 0.9; R^2 0.8 for wind)")
    add("--execution", default="packed:8", help="vmapped, packed or packed:LANES")
    add("--out", type=Path, default=Path("compare-results"), metavar="DIR", help="results folder")
    add("--overwrite", action="store_true", help="replace the results in --out")


def _compare(options: argparse.Namespace) -> int:
    from rich.console import Console

    from fedjax_sim import comparison, report

    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(options).items()
        if name not in ("command", "out", "overwrite")
    }
    setting = comparison.Setting(**given).resolved()
    report.check_writable(options.out, options.overwrite)
    problem = comparison.build(setting)
    exchange = comparison.bytes_of(setting, problem)

    console = Console()
    sizes = problem.data.num_examples
    console.print(
        f"FedAvg on {setting.dataset} ({setting.partition}): K={setting.clients} clients of "
        f"{int(sizes.min())} to {int(sizes.max())} examples, {exchange.down:,} bytes a model",
        highlight=False,
        soft_wrap=True,
    )
    chunks, complete = _train(setting, problem, console)
    if not chunks:
        console.print("Interrupted before the first rounds were computed.", style="bold")
        return _INTERRUPTED
    curves = report.curves(chunks, exchange)
    table = report.rows(setting, curves, exchange)
    console.print(_table(setting, problem.score_name, table))
    console.print(
        "all_clients = w + (n_V/n) (selected - w): the modes are equal at these server learning "
        "rates, exactly where n_V/n does not vary.",
        highlight=False,
    )
    for line in report.identity(setting, table):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    report.write(
        options.out, setting, problem.score_name, curves, table, exchange, complete=complete
    )
    names = ", ".join(name for name in report.FILES if (options.out / name).exists())
    if not complete:
        console.print("Interrupted: what was computed until then is kept.", style="bold")
    console.print(f"Wrote {names} to {options.out}", highlight=False)
    return 0 if complete else _INTERRUPTED


def _train(setting: Any, problem: Any, console: Any) -> tuple[list[Any], bool]:
    """All chunks, and whether that is all of them: Ctrl-C ends the training, not the program."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from fedjax_sim import comparison

    chunk = min(25, -(-setting.rounds // 10))  # often enough for a lively bar
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rounds"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    chunks: list[Any] = []
    cells = len(setting.modes) * len(setting.fractions)
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("compiling", total=cells * setting.rounds)
            for part in comparison.compare(setting, problem, chunk):
                chunks.append(part)
                progress.update(
                    task,
                    advance=part.score.shape[1],
                    description=f"{part.mode} C={part.fraction:g} "
                    f"{problem.score_name} {part.score[:, -1].mean():.3f}",
                )
    except KeyboardInterrupt:
        return chunks, False
    return chunks, True


def _table(setting: Any, score_name: str, rows: list[Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        caption=f"{score_name}: mean ± standard deviation over {setting.seeds} seeds after "
        f"{setting.rounds} rounds.\nMB: 10^6 bytes over the whole run, all clients "
        "together;\nin brackets, if all K clients send in every round.",
        caption_justify="left",
    )
    target = f"to {setting.target:g}"
    for name in ("C", "m", "mode", score_name, f"rounds {target}", "MB down", "MB up"):
        table.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    previous = None
    for row in rows:
        if previous not in (None, row.fraction):
            table.add_section()
        previous = row.fraction
        reached = "never" if row.rounds_to_target is None else f"{row.rounds_to_target:.1f}"
        if 0 < row.target_reached < row.seeds:
            reached += f" ({row.target_reached} of {row.seeds})"
        up = f"{row.megabytes_up:.2f}"
        if row.mode == "all_clients":
            up = f"({row.megabytes_up_all_send:.2f}) {up}"
        score = f"{row.score_mean:.3f} ± {row.score_std:.3f}"
        if row.rounds < setting.rounds:
            score += f" after {row.rounds} round{'s' if row.rounds > 1 else ''}"
        table.add_row(
            f"{row.fraction:g}", str(row.cohort), row.mode, score, reached,
            f"{row.megabytes_down:.2f}", up,
        )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main())
