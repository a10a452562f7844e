"""The record: each table's cells beside the published numbers, as a page and pictures."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedjax_sim.core.files import check_writable, replace_file
from fedjax_sim.core.words import span_of
from fedjax_sim.reproduce import figures, sections
from fedjax_sim.reproduce.cells import COMPARED, TABLES, Cell, Table
from fedjax_sim.reproduce.race_tables import held_back_tables, rounds_text, rows
from fedjax_sim.reproduce.store import Store, best_run, best_runs, mean_rounds
from fedjax_sim.results.columns import BYTES

PAGE = "PAPERS.md"


def write(page: Path, store: Store) -> list[Path]:
    """Writes the page and, beside it, a picture of each table that has a complete cell.

    A file TABLE.md among the results has a person's remarks, which are copied below the table.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    estimates = store.estimates()
    parts = [_HEAD]
    written = [page]
    for table in TABLES.values():
        all_records = {cell.name: store.load(cell) for cell in table.cells}
        records = {
            name: record for name, record in all_records.items() if record and record["complete"]
        }
        on_held_back = held_back_tables(table, store)
        if not (records or on_held_back or any(cell.name in estimates for cell in table.cells)):
            continue
        parts.append(f"## {table.heading}\n")
        if records:
            picture = page.parent / f"{table.name}.png"
            figures.race(table, records, picture)
            written.append(picture)
            parts.append(f"![{table.heading}]({picture.name})\n")
            if table.note:
                parts.append(f"{table.note}\n")
            body = _modes(table, records) if table.name == "modes" else rows(table, records)
            parts.append("\n".join(body) + "\n")
        parts.extend("\n".join(part) + "\n" for part in on_held_back)
        if (remarks := store.folder / f"{table.name}.md").exists():
            parts.append(f"{remarks.read_text(encoding='utf-8').strip()}\n")
        parts.append(_not_run(table, all_records, estimates))
        parts.append(f"    fedjax-sim reproduce {table.name}\n")
        if records:
            parts.append(_machine(records))
    more_parts, pictures = sections.sections(page, store)
    text = "\n".join(part for part in [*parts, *more_parts] if part)
    replace_file(page, lambda file: file.write(text.encode()))
    return [*written, *pictures]


def check(page: Path, option: str = "--record") -> None:
    """Refuses a page that has another ending, exists and is no such page, or cannot be written.

    Args:
      option: the option that names the page.

    Raises:
      ValueError: saying which.
    """
    if page.exists() and not page.read_text("utf-8", errors="replace").startswith(_TITLE):
        raise ValueError(
            f"{option}: {page} is a file that this command did not write; name another"
        )
    if page.suffix.lower() != ".md":
        raise ValueError(f"{option} must end in .md, for the page is Markdown; got {page}")
    check_writable(page.parent, f"{option}: {page}")


def lines(cells: Sequence[Cell], store: Store) -> list[str]:
    """A line for each of these cells that is complete."""
    texts = []
    for cell in cells:
        record = store.load(cell)
        if record is not None and record["complete"]:
            text = f"{cell.name}: {rounds_text(cell, record)} rounds"
            if cell.published:
                text += f" ({cell.published:g} published)"
            texts.append(f"{text}, {cell.axis} {record['rate']:.3g}")
    return texts


_VARIANTS = (
    ("selected", "1"),
    ("selected", "tuned"),
    ("all_clients", "1"),
    ("all_clients", "tuned"),
)


def _modes(table: Table, records: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each combination, with rounds and megabytes by mode and server rate; a summary."""
    headings = [f"{mode}, server {rate}" for mode, rate in _VARIANTS]
    table_lines = [
        "| C | E | B | clients | client rate | " + " | ".join(headings) + " |",
        "|" + "---|" * (5 + len(headings)),
    ]
    groups: dict[tuple[str, ...], dict[tuple[str, str], Cell]] = {}
    for cell in table.cells:
        words = tuple(text for _, text in cell.says)
        groups.setdefault(words[:-2], {})[words[-2], words[-1]] = cell
    whole = []
    for place, cell_of in groups.items():
        base = cell_of["selected", "1"]
        if (first := records.get(base.name)) is None:
            continue
        cells, run = [], {}
        for variant in _VARIANTS:
            record = records.get(cell_of[variant].name)
            if record is None or (cell_of[variant].after and record["client_lr"] != first["rate"]):
                cells.append("not run")  # not at this client rate
                continue
            cells.append(_traffic(cell_of[variant], record))
            if mean_rounds(record) is not None:
                run[variant] = record
        if len(run) == len(_VARIANTS):
            whole.append(_same_seeds(run))
        table_lines.append(f"| {' | '.join(place)} | {first['rate']:.3g} | {' | '.join(cells)} |")
    return [*table_lines, "", _finding(whole)] if whole else table_lines


def _same_seeds(run: dict[tuple[str, str], dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The same records with only the seeds that all have; a run of over ten minutes has one."""
    shared = set.intersection(*({best["seed"] for best in best_runs(r)} for r in run.values()))
    return {
        variant: {
            **record,
            "runs": [each_run for each_run in record["runs"] if each_run["seed"] in shared],
        }
        for variant, record in run.items()
    }


def _finding(groups: list[dict[tuple[str, str], dict[str, Any]]]) -> str:
    """The modes' ratios of rounds and of bytes down, over the combinations that have all runs."""

    def times(rate: str, measure: Callable[[dict[str, Any]], float]) -> str:
        ratios = [
            measure(run["all_clients", rate]) / measure(run["selected", rate]) for run in groups
        ]
        return f"{_between(ratios)} times"

    def down(record: dict[str, Any]) -> float:
        return _mean_bytes(record, "bytes_down")

    def rounds(record: dict[str, Any]) -> float:
        return mean_rounds(record) or math.nan

    tuned = [run for run in groups if run["selected", "tuned"]["rate"] != 1]
    shares = [rounds(run["selected", "tuned"]) / rounds(run["selected", "1"]) for run in tuned]
    in_others = f"; in the others the best one takes {_between(shares)} times the rounds"
    return (
        f"Combinations in which all four reach the target: {len(groups)}. In them `all_clients` "
        f"with server rate 1 takes {times('1', rounds)} the rounds of `selected` with 1, and sends "
        f"{times('1', down)} as much down. With both tuned it takes {times('tuned', rounds)} the "
        f"rounds and sends {times('tuned', down)} as much down. In {len(groups) - len(tuned)} of "
        f"{len(groups)} the best server rate of `selected` is 1{in_others if tuned else ''}."
    )


def _between(ratios: list[float]) -> str:
    """Their range, in two digits or whole numbers."""
    low, high = (f"{x:.0f}" if x >= 10 else f"{x:.2g}" for x in (min(ratios), max(ratios)))
    return low if low == high else f"{low} to {high}"


def _mean_bytes(record: dict[str, Any], name: str) -> float:
    """Bytes down or up to the target, mean of the seeds."""
    best = best_runs(record)
    return float(sum(run[name] for run in best)) / len(best)


def _traffic(cell: Cell, record: dict[str, Any]) -> str:
    rate = f", rate {record['rate']:.3g}" if cell.axis == "server_lr" and cell.tuned else ""
    if mean_rounds(record) is None:
        return f"{rounds_text(cell, record)}{rate}"
    down, up = (_mean_bytes(record, name) / 1e6 for name in BYTES)
    return f"{rounds_text(cell, record)}; {down:,.0f} + {up:,.0f} MB{rate}"


def _not_run(
    table: Table, all_records: dict[str, dict[str, Any] | None], estimates: dict[str, float]
) -> str:
    """The missing cells, one line for those of the same C, E, B and clients."""
    groups: dict[str, list[Cell]] = {}
    for cell in table.cells:
        record = all_records[cell.name]
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
        published_text = f"{published:g} published, " if published else ""
        begun_texts = "".join(_unfinished(cell, all_records[cell.name]) for cell in cells)
        lines.append(f"- {where}: {published_text}{time}{begun_texts}")
    return "\n".join(lines) + "\n"


def _unfinished(cell: Cell, record: dict[str, Any] | None) -> str:
    """The best run so far of a cell that is not complete, in words."""
    if record is None or not record["runs"]:
        return ""
    best = best_run(record["runs"])
    variant = ", ".join(word for name, word in cell.says if name in COMPARED)
    outcome = f"has an accuracy of {best['best']:.4f} after {best['done']} rounds"
    if best["reached"] is not None:
        outcome = f"reaches the target in {best['reached']:.0f} rounds"
    return (
        f"; begun{f' ({variant})' if variant else ''}: of {len(record['runs'])} so far the best, "
        f"with {cell.axis} {best['rate']:.3g}, {outcome}"
    )


def _machine(records: dict[str, dict[str, Any]]) -> str:
    """The versions and devices that made the records, in words."""
    versions_of: dict[str, set[str]] = {}
    for record in records.values():
        for run in record["runs"]:
            for name, version in run["made_by"].items():
                versions_of.setdefault(name, set()).add(str(version))
    texts = (f"{name} {' and '.join(sorted(versions))}" for name, versions in versions_of.items())
    return f"{', '.join(texts)}.\n"


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
are chosen by the test set, and seed 0 chose them, so the mean without it stands beside; where
`--validation` chose them on examples that clients hold back, a table of its own says so. Seeds
differ in first model, cohorts and shuffles; the split over clients is one for all. *In time* are
the seeds that reach the target within 1.1 times the published rounds. *At the published round* is
the best accuracy until then, mean and range of the seeds; a run that has reached the target ends
there and counts with what it reached (>=), and where all have, nothing is written.
"""
