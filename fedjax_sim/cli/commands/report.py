"""`fedjax-sim report`: results folders as one page."""

import argparse
import importlib
from pathlib import Path
from typing import Any

from fedjax_sim.cli.arguments import folder as path_of_folder
from fedjax_sim.results.folder import CONFIGURATION, RunFolder

DESCRIPTION = "Writes one HTML page about the results of runs, sweeps and comparisons."
HAS_SETTING = False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which folders, and where to."""
    add = parser.add_argument
    add("folders", nargs="+", type=path_of_folder, metavar="DIR", help="results folders")
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
    for path in options.folders:
        _merge_shards(RunFolder(path))
    page = importlib.import_module("fedjax_sim.report.page")
    page.write(options.folders, options.out, mixed=options.mixed, overwrite=options.overwrite)
    print(f"Wrote {options.out}")
    return 0


def _merge_shards(folder: RunFolder) -> None:
    """Writes the tables of a sweep that several processes share and have not completed yet.

    Raises:
      ValueError: if nothing of it is complete.
    """
    if not folder.claims.is_dir() or folder.is_complete():
        return
    from fedjax_sim.cli import files
    from fedjax_sim.cli.parser import COMMANDS
    from fedjax_sim.sweeps.merging import merge

    summary: dict[str, Any] = {}
    if (folder.path / CONFIGURATION).exists():
        values = files.read(folder.path / CONFIGURATION)
        summary["score"] = values.get("metric")
        of_the_sweep = COMMANDS["sweep"].names
        summary["configuration"] = {k: x for k, x in values.items() if k not in of_the_sweep}
    if not merge(folder.path, **summary):
        raise ValueError(
            f"{folder.path} has nothing to report yet: no batch of its sweep is complete"
        )
