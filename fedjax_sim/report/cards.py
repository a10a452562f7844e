"""The figures of a page, and each as SVG inside the page."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from fedjax_sim import plots
from fedjax_sim.plots import canvas, words
from fedjax_sim.report.reading import Folder
from fedjax_sim.results import Results, Run, configurations, joined
from fedjax_sim.results.columns import BYTES, SECONDS, lowest_is_best, on_test, score_of

MOST = 9  # cards for one score
_PARTS = ("validation", "test", "train")  # of a data set
_BY = {"rounds": "round", "megabytes": "MB", "seconds": "simulated time"}
_MODELS = ("global_", "personal_")  # whose columns are over clients
_LINES = 6  # of a figure of several folders; one of a single folder may have more


class Card(NamedTuple):
    """A figure and what it shows."""

    title: str
    figure: Any


class Legend(NamedTuple):
    """A legend that several figures share.

    Attributes:
      place: index of the first card that has it.
      lines: (label, style of the line).
      note: the legend's title.
    """

    place: int
    lines: list[tuple[str, dict[str, Any]]]
    note: str


def score(folder: Folder) -> str | None:
    """The metric that a folder's configurations are compared by."""
    metrics = folder.results.metrics
    named_score = folder.summary.get("score")
    if named_score in metrics:
        return str(named_score)
    return score_of(metrics)


def together(folders: Sequence[tuple[str, Results]]) -> Results:
    """The runs of all folders, with the folder's name as a hyper-parameter if there are several."""
    return folders[0][1] if len(folders) == 1 else joined(dict(folders), "folder")


def deal(
    folders: Sequence[tuple[str, Results]], metric: str
) -> tuple[list[tuple[str, Results]], str]:
    """The best configurations of each folder, as many as fit a figure, and a note of the rest."""
    if len(folders) == 1:
        return list(folders), ""
    share = max(1, _LINES // len(folders))
    left = []
    for name, results in folders:
        num_configurations = len(configurations.groups(results))
        if num_configurations > share:
            left.append(f"the {share} best of {num_configurations} of {name}")
    note = f"Curves show {' and '.join(left)}, by final {metric}." if left else ""
    return [(name, plots.best(results, metric, share)) for name, results in folders], note


def cards(folders: Sequence[tuple[str, Results]], metric: str) -> list[Card]:
    """The figures of folders that are compared by `metric`.

    Args:
      folders: (name, runs).
    """
    chosen, _ = deal(folders, metric)
    shown = _with_column(together(chosen), metric)
    figures = list(_responses(folders, metric))
    if shown is None:
        return [*figures, *_values(folders, metric, bool(figures))]
    if len(configurations.groups(shown)) == 1:
        figures += _of_one(shown, metric)
    else:
        facets = _facets(shown)
        for facet, results in facets or [("", shown)]:
            figures += _curves(results, metric, facet, 3 if facets else MOST - len(figures))
    return figures[:MOST]


def take_shared_legend(shown: Sequence[Card]) -> Legend | None:
    """Removes the legend that most cards share from those cards; None if no two cards share one."""
    legends = [card.figure.legends[0] if card.figure.legends else None for card in shown]
    texts = [None if x is None else _texts(x) for x in legends]
    counted = Counter(x for x in texts if x is not None)
    if not counted or counted.most_common(1)[0][1] < 2:
        return None
    texts_of_most = counted.most_common(1)[0][0]
    places = [place for place, x in enumerate(texts) if x == texts_of_most]
    first = legends[places[0]]
    assert first is not None
    labels = [words.unescaped(text.get_text()) for text in first.get_texts()]
    lines = [*zip(labels, map(_style, first.legend_handles), strict=True)]
    for place in places:
        shown[place].figure.legends[0].remove()
        shown[place].figure.set_size_inches(canvas.WIDTH / 72, canvas.HEIGHT / 72)
    note = words.unescaped(first.get_title().get_text())
    return Legend(places[0], lines, "; ".join(note.splitlines()))


def key_figure(style: dict[str, Any]) -> Any:
    """A line of a legend, alone."""
    figure, ax = canvas.figure()
    figure.set_layout_engine("none")
    figure.set_size_inches(44 / 72, 14 / 72)
    ax.set_position((0, 0, 1, 1))
    ax.set_axis_off()
    ax.plot([0, 0.5, 1], [0, 0, 0], markevery=[1], **style)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-1, 1)
    return figure


def _texts(legend: Any) -> tuple[Any, ...]:
    """The words and the lines' styles of a legend; two legends with equal ones are the same."""
    looks = [str(_style(handle)) for handle in legend.legend_handles]
    return (legend.get_title().get_text(), *(x.get_text() for x in legend.get_texts()), *looks)


def _style(handle: Any) -> dict[str, Any]:
    names = ("color", "linestyle", "linewidth", "marker", "markersize")
    style = {name: getattr(handle, f"get_{name}")() for name in names}
    # `get_linestyle` does not return dashes that a caller gave; the handle keeps them unscaled.
    offset, dashes = handle._unscaled_dash_pattern
    return {**style, "linestyle": (offset, dashes) if dashes else style["linestyle"]}


_curve = partial(plots.curves, width=canvas.WIDTH)
_response = partial(plots.response, width=canvas.WIDTH)


def _responses(folders: Sequence[tuple[str, Results]], metric: str) -> Iterator[Card]:
    with_axis = [
        (name, results)
        for name, results in folders
        if any(len(x) > 3 for x in configurations.numeric_axes(results).values())
    ]
    if not with_axis:
        pair = configurations.crossed(folders[0][1]) if len(folders) == 1 else None
        if pair is not None:
            yield Card(f"final {metric} by {', '.join(pair)}", _response(folders[0][1], metric))
        return
    joint = together(with_axis)
    axes = configurations.numeric_axes(joint)
    shared = set(joint.metrics).intersection(*(results.metrics for _, results in with_axis))
    beside = ("validation_loss" if on_test(metric) else "test_loss", *_worst(joint.metrics))
    metrics = [metric, *(x for x in (on_test(metric), *beside) if x in shared and x != metric)]
    for name in metrics[:3]:
        against = f" by {', '.join(list(axes)[:2])}" if axes else ""
        yield Card(f"final {name}{against}", _response(joint, name))


def _values(folders: Sequence[tuple[str, Results]], metric: str, shown: bool) -> Iterator[Card]:
    """The card of final values, for folders without columns by round."""
    joint = together(folders)
    if not shown and 1 < len(configurations.groups(joint)) <= 16:
        yield Card(f"final {metric}", _response(joint, metric))


def _of_one(results: Results, metric: str) -> Iterator[Card]:
    """The cards of one configuration: several columns share one."""
    columns = _columns(results)
    measured = [name for name in columns if name in results.metrics]
    pairs: dict[str, list[str]] = {}
    for name in sorted(measured, key=lambda name: (name != metric, columns.index(name))):
        if name.startswith("clients_"):
            pairs.setdefault(f"{name.split('_')[1]} of clients", []).append(name)
        elif name.startswith(_MODELS):
            pairs.setdefault(f"{name.split('_')[1]} over clients, global beside own", []).append(
                name
            )
        else:
            part, _, measure = name.partition("_")
            pairs.setdefault(measure if part in _PARTS and measure else name, []).append(name)
    for title, names in pairs.items():
        yield Card(f"{title} by round", _curve(results, _spread(names)[:8]))
    sent = [name for name in BYTES if name in columns]
    if len(sent) == 2:
        yield Card(f"{metric} by MB", _curve(results, metric, against="megabytes"))
    if SECONDS in columns:
        yield Card(f"{metric} by simulated time", _curve(results, metric, against="seconds"))
    if len(sent) == 2:
        yield Card("MB sent so far", _curve(results, sent))
    if "update_norm" in columns:
        yield Card("norm of the update by round", _curve(results, "update_norm"))


def _curves(results: Results, metric: str, facet: str, limit: int) -> Iterator[Card]:
    """The cards of several configurations, a column each."""
    columns = _columns(results)
    where = f", {facet}" if facet else ""
    columns_and_axes = [(metric, "rounds")]
    if {*BYTES} <= set(columns):
        columns_and_axes.append((metric, "megabytes"))
    if SECONDS in columns:
        columns_and_axes.append((metric, "seconds"))
    measured = [name for name in columns if name in results.metrics and name != metric]
    first = [name for part in _PARTS for name in measured if name.startswith(f"{part}_")]
    first.sort(key=lambda name: (name.startswith("train_"), not lowest_is_best(name)))
    remaining = [name for name in measured if name not in first and not name.startswith("clients_")]
    columns_and_axes += [(name, "rounds") for name in [*first, *_worst(measured), *remaining]]
    if "update_norm" in columns:
        columns_and_axes.append(("update_norm", "rounds"))
    for name, against in columns_and_axes[:limit]:
        title = f"{name} by {_BY[against]}"
        yield Card(title + where, _curve(results, name, against=against, by=metric))


def _facets(results: Results) -> list[tuple[str, Results]]:
    """FedAvg's modes side by side, one facet for each combination of the other axes."""
    varying = configurations.varying(results)
    other_axes = [name for name in varying if name != "mode"]
    if len(other_axes) == len(varying) or len(configurations.groups(results)) <= 4:
        return []
    runs_of_facet: dict[str, list[Run]] = {}
    texts = words.labels([run.configuration for run in results.runs], other_axes)
    for run, text in zip(results.runs, texts, strict=True):
        runs_of_facet.setdefault(text, []).append(run)
    if not 2 <= len(runs_of_facet) <= 4:
        return []
    return [(text, Results(tuple(runs))) for text, runs in runs_of_facet.items()]


def _columns(results: Results) -> list[str]:
    """The columns by round that all runs have."""
    first, *others = results.runs
    return [
        k for k, x in first.rounds.items() if x.ndim == 1 and all(k in run.rounds for run in others)
    ]


def _with_column(results: Results, name: str) -> Results | None:
    """The runs that have the column by round; None if none has."""
    runs = tuple(r for r in results.runs if getattr(r.rounds.get(name), "ndim", 0) == 1)
    return Results(runs) if runs else None


def _worst(metrics: Iterable[str]) -> list[str]:
    return [x for x in metrics if x.startswith("clients_") and x.endswith("_worst_tenth")]


def _spread(names: Sequence[str]) -> list[str]:
    """Names of quantiles from high to low, the order of their lines in the figure."""

    def place(name: str) -> tuple[int, int]:
        part = name.rsplit("_", 1)[-1]
        if re.fullmatch(r"p[0-9]+", part):
            return (1, -int(part[1:]))
        return (2, 0) if name.endswith("_worst_tenth") else (0, 0)

    return sorted(names, key=place)


def inline(figure: Any, prefix: str) -> str:
    """A figure as an `<svg>` element: text as text, colours by variables, ids of its own."""
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue().decode()
    text = text[text.index("<svg") :]
    for unwanted in (
        r"<metadata>.*?</metadata>",
        r"<defs>\s*<style.*?</style>\s*</defs>",
        r"<!--.*?-->",
        r' xmlns(:xlink)?="[^"]*"',
        r' version="1.1"',
    ):
        text = re.sub(unwanted, "", text, flags=re.DOTALL)
    text = re.sub(r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", text)
    text = re.sub(r"<[^>]*>", lambda tag: _retagged(tag.group(), prefix), text)
    return re.sub(r"\s*\n\s*", "\n", text)


def _retagged(tag: str, prefix: str) -> str:
    tag = re.sub(r" ?font-family: [^;\"]*;?", "", tag)
    tag = re.sub(r'\bfont: ([0-9.]+px) [^;"]*', r"font-size: \1", tag)
    tag = re.sub(r'\bid="', f'id="{prefix}-', tag)
    tag = re.sub(r'(xlink:)?href="#', f'href="#{prefix}-', tag)
    tag = re.sub(r"url\(#", f"url(#{prefix}-", tag)
    # A variable lets the stylesheet give another colour on dark ground. The pattern matches no
    # id, because an id has a hyphen and more characters.
    return re.sub(r"#([0-9a-f]{6})\b", r"var(--c\1,#\1)", tag)
