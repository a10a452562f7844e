"""`fedjax-sim report`: results folders as one page."""

import argparse
import importlib
from pathlib import Path

from fedjax_sim.cli.arguments import folder

DESCRIPTION = "Writes one HTML page about the results of runs, sweeps and comparisons."
HAS_SETTING = False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which folders, and where to."""
    add = parser.add_argument
    add("folders", nargs="+", type=folder, metavar="DIR", help="results folders")
    add(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page (default: report.html)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace --out even if it is no page of this command",
    )
    add("--mixed", action="store_true", help="put results of different versions on one page")


def call(options: argparse.Namespace) -> int:
    """Reads, writes."""
    page = importlib.import_module("fedjax_sim.report.page")
    page.write(options.folders, options.out, mixed=options.mixed, overwrite=options.overwrite)
    print(f"Wrote {options.out}")
    return 0
