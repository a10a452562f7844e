"""One page of HTML that compares results folders and loads no other file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from markupsafe import Markup

from fedjax_sim.core.files import reason, replace_file
from fedjax_sim.plots import words
from fedjax_sim.report import cards, client_cards, facts, tables
from fedjax_sim.report.reading import Folder
from fedjax_sim.report.reading import load as load
from fedjax_sim.report.rendering import markup, rendered
from fedjax_sim.results import SUMMARY, Mean, configurations, ranked
from fedjax_sim.results.columns import lowest_is_best, on_test

_SAME = ("fedjax-sim", "jax", "jaxlib")  # versions that change numbers


_SUFFIXES = (".html", ".htm")
_GENERATOR = "fedjax-sim report"


class Best(NamedTuple):
    """A folder's best configuration: the metric, its interval, and the hyper-parameters."""

    heading: str
    interval: str
    where: str


class Head(NamedTuple):
    """A folder's summary; `best` is None where nothing was measured or all runs diverged."""

    title: facts.Title
    counts: str
    state: tables.Tag
    best: Best | None
    settings: list[facts.Entry]
    versions: list[facts.Entry]


class Figure(NamedTuple):
    """A drawing and its title."""

    title: str
    svg: "Markup"


class Legend(NamedTuple):
    """Lines that several figures have in common, and a note about them."""

    keys: list[Figure]
    note: str


class Section(NamedTuple):
    """Figures of folders that are compared by one score.

    Attributes:
      title: its heading.
      note: which configurations the figures leave out, if any.
      figures: in order.
      legend: the one that figures have in common; None if none do.
      legend_place: index of the figure that the legend stands before.
    """

    title: str
    note: str
    figures: list[Figure]
    legend: Legend | None
    legend_place: int | None


class Page(NamedTuple):
    """The template's values; `differences` is None for one folder."""

    title: str
    apart: Sequence[str]
    heads: list[Head]
    differences: facts.Differences | None
    sections: list[Section]
    clients: list[client_cards.ClientCard]
    client_heads: tuple[str, ...]
    table: tables.Table


def write(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    mixed: bool = False,
    overwrite: bool = False,
) -> Path:
    """Writes a page that compares results folders.

    Args:
      folders: as `Results.save` writes them; a run's baselines, in folders below it, are included.
      out: the page's file, .html or .htm; its folder is made.
      mixed: compare folders made by different versions all the same, and say so on the page.
      overwrite: replace the file, whatever it is; a page that this made is replaced in any case.

    Raises:
      ValueError: for no folder, one named twice, or one that cannot be read; for folders made by
        different versions of fedjax-sim, jax or jaxlib; for a file of another ending, one that is
        there already and no such page, or that cannot be written. Nothing is written then.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ValueError("folders must be at least one results folder; got none")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"folders must differ; got {', '.join(map(str, paths))}")
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"out must be a file; {out} is a folder")
    if out.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"out must end in {' or '.join(_SUFFIXES)}, for it is a page; got {out}")
    if out.exists() and not overwrite and not _is_page(out):
        raise ValueError(
            f"out {out} is there already, and is no such page; name another file, or give "
            "overwrite (--overwrite)"
        )
    folders_by_name = _folders_by_name(paths)
    apart = _version_differences(folders_by_name)
    if apart and not mixed:
        raise ValueError(
            f"folders were made by different versions: {'; '.join(apart)}; numbers may differ for "
            "that alone. Give mixed (--mixed) to compare them all the same"
        )
    text = page(folders_by_name, apart)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, lambda file: file.write(text.encode("utf-8", "replace")))
    except OSError as error:
        raise ValueError(f"out {out} cannot be written: {reason(error)}") from error
    return out


def page(folders: Mapping[str, Folder], apart: Sequence[str] = ()) -> str:
    """The page's HTML.

    Args:
      folders: name -> what it holds.
      apart: sentences about how the versions differ.

    Raises:
      ImportError: if jinja2 is missing: which extra has it.
    """
    return rendered(
        "page.html",
        generator=_GENERATOR,
        page=Page(
            title=", ".join(folders),
            apart=apart,
            heads=[_head(*item) for item in folders.items()],
            differences=facts.differences(folders) if len(folders) > 1 else None,
            sections=_sections(folders),
            clients=client_cards.client_cards(folders),
            client_heads=client_cards.HEADS,
            table=tables.table(folders),
        ),
    )


def _head(name: str, folder: Folder) -> Head:
    """A folder's summary."""
    runs = folder.results.runs
    state = tables.Tag("good", "complete")
    if folder.summary.get("complete") is not True:
        num_done, num_runs = sum(run.done == run.num_rounds for run in runs), len(runs)
        num_runs = max(num_runs, _whole(folder.summary.get("num_runs")))
        how_many = f": {num_done} of {_count(num_runs, 'run')} whole" if num_runs > 1 else ""
        state = tables.Tag("bad", f"interrupted{how_many}")
    return Head(
        title=facts.title(name, folder),
        counts=facts.counts(folder),
        state=state,
        best=_best(folder),
        settings=facts.described(facts.entries(folder)),
        versions=facts.described(facts.versions(folder)),
    )


def _best(folder: Folder) -> Best | None:
    """The best configuration's score; None if nothing was measured, or all diverged."""
    metric = cards.score(folder)
    if metric is None:
        return None
    means = folder.results.mean(metric)
    top = means[ranked(means, lowest_is_best(metric))[0]]
    if not top.competes:
        return None
    names = [x for x in configurations.varying(folder.results) if x in top.configuration]
    where = f" with {words.label(top.configuration, names)}" if names else ""
    heading = f"{'Best final' if names else 'Final'} {metric}"
    return Best(heading, tables.interval(top), where + _on_test(folder, metric, top))


def _on_test(folder: Folder, metric: str, top: Mean) -> str:
    """The test score of the configuration that the validation set chose, in words."""
    test_metric = on_test(metric)
    if test_metric not in folder.results.metrics:
        return ""
    (mean,) = [
        mean for mean in folder.results.mean(test_metric) if mean.configuration == top.configuration
    ]
    return f"; its {test_metric} is {tables.interval(mean)}"


def _sections(folders: Mapping[str, Folder]) -> list[Section]:
    """The figures, by the score that folders are compared by."""
    scores: dict[str, list[tuple[str, Any]]] = {}
    for name, folder in folders.items():
        metric = cards.score(folder)
        if metric is not None:
            scores.setdefault(metric, []).append((name, folder.results))
    sections, number = [], 0
    for metric, named_results in scores.items():
        shown = cards.cards(named_results, metric)
        if not shown:
            continue
        shared = cards.take_shared_legend(shown)
        figures = []
        for card in shown:
            number += 1
            svg = cards.inline(card.figure, f"f{number}")
            figures.append(Figure(card.title, markup(svg, card.title)))
        of_folders = (
            f" of {', '.join(name for name, _ in named_results)}" if len(scores) > 1 else ""
        )
        sections.append(
            Section(
                title=f"Figures{of_folders}",
                note=cards.deal(named_results, metric)[1],
                figures=figures,
                legend=None if shared is None else _legend(shared, f"k{number}"),
                legend_place=None if shared is None else shared.place,
            )
        )
    return sections


def _legend(shared: cards.Legend, prefix: str) -> Legend:
    """The legend that the figures behind it have in common."""
    keys = [
        Figure(label, markup(cards.inline(cards.key_figure(style), f"{prefix}-{place}")))
        for place, (label, style) in enumerate(shared.lines)
    ]
    return Legend(keys, shared.note)


def _folders_by_name(paths: Sequence[Path]) -> dict[str, Folder]:
    """Name -> folder, with each run's baselines after the run."""
    folders: dict[Path, Folder] = {}
    named = {path.resolve() for path in paths}
    for path in paths:
        folders[path] = load(path)
        names = folders[path].configuration.get("baselines")
        for name in names if isinstance(names, list) else ():
            below = path / str(name)
            if (below / SUMMARY).is_file() and below.resolve() not in named:
                folders[below] = load(below)
    return dict(zip(_names([*folders]), folders.values(), strict=True))


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of folders: the last parts of their paths, as many as make the names differ."""
    parts = [path.resolve().parts for path in paths]
    for num_parts in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path_parts[-num_parts:]) for path_parts in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _version_differences(folders: Mapping[str, Folder]) -> list[str]:
    """A sentence for each package that changes numbers and whose versions differ."""
    lines = []
    for package in _SAME:
        folders_of_version: dict[str, list[str]] = {}
        for name, folder in folders.items():
            folders_of_version.setdefault(str(folder.versions.get(package, "unknown")), []).append(
                name
            )
        if len(folders_of_version) > 1:
            versions = " and ".join(
                f"{v} in {', '.join(names)}" for v, names in folders_of_version.items()
            )
            lines.append(f"{package} is {versions}")
    return lines


def _is_page(path: Path) -> bool:
    """Whether this module made the file, which is then replaced: it can be made again."""
    with path.open("rb") as file:
        return f'content="{_GENERATOR}"'.encode() in file.read(2000)


def _whole(value: Any) -> int:
    return value if type(value) is int else 0


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
