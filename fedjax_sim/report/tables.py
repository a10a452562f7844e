"""The table of configurations on a page, and how values are written there."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from fedjax_sim.plots import canvas, words
from fedjax_sim.report import cards
from fedjax_sim.report.reading import Folder
from fedjax_sim.results import Mean, Run, configurations, ranked
from fedjax_sim.results.columns import BYTES

NONE = "\N{EN DASH}"
_MOST = 6  # metrics in the table


class Line(NamedTuple):
    """A line of the table: a configuration of a folder.

    Attributes:
      folder: its name.
      configuration: hyper-parameter -> value.
      runs: a seed each.
      means: metric -> over the seeds.
    """

    folder: str
    configuration: dict[str, Any]
    runs: list[Run]
    means: dict[str, Mean]

    @property
    def finite(self) -> bool:
        """Whether no seed diverged."""
        return not any(run.diverged for run in self.runs)


def table(folders: Mapping[str, Folder]) -> str:
    """A line a configuration: means, the best, what diverged, bytes, rounds to a target."""
    lines = [line for name, folder in folders.items() for line in lines_of(name, folder)]
    axes = list(dict.fromkeys(name for line in lines for name in line.configuration))
    scores = [by for by in map(cards.score, folders.values()) if by is not None]
    metrics = _metrics(lines, list(dict.fromkeys(scores)))
    targets = [name for name in dict.fromkeys(k for x in lines for k in x.runs[0].values)
               if name.startswith("rounds_to")]  # fmt: skip
    sent = any("bytes_down" in run.rounds for line in lines for run in line.runs)
    best = {metric: _best(lines, metric) for metric in metrics}
    first_metrics = [name for name in metrics if name in scores]
    rest = [name for name in metrics if name not in scores]
    winners = [line for line in lines if any(best.get(by) is line for by in scores)]
    tags = [_tags(line, line in winners) for line in lines]
    marked = any(tags)
    heads = [
        *(["folder"] if len(folders) > 1 else []),
        *axes,
        *first_metrics,
        *([""] if marked else []),
        *(name.replace("_", " ") for name in targets),
        *(["MB sent"] if sent else []),
        "seeds",
        "rounds",
        *rest,
    ]
    numbers = {name for name in axes if any(_is_number(x.configuration.get(name)) for x in lines)}
    numbers |= {*heads} - {"folder", "", *axes}
    rows = []
    for line, tag in zip(lines, tags, strict=True):
        said = folders[line.folder].configuration
        cells = [_td(text(line.folder))] if len(folders) > 1 else []
        for name in axes:  # what does not vary in one folder may stand in its configuration
            value = line.configuration.get(name, said.get(name))
            cells.append(_td(cell(value), name in numbers))
        cells += [_mean(line, metric, best[metric]) for metric in first_metrics]
        cells += [_td(tag)] if marked else []
        cells += [_td(_reached(line, name), True) for name in targets]
        if sent:
            cells.append(_td(_megabytes(line), True))
        counts = [str(len(line.runs)), words.span({run.done for run in line.runs})]
        cells += [_td(count, True) for count in counts]
        cells += [_mean(line, metric, best[metric]) for metric in rest]
        start = '<tr class="best">' if line in winners else "<tr>"
        rows.append(f"{start}{''.join(cells)}</tr>")
    head = "".join(
        f'<th scope="col"{" class=n" if name in numbers else ""}>{_heading(name)}</th>'
        for name in heads
    )
    return (
        "<h2>Configurations</h2><p>Final values: mean over seeds ± half of the 95 % interval of "
        "the mean (Student's t). Bold: the best of a column.</p>"
        f'<div class="box tall" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def lines_of(name: str, folder: Folder) -> list[Line]:
    """A folder's configurations."""
    results = folder.results
    means = {metric: results.mean(metric) for metric in results.metrics}
    return [
        Line(name, runs[0].configuration, runs, {k: found[i] for k, found in means.items()})
        for i, runs in enumerate(configurations.groups(results))
    ]


def interval(mean: Mean) -> str:
    """A mean and half of its interval, both to the interval's second digit.

    >>> interval(Mean({}, 0.95321, 0.94909, 0.95733, 4, 0))
    '0.9532 ± 0.0041'
    """
    half = mean.high - mean.mean
    if not math.isfinite(mean.mean):
        return NONE
    if not math.isfinite(half) or half <= 0:
        return f"{mean.mean:.4g}"
    digits = 1 - math.floor(math.log10(half))
    if not -4 <= digits <= 8:
        return f"{mean.mean:.4g} ± {half:.2g}"
    digits = max(digits, 0)
    return f"{mean.mean:.{digits}f} ± {half:.{digits}f}"


def _metrics(lines: Sequence[Line], scores: Sequence[str]) -> list[str]:
    """What the table shows of all that is known, the scores first."""
    found = dict.fromkeys(name for line in lines for name in line.means)

    def place(name: str) -> int:
        if name in scores:
            return scores.index(name) - len(scores)
        if name.startswith("clients_"):
            return 1 if name.endswith("_worst_tenth") else 2 if name.endswith("_mean") else 5
        if name.startswith(("validation_", "test_")):
            return 0
        return 4 if name.startswith("train_") else 3

    names = [x for x in found if not x.startswith("rounds_to") and place(x) < 5]
    return sorted(names, key=place)[:_MOST]


def _best(lines: Sequence[Line], metric: str) -> Line | None:
    """The line with the best mean; None if there is nothing to choose from."""
    known = [line for line in lines if metric in line.means and line.means[metric].competes]
    if len(lines) < 2 or not known:
        return None
    means = [line.means[metric] for line in known]
    return known[ranked(means, canvas.lowest_is_best(metric))[0]]


def _mean(line: Line, metric: str, best: Line | None) -> str:
    said = interval(line.means[metric]) if metric in line.means else NONE
    return _td(f"<b>{said}</b>" if best is line else said, True)


def _tags(line: Line, best: bool) -> str:
    said = [("good", "best")] if best else []
    if not line.finite:
        many, seeds = sum(run.diverged for run in line.runs), len(line.runs)
        said.append(("bad", "diverged" if many == seeds else f"diverged {many} of {seeds}"))
    if any(run.done != run.num_rounds for run in line.runs):
        said.append(("warn", "interrupted"))
    return " ".join(f'<span class="tag {kind}">{words}</span>' for kind, words in said)


def _reached(line: Line, name: str) -> str:
    """Mean over the seeds that reached the target, and how many did."""
    values = [run.values.get(name) for run in line.runs]
    known = [float(x) for x in values if _is_number(x) and math.isfinite(x)]  # type: ignore[arg-type]
    if not known:
        return NONE
    of = "" if len(known) == len(values) else f" ({len(known)} of {len(values)})"
    return f"{sum(known) / len(known):.4g}{of}"


def _megabytes(line: Line) -> str:
    sent = [
        sum(float(run.rounds[k][-1]) for k in BYTES)
        for run in line.runs if {*BYTES} <= set(run.rounds) and run.done
    ]  # fmt: skip
    return f"{sum(sent) / len(sent) / 1e6:,.4g}" if sent else NONE


def flat(said: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested entries by dotted names."""
    found: dict[str, Any] = {}
    for key, value in said.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def said(value: Any) -> str:
    """A value as text; a dash for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def cell(value: Any) -> str:
    """A value, escaped; a dash for none."""
    return text(said(value))


def text(value: str) -> str:
    """Escaped for HTML."""
    return escape(value, quote=True)


def _heading(value: str) -> str:
    """In two lines if it is long."""
    parts = value.split("_")
    if len(value) <= 16 or len(parts) == 1:
        return text(value)
    starts = ["_".join(parts[:i]) + "_" for i in range(1, len(parts))]
    start = min(starts, key=lambda start: abs(len(start) - len(value) / 2))
    return f"{text(start)}<br>{text(value[len(start) :])}"


def _td(html: str, number: bool = False) -> str:
    return f'<td class="n">{html}</td>' if number else f"<td>{html}</td>"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
