"""The parts of the page that are no races: curves, accuracies after fixed rounds, claims."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from fedjax_sim.core.words import span_of
from fedjax_sim.reproduce import accuracies, claims, fedprox, figures, shakespeare, swept
from fedjax_sim.reproduce.accuracies import AccuracyTable
from fedjax_sim.reproduce.selection import ACCURACIES
from fedjax_sim.reproduce.store import Store
from fedjax_sim.reproduce.swept import Record


def sections(page: Path, store: Store) -> tuple[list[str], list[Path]]:
    """The texts of what has results or an estimate, and the pictures that were written for them."""
    texts: list[str] = []
    pictures: list[Path] = []
    if (stragglers := fedprox.load(store.folder / fedprox.NAME)) is not None:
        picture = page.parent / f"{fedprox.NAME}.png"
        figures.stragglers(stragglers, picture)
        pictures.append(picture)
        texts.append(f"## {fedprox.HEADING}\n\n![{fedprox.HEADING}]({picture.name})\n")
        texts.append("\n".join([fedprox.NOTE, "", *fedprox.rows(stragglers)]) + "\n")
        texts.append(f"    fedjax-sim reproduce {fedprox.NAME}\n")
    folder = store.folder / shakespeare.NAME
    if shakespeare.load(folder):
        picture = page.parent / f"{shakespeare.NAME}.png"
        figures.first_rounds(shakespeare.load(folder), picture)
        pictures.append(picture)
        texts.append(f"## {shakespeare.HEADING}\n\n![accuracy by round]({picture.name})\n")
        texts.append("\n".join(shakespeare.lines(folder)) + "\n")
        texts.append(f"    fedjax-sim reproduce {shakespeare.NAME}\n")
    for table in ACCURACIES.values():
        texts += _accuracies(table, store)
    texts += _claims(store)
    return texts, pictures


def _accuracies(table: AccuracyTable, store: Store) -> Iterator[str]:
    """A table's cells that are complete, and the time that the others would take."""
    estimates = store.estimates()
    records = {
        each.cell.name: record
        for each in table.cells
        if (record := swept.load(each.cell, store.folder)) is not None
    }
    missing = [each for each in table.cells if each.cell.name not in records]
    estimated = [each for each in missing if each.cell.name in estimates]
    remarks = store.folder / f"{table.name}.md"
    if not records and not estimated and not remarks.exists():
        return
    yield f"## {table.heading}\n"
    yield f"{table.note}\n"
    if records:
        yield "\n".join(accuracies.rows(table, records)) + "\n"
    if remarks.exists():
        yield f"{remarks.read_text(encoding='utf-8').strip()}\n"
    if missing:
        yield "Not run, or not to the end; the time is a whole cell's, all methods and seeds:\n"
        yield (
            "\n".join(
                f"- {each.place}: "
                + (
                    f"about {span_of(estimates[each.cell.name])}"
                    if each.cell.name in estimates
                    else "no estimate"
                )
                for each in missing
            )
            + "\n"
        )
    yield f"    fedjax-sim reproduce {table.name}\n"
    if records:
        yield _machine(records.values())


def _claims(store: Store) -> Iterator[str]:
    """Each claim whose sweep is complete: what is published, ours, and whether it holds."""
    lines, records = [], []
    for claim in claims.CLAIMS:
        if (record := swept.load(claim.cell, store.folder)) is not None:
            records.append(record)
            verdict = claim.judge(record)
            cells = (
                claim.statement,
                claim.published,
                claim.setting,
                verdict.ours,
                f"{'yes' if verdict.holds else 'no'}: {claim.criterion}",
                f"`{claim.cell.name}`",
            )
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return
    yield f"## {claims.HEADING}\n"
    yield (
        "\n".join(
            ["| claim | published | here | ours | holds if | cell |", "|" + "---|" * 6, *lines]
        )
        + "\n"
    )
    if (remarks := store.folder / f"{claims.NAME}.md").exists():
        yield f"{remarks.read_text(encoding='utf-8').strip()}\n"
    yield f"    fedjax-sim reproduce {claims.NAME}\n"
    yield _machine(records)


def _machine(records: Iterable[Record]) -> str:
    """The versions and devices that made these records, in words."""
    versions_of: dict[str, set[str]] = {}
    for record in records:
        for name, version in record.made_by.items():
            versions_of.setdefault(name, set()).add(version)
    texts = (f"{name} {' and '.join(sorted(versions))}" for name, versions in versions_of.items())
    return f"{', '.join(texts)}.\n"
