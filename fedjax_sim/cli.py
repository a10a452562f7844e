"""The command line: parses, calls, prints."""

import argparse
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from fedjax_sim import __version__

_INTERRUPTED = 130
_NARROWEST = 76  # columns that the table needs


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
        allow_abbrev=False,
    )
    _add_compare_options(compare)
    options = parser.parse_args(arguments)
    try:
        import matplotlib  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        compare.error(f"{error.name} is missing; install the cli extra: fedjax-sim[cli]")
    # What stdout cannot encode (a plus-minus sign in an ASCII locale) is replaced.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        return _compare(options)
    except ValueError as error:
        compare.error(str(error))
    except BrokenPipeError:  # whoever read the output has gone; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


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

    def folder(text: str) -> Path:
        if not text:
            raise argparse.ArgumentTypeError("must name a folder; got an empty string")
        return Path(text)

    # The defaults are those of comparison.Setting, said here so that --help is instant.
    add = parser.add_argument
    add("--dataset", default="digits", help="digits (10 classes; default) or wind (regression)")
    add("--partition", metavar="HOW", help="iid, shards, dirichlet (default for digits) or "
        "natural (default for wind)")  # fmt: skip
    add("--alpha", type=float, help="of --partition dirichlet (default: 0.3)")
    add("--shards-per-client", type=int, metavar="S", help="of --partition shards (default: 2)")
    add("--partition-seed", type=int, default=0, metavar="SEED",
        help="the split, one for all seeds (default: 0)")  # fmt: skip
    add("--model", help="logistic (default for digits), 2nn or mlp (default for wind)")
    add("--clients", "-K", type=int, metavar="K", help="clients (default: 50; for wind 10)")
    add("--fractions", "-C", type=fraction, nargs="+", default=[0.1, 0.3, 1.0], metavar="C",
        help="the cohort is m = max(1, round(C K)) (default: 0.1 0.3 1)")  # fmt: skip
    add("--modes", nargs="+", default=["selected", "all_clients", "uniform", "unbiased"],
        metavar="MODE", help="selected, all_clients, uniform, unbiased (default: all)")  # fmt: skip
    add("--epochs", "-E", type=int, default=5, metavar="E", help="local epochs (default: 5)")
    add("--batch-size", "-B", type=batch, default=10, metavar="B",
        help="block size, or full (default: 10)")  # fmt: skip
    add("--client-lr", type=float, metavar="ETA",
        help="clients' SGD learning rate (default: 0.1; for wind 0.02)")  # fmt: skip
    add("--server-lr", type=float, default=1.0, metavar="ETA",
        help="server's learning rate (default: 1)")  # fmt: skip
    add("--rounds", type=int, default=100, metavar="R", help="rounds of each run (default: 100)")
    add("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N-1 (default: 5)")
    add("--target", type=float, help="score to reach (default: accuracy 0.9; for wind R^2 0.75)")
    add("--execution", default="automatic", help="automatic (default), vmapped, packed or "
        "packed:LANES")  # fmt: skip
    add("--cores", type=int, metavar="N", help="cores that share a cohort (default: all)")
    add("--out", type=folder, default=Path("compare-results"), metavar="DIR",
        help="results folder (default: compare-results)")  # fmt: skip
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
    _use_cores(setting.cores)
    report.check_writable(options.out, options.overwrite)
    problem = comparison.build(setting)
    exchange = comparison.bytes_of(setting, problem)

    console = Console(highlight=False)
    console.width = max(console.width, _NARROWEST)
    sizes = problem.data.num_examples
    console.print(
        f"FedAvg on {setting.dataset} ({setting.partition}): K={setting.clients} clients of "
        f"{int(sizes.min())} to {int(sizes.max())} examples, {exchange.down:,} bytes a model",
        soft_wrap=True,
    )
    with _Interrupt() as interrupt:
        chunks = _train(setting, problem, Console(stderr=True, highlight=False), interrupt)
        if not chunks:
            console.print("Interrupted before the first rounds were computed.")
            return _INTERRUPTED
        curves = report.curves(chunks, exchange)
        table = report.rows(setting, curves, exchange)
        # Written before anything is printed, which can fail (a closed pipe).
        names = report.write(
            options.out, setting, problem.score_name, curves, table, exchange,
            complete=not interrupt.received,
        )  # fmt: skip
    console.print(_table(setting, problem.score_name, table))
    for line in _legend(setting, problem.score_name, table):
        console.print(line)
    console.print(
        "\nall_clients = w + (n_V/n) (selected - w), where the clients selected hold n_V of the n "
        "examples: the two modes differ by a server learning rate."
    )
    for line in report.identity(setting, table):
        console.print(line)
    if interrupt.received:
        console.print("Interrupted: what was computed until then is kept.")
    console.print(f"Wrote {', '.join(names)} to {options.out}", soft_wrap=True)
    return _INTERRUPTED if interrupt.received else 0


def _use_cores(cores: int | None) -> None:
    """Makes the cores devices, before JAX starts, and keeps compiled programs on disk."""
    import jax

    from fedjax_sim import execution

    execution.cores(cores)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "fedjax_sim" / "xla"))


class _Interrupt:
    """Ctrl-C and SIGTERM ask the training to stop after the rounds at hand.

    An exception in the middle of an XLA call would leave it running while Python ends.
    The second signal ends the program at once.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        if self.received:
            os._exit(_INTERRUPTED)
        self.received = True


def _train(setting: Any, problem: Any, console: Any, interrupt: _Interrupt) -> list[Any]:
    """All chunks, or those until an interrupt."""
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
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("compiling", total=cells * setting.rounds)
        for part in comparison.compare(setting, problem, chunk):
            chunks.append(part)
            done = part.first + part.score.shape[1]
            says = (
                f"{part.mode} C={part.fraction:g} "
                f"{problem.score_name} {part.score[:, -1].mean():.3f}"
            )
            progress.update(task, advance=part.score.shape[1], description=says)
            if done == setting.rounds and not console.is_terminal:
                console.print(f"{says} after {done} rounds")
            if interrupt.received:
                break
    return chunks


def _legend(setting: Any, score_name: str, rows: list[Any]) -> list[str]:
    """What the table's columns mean."""
    several = setting.seeds > 1
    spread = f", mean ± sample standard deviation of {setting.seeds} seeds" if several else ""
    lines = [
        f"{score_name}: on the test set after {setting.rounds} rounds{spread}.",
        f"rounds to {setting.target:g}: until the best {score_name} so far reaches it, "
        "interpolated; mean of the seeds that do.",
        "MB: 10^6 bytes over the whole run, all clients together. all_clients sends the model to "
        "all K; in brackets, if all K also send theirs back.",
    ]
    diverged = [f"{row.mode} at C={row.fraction:g}" for row in rows if row.diverged]
    if diverged:
        lines.append(f"DIVERGED (an update not finite): {', '.join(diverged)}.")
    return lines


def _table(setting: Any, score_name: str, rows: list[Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for name in ("C", "m", "mode", score_name, f"rounds to {setting.target:g}", "MB down", "MB up"):
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
            up += f" ({row.megabytes_up_all_send:.2f})"
        score = f"{row.score_mean:.3f}"
        if row.score_std is not None:
            score += f" ± {row.score_std:.3f}"
        if row.rounds < setting.rounds:
            score += f" after {row.rounds} round{'s' if row.rounds > 1 else ''}"
        table.add_row(
            f"{row.fraction:g}", str(row.cohort), row.mode, score, reached,
            f"{row.megabytes_down:.2f}", up,
        )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main())
