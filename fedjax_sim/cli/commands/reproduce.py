"""`fedjax-sim reproduce`: the papers' tables, cell by cell."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedjax_sim.cli import machine
from fedjax_sim.cli.arguments import folder
from fedjax_sim.cli.signals import INTERRUPTED
from fedjax_sim.core.checks import check_count, check_number
from fedjax_sim.core.words import span_of

if TYPE_CHECKING:  # the tables are imported where they are used: `--help` waits for none
    from fedjax_sim.reproduce import Store
    from fedjax_sim.reproduce.accuracies import AccuracyCell
    from fedjax_sim.reproduce.cells import Cell
    from fedjax_sim.reproduce.selection import Selection
    from fedjax_sim.reproduce.swept import SweptCell

DESCRIPTION = (
    "Runs cells of the papers' tables beside the published figures: rounds to a target with "
    "learning rates tuned in each (table1-2nn, ...), accuracies after fixed rounds of several "
    "algorithms (niid-bench, personal), and claims that are cheap to check (claims, minutes, on "
    "data that ship). Saves what ends, so that the same command goes on, and writes PAPERS.md with "
    "a picture of each race. Without a TABLE it lists them."
)
HAS_SETTING = False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which cells, how many seeds, where to."""
    add = parser.add_argument
    add("--list", action="store_true", help="list tables (all, or these) and cells, and run none")
    add("tables", nargs="*", metavar="TABLE", help="a table, or a single cell of one")
    add(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="seeds 0 to N-1; one where a race's run takes over ten minutes, and as many as they "
        "have of themselves in personal and claims (default: 3)",
    )
    add(
        "--validation",
        type=float,
        metavar="SHARE",
        help="choose a race's rates on this share of each client's training examples, on which "
        "nobody trains then, and not on the test set; such a cell has a record of its own",
    )
    add(
        "--estimate",
        action="store_true",
        help="measure about how long it takes (all tables, without a TABLE), and run no cell",
    )
    add(
        "--out",
        type=folder,
        default=Path("reproduce-results"),
        metavar="DIR",
        help="results folder; what is in it is not run again (default: reproduce-results)",
    )
    add("--record", type=Path, metavar="FILE", help="the page (default: PAPERS.md in --out)")
    add("--cores", type=int, metavar="N", help="cores to use (default: all)")


def call(options: argparse.Namespace) -> int:
    """Estimates, runs, writes, prints."""
    from fedjax_sim.reproduce import TABLES, Store, record
    from fedjax_sim.reproduce.claims import NAME as CLAIMS
    from fedjax_sim.reproduce.selection import ACCURACIES, CURVES, selected

    check_count("seeds", options.seeds)
    share = options.validation
    if share is not None:
        check_number("--validation", share, lambda x: 0 < x < 1, "in (0, 1)")
    if options.estimate:
        without_rates = () if share is not None else (*CURVES, *ACCURACIES, CLAIMS)
        options.tables = options.tables or [*TABLES, *without_rates]
    selection = selected(options.tables)
    if options.list or not options.tables:
        return _list(options.tables)
    cells = _races(selection, share)
    mesh = machine.use_cores(options.cores)
    store = Store(options.out)
    left = _left(selection, cells, store, options)
    page = options.record or options.out / record.PAGE
    record.check(page, "--out" if options.record is None else "--record")
    _estimate(selection, cells, left, store, options, mesh)
    if options.estimate:
        return 0
    through = _run(left, store, page, options, mesh)
    _conclude(selection, cells, store, page, through)
    return 0 if through else INTERRUPTED


class _Left(NamedTuple):
    """What of a selection is not through."""

    races: list["Cell"]
    curves: list[str]
    swept: list["SweptCell"]
    accuracies: list["AccuracyCell"]  # those of the sweeps that are of a table of accuracies


def _races(selection: "Selection", share: float | None) -> list["Cell"]:
    """The cells whose rates race to a target, on the test set or on a share that is held out."""
    from fedjax_sim.reproduce import TABLES
    from fedjax_sim.reproduce.cells import held_back

    if share is None:
        return selection.races
    if selection.curves or selection.swept:
        others = [*selection.curves, *(swept_cell.name for swept_cell in selection.swept)]
        raise ValueError(
            f"--validation chooses rates, which only the cells of {', '.join(TABLES)} have; "
            f"got {', '.join(others)}"
        )
    return [held_back(cell, share) for cell in selection.races]


def _left(
    selection: "Selection", cells: list["Cell"], store: "Store", options: argparse.Namespace
) -> _Left:
    """What is not through. Data that it needs and that is not there is refused."""
    from fedjax_sim.reproduce import accuracies, fedprox, shakespeare
    from fedjax_sim.reproduce import swept as sweeps
    from fedjax_sim.reproduce.racing import is_through

    curve_is_through = {
        fedprox.NAME: lambda: fedprox.is_through(options.out / fedprox.NAME, options.seeds),
        shakespeare.NAME: lambda: shakespeare.is_through(options.out / shakespeare.NAME),
    }
    swept = [
        cell for cell in selection.swept if not sweeps.is_through(cell, options.out, options.seeds)
    ]
    left = _Left(
        races=[cell for cell in cells if not is_through(cell, store, options.seeds)],
        curves=[name for name in selection.curves if not curve_is_through[name]()],
        swept=swept,
        accuracies=[each for each in selection.accuracies if each.cell in swept],
    )
    accuracies.check_data(left.accuracies)
    return left


def _estimate(
    selection: "Selection",
    cells: list["Cell"],
    left: _Left,
    store: "Store",
    options: argparse.Namespace,
    mesh: Any,
) -> None:
    """Says how long what is left takes, which for races and accuracies is measured."""
    from fedjax_sim.cli import show
    from fedjax_sim.reproduce.estimating import estimate, estimate_swept

    console = show.console()

    def say(lines: list[str]) -> None:
        for line in lines:
            console.print(line, soft_wrap=True)

    if cells:
        seconds_of = estimate(left.races, options.seeds, mesh)
        _save(seconds_of, store)
        say(_about_races(len(cells), seconds_of, each=options.estimate))
    for name in selection.curves:
        left_text = "no estimate, its progress says the time left."
        say([f"{name}: {left_text if name in left.curves else 'all there.'}"])
    if selection.swept:
        measured = estimate_swept(left.accuracies, options.seeds, mesh)
        _save(measured, store)
        of_claims = {claim.cell.name: claim.seconds for claim in selection.claims}
        seconds_of = {cell.name: (of_claims | measured)[cell.name] for cell in left.swept}
        say(_about_sweeps(len(selection.swept), seconds_of))


def _save(seconds_of: dict[str, float], store: "Store") -> None:
    if seconds_of:
        with store.alone():
            store.save_estimates(seconds_of)


def _about_races(total: int, seconds_of: dict[str, float], each: bool) -> list[str]:
    """Lines of how long the cells take that are left, of so many in all."""
    if not seconds_of:
        return [f"0 of {total} cells to run: all are there."]
    lines = [f"{name}: up to about {span_of(seconds)}" for name, seconds in seconds_of.items()]
    return [
        *(lines if each else ()),
        f"{len(seconds_of)} of {total} cells to run: up to about "
        f"{span_of(sum(seconds_of.values()))}, if no run reaches its target before its end.",
    ]


def _about_sweeps(total: int, seconds_of: dict[str, float]) -> list[str]:
    """Lines of how long the sweeps take that are left, of so many in all."""
    if not seconds_of:
        return [f"0 of {total} sweeps to run: all are there."]
    return [
        *(f"{name}: about {span_of(seconds)}" for name, seconds in seconds_of.items()),
        f"{len(seconds_of)} of {total} sweeps to run: about {span_of(sum(seconds_of.values()))}.",
    ]


def _run(left: _Left, store: "Store", page: Path, options: argparse.Namespace, mesh: Any) -> bool:
    """Runs what is left, the page anew behind each cell; whether all of it is through."""
    from fedjax_sim.cli import show
    from fedjax_sim.host.driver import Interrupt
    from fedjax_sim.reproduce import fedprox, race, record, shakespeare
    from fedjax_sim.reproduce import swept as sweeps

    def run_fedprox() -> bool:
        total = fedprox.NUM_CURVES * options.seeds
        with show.sweep_progress(total) as tell_curves:
            results = fedprox.run(options.out / fedprox.NAME, options.seeds, mesh, tell_curves)
        return sum(run.done == run.num_rounds for run in results.runs) == total

    def run_shakespeare() -> bool:
        with show.run_progress(shakespeare.ROUNDS, "test_accuracy") as tell_run:
            return shakespeare.run(options.out / shakespeare.NAME, mesh, tell_run)

    def run_swept(cell: "SweptCell") -> bool:
        show.console().print(cell.name, soft_wrap=True)
        with show.sweep_progress(sweeps.num_runs(cell, options.seeds)) as tell_sweep:
            through = sweeps.run(cell, options.out, options.seeds, mesh, tell_sweep)
        if through:
            record.write(page, store)
        return through

    run_curve = {fedprox.NAME: run_fedprox, shakespeare.NAME: run_shakespeare}
    with store.alone(), Interrupt() as interrupt:
        with show.cells_progress(len(left.races)) as (tell, cell_done):
            for cell in left.races:
                if not race(cell, store, options.seeds, mesh, interrupt, tell):
                    return False
                cell_done(cell)
                record.write(page, store)
        others: list[Callable[[], bool]] = [
            *(run_curve[name] for name in run_curve if name in left.curves),
            *(partial(run_swept, cell) for cell in left.swept),
        ]
        return all(interrupt.received is None and run() for run in others)


def _conclude(
    selection: "Selection", cells: list["Cell"], store: "Store", page: Path, through: bool
) -> None:
    """Writes the page, and says what the cells and claims show."""
    from fedjax_sim.cli import show
    from fedjax_sim.reproduce import record
    from fedjax_sim.reproduce import swept as sweeps

    console = show.console()
    names = record.write(page, store)
    for line in record.lines(cells, store):
        console.print(line, soft_wrap=True)
    for claim in selection.claims:
        if (claimed := sweeps.load(claim.cell, store.folder)) is not None:
            verdict = claim.judge(claimed)
            answer = "yes" if verdict.holds else "no"
            console.print(
                f"{claim.cell.name}: {answer}, {claim.criterion}: {verdict.ours}", soft_wrap=True
            )
    if not through:
        console.print(
            f"Interrupted: what was computed is saved in {store.folder}; the same command goes on.",
            soft_wrap=True,
        )
    console.print(f"Wrote {', '.join(map(str, names))}", soft_wrap=True)


def _list(chosen: Sequence[str]) -> int:
    """Prints all tables with their cells, or those that are chosen by name."""
    from fedjax_sim.cli import show
    from fedjax_sim.reproduce import TABLES, claims, fedprox, shakespeare
    from fedjax_sim.reproduce.selection import ACCURACIES

    # name -> heading, and pairs of a cell's name and what is said of it; two claims may share one
    listed: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for table in TABLES.values():
        cells = [
            (cell.name, f", {cell.published:g} rounds published" if cell.published else "")
            for cell in table.cells
        ]
        listed[table.name] = (table.heading, cells)
    listed |= {curves.NAME: (curves.HEADING, []) for curves in (fedprox, shakespeare)}
    for accuracy_table in ACCURACIES.values():
        cells = []
        for each in accuracy_table.cells:
            records = f", published by {' and '.join(each.published)}" if each.published else ""
            cells.append((each.cell.name, f": {', '.join(each.settings)}{records}"))
        listed[accuracy_table.name] = (accuracy_table.heading, cells)
    of_claims = [
        (claim.cell.name, f", about {span_of(claim.seconds)}: {claim.statement}")
        for claim in claims.CLAIMS
    ]
    listed[claims.NAME] = (claims.HEADING, of_claims)

    console = show.console()
    for name, (heading, cells) in listed.items():
        is_whole = not chosen or name in chosen
        rows = [f"  {cell}{text}" for cell, text in cells if is_whole or cell in chosen]
        for line in (f"{name}: {heading}", *rows) if is_whole or rows else ():
            console.print(line, soft_wrap=True)
    return 0
