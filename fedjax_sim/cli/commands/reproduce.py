"""`fedjax-sim reproduce`: the papers' tables, cell by cell."""

import argparse
from pathlib import Path
from typing import Any

from fedjax_sim.cli import machine
from fedjax_sim.cli.arguments import folder
from fedjax_sim.cli.signals import INTERRUPTED
from fedjax_sim.core.checks import check_count

DESCRIPTION = (
    "Runs cells of the papers' tables, learning rates tuned in each, beside the published figures; "
    "saves every run as it ends, and writes PAPERS.md and a picture of each table. Without a TABLE "
    "it lists them."
)
HAS_SETTING = False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which cells, how many seeds, where to."""
    add = parser.add_argument
    add("tables", nargs="*", metavar="TABLE", help="a table, or a single cell of one")
    add(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="seeds 0 to N-1; one where a run takes over ten minutes (default: 3)",
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
    from fedjax_sim.reproduce import TABLES, Store, fedprox, race, record, select, shakespeare
    from fedjax_sim.reproduce.estimating import estimate
    from fedjax_sim.reproduce.racing import is_through

    check_count("seeds", options.seeds)
    curves = (fedprox.NAME, shakespeare.NAME)
    if options.estimate:
        options.tables = options.tables or [*TABLES, *curves]
    if not options.tables:
        return _list(TABLES)
    cells = select([name for name in options.tables if name not in curves])
    mesh = machine.use_cores(options.cores)
    from fedjax_sim.cli import show
    from fedjax_sim.host.driver import Interrupt, span_of

    console = show.console()
    store = Store(options.out)
    is_through_by_name = {
        fedprox.NAME: lambda: fedprox.is_through(options.out / fedprox.NAME, options.seeds),
        shakespeare.NAME: lambda: shakespeare.is_through(options.out / shakespeare.NAME),
    }
    left = [name for name in curves if name in options.tables and not is_through_by_name[name]()]
    missing = [cell for cell in cells if not is_through(cell, store, options.seeds)]
    page = options.record or options.out / record.PAGE
    record.check(page, "--out" if options.record is None else "--record")
    if missing:
        estimates = estimate(missing, options.seeds, mesh)
        with store.alone():
            store.save_estimates(estimates)
        for cell in missing if options.estimate else ():
            console.print(
                f"{cell.name}: up to about {span_of(estimates[cell.name])}", soft_wrap=True
            )
        console.print(
            f"{len(missing)} of {len(cells)} cells to run: up to about "
            f"{span_of(sum(estimates.values()))}, if no run reaches its target before its end.",
            soft_wrap=True,
        )
    elif cells:
        console.print(f"0 of {len(cells)} cells to run: all are there.")
    for name in curves:
        if name in options.tables:
            estimate_text = (
                "no estimate, its progress says the time left." if name in left else "all there."
            )
            console.print(f"{name}: {estimate_text}")
    if options.estimate:
        return 0
    through = True
    with store.alone(), Interrupt() as interrupt:
        with show.cells_progress(len(missing)) as (tell, cell_done):
            for cell in missing:
                through = race(cell, store, options.seeds, mesh, interrupt, tell)
                if not through:
                    break
                cell_done(cell)
                record.write(page, store)
        if left:
            through = through and interrupt.received is None
        if through and fedprox.NAME in left:
            total = fedprox.NUM_CURVES * options.seeds
            with show.sweep_progress(total) as tell_curves:
                results = fedprox.run(options.out / fedprox.NAME, options.seeds, mesh, tell_curves)
            through = sum(run.done == run.num_rounds for run in results.runs) == total
        if left[-1:] == [shakespeare.NAME]:
            through = through and interrupt.received is None
        if through and shakespeare.NAME in left:
            with show.run_progress(shakespeare.ROUNDS, "test_accuracy") as tell_run:
                through = shakespeare.run(options.out / shakespeare.NAME, mesh, tell_run)
    names = record.write(page, store)
    for line in record.lines(cells, store):
        console.print(line, soft_wrap=True)
    if not through:
        console.print(
            f"Interrupted: what was computed is saved in {options.out}; the same command goes on.",
            soft_wrap=True,
        )
    console.print(f"Wrote {', '.join(map(str, names))}", soft_wrap=True)
    return 0 if through else INTERRUPTED


def _list(tables: dict[str, Any]) -> int:
    from fedjax_sim.cli import show
    from fedjax_sim.reproduce import fedprox, shakespeare

    console = show.console()
    for table in tables.values():
        console.print(f"{table.name}: {table.heading}", soft_wrap=True)
        for cell in table.cells:
            published = f", {cell.published:g} rounds published" if cell.published else ""
            console.print(f"  {cell.name}{published}", soft_wrap=True)
    for curves in (fedprox, shakespeare):
        console.print(f"{curves.NAME}: {curves.HEADING}", soft_wrap=True)
    return 0
