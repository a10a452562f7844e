"""The record: each table's cells beside the published figures, as a page and pictures."""

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core.files import replace_file
from fedjax_sim.host.driver import span_of
from fedjax_sim.reproduce import fedprox, figures, shakespeare
from fedjax_sim.reproduce.cells import COMPARED, TABLES, Cell, Table
from fedjax_sim.reproduce.racing import best_run
from fedjax_sim.reproduce.store import Store, best_runs, mean_rounds
from fedjax_sim.results.columns import BYTES

PAGE = "PAPERS.md"


def write(page: Path, store: Store) -> list[Path]:
    """Writes the page, and a picture of each table of which a cell is there, beside it.

    What a person has to say of a table stands below it, if it is in TABLE.md among the results.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    estimates = store.estimates()
    parts = [_HEAD]
    written = [page]
    for table in TABLES.values():
        known = {cell.name: store.load(cell) for cell in table.cells}
        records = {name: one for name, one in known.items() if one and one["complete"]}
        if not records and not any(cell.name in estimates for cell in table.cells):
            continue
        parts.append(f"## {table.heading}\n")
        if records:
            picture = page.parent / f"{table.name}.png"
            figures.race(table, records, picture)
            written.append(picture)
            parts.append(f"![{table.heading}]({picture.name})\n")
            if table.note:
                parts.append(f"{table.note}\n")
            body = _modes(table, records) if table.name == "modes" else _rows(table, records)
            parts.append("\n".join(body) + "\n")
        if (remarks := store.folder / f"{table.name}.md").exists():
            parts.append(f"{remarks.read_text(encoding='utf-8').strip()}\n")
        parts.append(_not_run(table, known, estimates))
        parts.append(f"    fedjax-sim reproduce {table.name}\n")
        if records:
            parts.append(_machine(records))
    if (found := fedprox.load(store.folder / fedprox.NAME)) is not None:
        picture = page.parent / f"{fedprox.NAME}.png"
        figures.stragglers(found, picture)
        written.append(picture)
        parts.append(f"## {fedprox.HEADING}\n\n![{fedprox.HEADING}]({picture.name})\n")
        parts.append("\n".join([fedprox.NOTE, "", *fedprox.rows(found)]) + "\n")
        parts.append(f"    fedjax-sim reproduce {fedprox.NAME}\n")
    folder = store.folder / shakespeare.NAME
    if shakespeare.load(folder):
        picture = page.parent / f"{shakespeare.NAME}.png"
        figures.first_rounds(shakespeare.load(folder), picture)
        written.append(picture)
        parts.append(f"## {shakespeare.HEADING}\n\n![accuracy by round]({picture.name})\n")
        parts.append("\n".join(shakespeare.lines(folder)) + "\n")
        parts.append(f"    fedjax-sim reproduce {shakespeare.NAME}\n")
    text = "\n".join(part for part in parts if part)
    replace_file(page, lambda file: file.write(text.encode()))
    return written


def check(page: Path, option: str = "--record") -> None:
    """Refuses a page of another ending, one that is there and not of this kind, or unwritable.

    Args:
      option: what says where it is.

    Raises:
      ValueError: saying which.
    """
    if page.exists() and not page.read_text("utf-8", errors="replace").startswith(_TITLE):
        raise ValueError(
            f"{option}: {page} is a file that this command did not write; name another"
        )
    if page.suffix.lower() != ".md":
        raise ValueError(f"{option} must end in .md, for the page is Markdown; got {page}")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=page.parent):
            pass
    except OSError as error:
        raise ValueError(f"{option}: {page} cannot be written: {error.strerror}") from error


def lines(cells: Sequence[Cell], store: Store) -> list[str]:
    """A line for each of these cells that is through."""
    found = []
    for cell in cells:
        record = store.load(cell)
        if record is not None and record["complete"]:
            said = f"{cell.name}: {_rounds(cell, record)} rounds"
            if cell.published:
                said += f" ({cell.published:g} published)"
            found.append(f"{said}, {cell.axis} {record['rate']:.3g}")
    return found


def _rounds(cell: Cell, record: dict[str, Any]) -> str:
    mean = mean_rounds(record)
    times = [one["reached"] for one in best_runs(record)]
    if mean is None:
        met = sum(time is not None for time in times)
        return f"> {cell.most}" + (f" ({met} of {len(times)} reached it)" if met else "")
    if len(times) == 1:
        return f"{mean:.0f}"
    return f"{mean:.0f} ({min(times):.0f} to {max(times):.0f})"


def _rows(table: Table, records: dict[str, dict[str, Any]]) -> list[str]:
    names = [name for name, _ in table.cells[0].says]
    found = [
        f"| {' | '.join(names)} | published | ours (range) | ours / published | without seed 0 | "
        "rate (tried) | seeds | best accuracy | minutes |",
        "|" + "---|" * (len(names) + 8),
    ]
    for cell in table.cells:
        if (record := records.get(cell.name)) is None:
            continue
        mean, best = mean_rounds(record), best_runs(record)
        share = "" if mean is None or not cell.published else f"{mean / cell.published:.2f}"
        tried = sorted({one["rate"] for one in record["runs"]})
        rates = f"{record['rate']:.3g} ({tried[0]:.2g} to {tried[-1]:.2g}, {len(tried)})"
        low, high = (f"{f([one['best'] for one in best]):.4f}" for f in (np.nanmin, np.nanmax))
        accuracy = high if mean is not None or low == high else f"{low} to {high}"
        minutes = sum(one["seconds"] for one in record["runs"]) / 60
        found.append(
            f"| {' | '.join(said for _, said in cell.says)} | {cell.published:g} | "
            f"{_rounds(cell, record)} | {share} | {_fresh(best)} | {rates} | "
            f"{len(best)} | {accuracy} | {'unknown' if math.isnan(minutes) else f'{minutes:.1f}'} |"
        )
    return found


def _fresh(runs: list[dict[str, Any]]) -> str:
    """The mean of the seeds that did not choose the rate."""
    times = [one["reached"] for one in runs if one["seed"] != 0]
    return f"{sum(times) / len(times):.0f}" if times and None not in times else ""


_VARIANTS = (
    ("selected", "1"),
    ("selected", "tuned"),
    ("all_clients", "1"),
    ("all_clients", "tuned"),
)


def _modes(table: Table, records: dict[str, dict[str, Any]]) -> list[str]:
    """One line a combination, rounds and megabytes of each mode and server rate; what they say."""
    said = [f"{mode}, server {rate}" for mode, rate in _VARIANTS]
    found = [
        "| C | E | B | clients | client rate | " + " | ".join(said) + " |",
        "|" + "---|" * (5 + len(said)),
    ]
    groups: dict[tuple[str, ...], dict[tuple[str, str], Cell]] = {}
    for cell in table.cells:
        words = tuple(text for _, text in cell.says)
        groups.setdefault(words[:-2], {})[words[-2], words[-1]] = cell
    whole = []
    for place, of in groups.items():
        base = of["selected", "1"]
        if (first := records.get(base.name)) is None:
            continue
        cells, run = [], {}
        for variant in _VARIANTS:
            record = records.get(of[variant].name)
            if record is None or (of[variant].after and record["client_lr"] != first["rate"]):
                cells.append("not run")  # not at this client rate
                continue
            cells.append(_traffic(of[variant], record))
            if mean_rounds(record) is not None:
                run[variant] = record
        if len(run) == len(_VARIANTS):
            whole.append(_same_seeds(run))
        found.append(f"| {' | '.join(place)} | {first['rate']:.3g} | {' | '.join(cells)} |")
    return [*found, "", _finding(whole)] if whole else found


def _same_seeds(run: dict[tuple[str, str], dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The same records with the seeds that all have: a run of over ten minutes has one."""
    shared = set.intersection(*({one["seed"] for one in best_runs(r)} for r in run.values()))
    return {
        variant: {**record, "runs": [one for one in record["runs"] if one["seed"] in shared]}
        for variant, record in run.items()
    }


def _finding(groups: list[dict[tuple[str, str], dict[str, Any]]]) -> str:
    """The modes' ratios of rounds and of bytes down, over the combinations where all are known."""

    def times(rate: str, of: Callable[[dict[str, Any]], float]) -> str:
        ratios = [of(run["all_clients", rate]) / of(run["selected", rate]) for run in groups]
        return f"{_between(ratios)} times"

    def down(record: dict[str, Any]) -> float:
        return _mean_bytes(record, "bytes_down")

    def rounds(record: dict[str, Any]) -> float:
        return mean_rounds(record) or math.nan

    tuned = [run for run in groups if run["selected", "tuned"]["rate"] != 1]
    shares = [rounds(run["selected", "tuned"]) / rounds(run["selected", "1"]) for run in tuned]
    other = f"; in the others the best one takes {_between(shares)} times the rounds"
    return (
        f"Combinations in which all four reach the target: {len(groups)}. In them `all_clients` "
        f"with server rate 1 takes {times('1', rounds)} the rounds of `selected` with 1, and sends "
        f"{times('1', down)} as much down. With both tuned it takes {times('tuned', rounds)} the "
        f"rounds and sends {times('tuned', down)} as much down. In {len(groups) - len(tuned)} of "
        f"{len(groups)} the best server rate of `selected` is 1{other if tuned else ''}."
    )


def _between(ratios: list[float]) -> str:
    """Their range, in two digits or whole numbers."""
    low, high = (f"{x:.0f}" if x >= 10 else f"{x:.2g}" for x in (min(ratios), max(ratios)))
    return low if low == high else f"{low} to {high}"


def _mean_bytes(record: dict[str, Any], name: str) -> float:
    """Bytes down or up to the target, mean of the seeds."""
    best = best_runs(record)
    return float(sum(one[name] for one in best)) / len(best)


def _traffic(cell: Cell, record: dict[str, Any]) -> str:
    rate = f", rate {record['rate']:.3g}" if cell.axis == "server_lr" and cell.tuned else ""
    if mean_rounds(record) is None:
        return f"{_rounds(cell, record)}{rate}"
    down, up = (_mean_bytes(record, name) / 1e6 for name in BYTES)
    return f"{_rounds(cell, record)}; {down:,.0f} + {up:,.0f} MB{rate}"


def _not_run(
    table: Table, known: dict[str, dict[str, Any] | None], estimates: dict[str, float]
) -> str:
    """The missing cells, one line for those of the same C, E, B and clients."""
    groups: dict[str, list[Cell]] = {}
    for cell in table.cells:
        record = known[cell.name]
        if record is None or not record["complete"]:
            place = [
                word if name == "clients" else f"{name} = {word}"
                for name, word in cell.says
                if name not in COMPARED
            ]
            groups.setdefault(", ".join(place), []).append(cell)
    if not groups:
        return ""
    lines = ["Not run, or not to the end; the time is a whole cell's if no run is cut short:\n"]
    for where, cells in groups.items():
        seconds = [estimates[cell.name] for cell in cells if cell.name in estimates]
        whole = len(seconds) == len(cells)
        time = f"up to about {span_of(sum(seconds))}" if whole else "no estimate"
        published = cells[0].published
        said = f"{published:g} published, " if published else ""
        begun = "".join(_begun(cell, known[cell.name]) for cell in cells)
        lines.append(f"- {where}: {said}{time}{begun}")
    return "\n".join(lines) + "\n"


def _begun(cell: Cell, record: dict[str, Any] | None) -> str:
    """What there is of a cell that is not through."""
    if record is None or not record["runs"]:
        return ""
    best = best_run(record["runs"])
    which = ", ".join(word for name, word in cell.says if name in COMPARED)
    found = f"has an accuracy of {best['best']:.4f} after {best['done']} rounds"
    if best["reached"] is not None:
        found = f"reaches the target in {best['reached']:.0f} rounds"
    return (
        f"; begun{f' ({which})' if which else ''}: of {len(record['runs'])} so far the best, with "
        f"{cell.axis} {best['rate']:.3g}, {found}"
    )


def _machine(records: dict[str, dict[str, Any]]) -> str:
    """What made them."""
    found: dict[str, set[str]] = {}
    for record in records.values():
        for run in record["runs"]:
            for name, version in run["made_by"].items():
                found.setdefault(name, set()).add(str(version))
    said = (f"{name} {' and '.join(sorted(those))}" for name, those in found.items())
    return f"{', '.join(said)}.\n"


_TITLE = "# The papers' tables, run again\n"
_HEAD = f"""{_TITLE}
`fedjax-sim reproduce TABLE` runs a table's cells and writes this page. Rounds are communication
rounds until the test accuracy first reaches the target, the curve made monotone by the best value
so far and interpolated linearly, as the papers have it; accuracy is measured after every round, or
100 times up to the published rounds where there are more. In each cell learning rates of the grid
10^(i/3) are tried with seed 0: three, more while the best lies at an end, and if none reaches the
target also those half a step (10^(1/6)) above and below the best, seven at most; a rate gives up
where it can no longer be the best, and every run at 1.1 times the published rounds. The best rate
is then run with further seeds, of which there are none where a run takes over ten minutes. Rates
are chosen by the test set, and seed 0 chose them, so the mean without it stands beside. Seeds
differ in first model, cohorts and shuffles; the split over clients is one for all.
"""
