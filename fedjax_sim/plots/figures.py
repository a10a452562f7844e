"""Figures of results: curves over rounds or bytes, and how a metric responds to an axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from fedjax_sim.core.checks import check_count, check_number
from fedjax_sim.core.files import replace_file
from fedjax_sim.plots import canvas, line_styles, words
from fedjax_sim.plots.response_figure import response as response
from fedjax_sim.plots.split_figure import split as split
from fedjax_sim.results import Results, Run, joined, ranked
from fedjax_sim.results.columns import BYTES, SECONDS, lowest_is_best
from fedjax_sim.results.configurations import groups as groups
from fedjax_sim.results.configurations import numeric_axes as numeric_axes
from fedjax_sim.results.configurations import varying as varying

_POINTS = 300  # points of a line at most; more cannot be distinguished at this width
_BANDS = 5  # lines at most that are drawn with bands
# What a line may be drawn against beside rounds: the columns that it needs, and the axis' name.
_NEEDED = {"megabytes": tuple(BYTES), "seconds": (SECONDS,)}
_AXES = {"megabytes": "megabytes sent, down and up", "seconds": "simulated seconds"}
_SEEDS = 4  # seeds from which on an interval is narrow enough to be drawn as a band


def best(results: Results, metric: str, most: int) -> Results:
    """The runs of the `most` configurations best by the mean of `metric`, in their order.

    Raises:
      ValueError: for an unknown metric, or most < 1.
    """
    check_count("most", most)
    order = ranked(results.mean(metric), lowest_is_best(metric))
    runs = groups(results)
    return Results(tuple(run for i in sorted(order[:most]) for run in runs[i]))


def curves(
    results: Results | Sequence[Results] | Mapping[str, Results],
    metric: str | Sequence[str],
    *,
    against: str = "rounds",
    band: str | None = None,
    confidence: float = 0.95,
    most: int = 8,
    by: str | None = None,
    width: float = canvas.WIDE,
) -> Any:
    """A metric over rounds, bytes or simulated time: a line a configuration, the mean of its seeds.

    Where two hyper-parameters vary, colours show the one and dashes the other. More than
    five lines have no bands, which would cover each other; the band of a share, as an accuracy is
    one, ends at 0 and 1, and bands do not widen the axes. A line ends with the seed that has the
    fewest rounds. Of more than `most` configurations those with the best final mean are shown, and
    the legend says so.

    Args:
      results: of one sweep or run, or several: a dict names them, and those of a list that share
        a run are numbered.
      metric: a column by round; or several, of one configuration, each a line.
      against: "rounds", "megabytes" (10^6 bytes, down and up, all clients together), or "seconds",
        simulated ones, of runs with a clock.
      band: "interval" (Student's t, of the mean), "std" (of the seeds) or "none"; None for the
        interval, or of fewer than four seeds, whose intervals would cover the figure, the std.
      most: lines, at most 8.
      by: the metric whose final mean says which are best; None for `metric` itself.
      width: of the figure, in points.

    Returns:
      A matplotlib Figure.

    Raises:
      ValueError: for an unknown column, several of several configurations, or no bytes.
    """
    results = joined(results)
    names = [metric] if isinstance(metric, str) else list(metric)
    _check_choice("against", against, ("rounds", *_NEEDED))
    if band is not None:
        _check_choice("band", band, ("interval", "std", "none"))
    check_number("confidence", confidence, lambda x: 0 < x < 1, "in (0, 1)")
    check_number(
        "most",
        most,
        lambda x: 1 <= x <= len(line_styles.STYLES),
        f"in [1, {len(line_styles.STYLES)}]",
    )
    for name in (*names, *_NEEDED.get(against, ())):
        _check_column(results, name)
    configurations, note = groups(results), []
    if len(names) > 1 and (len(configurations) > 1 or len(names) > len(line_styles.STYLES)):
        raise ValueError(
            f"metric must be one column where there are several configurations; got {names}"
        )
    if len(configurations) > most:
        by = names[0] if by is None else by
        note.append(f"the {most} best of {len(configurations)} by final {by}")
        configurations = groups(best(results, by, most))
    if band is None:
        band = "interval" if min(map(len, configurations)) >= _SEEDS else "std"
    axes = varying(Results(tuple(run for runs in configurations for run in runs)))
    figure, ax = canvas.figure(width)
    lines, seeds = [], set()
    labels = words.labels([runs[0].configuration for runs in configurations], axes)
    for runs, text in zip(configurations, labels, strict=True):
        for name, tail in zip(names, words.tails(names), strict=True):
            label = tail if len(names) > 1 else text
            line = _over_seeds(runs, name, against, band, confidence)
            if any(run.diverged for run in runs):
                label += " (diverged)"
            seeds.add(len(runs))
            lines.append((*line, label, runs[0].configuration))
    styles = line_styles.of_configurations([configuration for *_, configuration in lines])
    faint = 0.14 if len(lines) < 5 else 0.08
    band = "none" if len(lines) > _BANDS else band
    for i, ((x, mean, half, label, _), style) in enumerate(zip(lines, styles, strict=True)):
        if band != "none" and np.isfinite(half).any():
            low, high = canvas.interval(names, mean, half)
            canvas.band(ax, x, low, high, style["color"], faint)
        interval = max(1, len(x) // 6)
        marks = (i * interval // len(lines), interval)
        ax.plot(
            x, mean, label=words.plain(label), markevery=marks, **line_styles.with_marker(style, x)
        )
    down = all(lowest_is_best(name) for name in names)
    canvas.limit(ax, [mean for _, mean, *_ in lines], down)
    ax.set_ylabel(words.plain((words.stem(names) or "value").replace("bytes", "megabytes")))
    _scale_rounds(ax, [x for x, *_ in lines if len(x)], against)
    if max(seeds) > 1:
        band_said = {
            "interval": f"; bands: {confidence:.0%} interval",
            "std": "; bands: std. deviation",
        }
        note.append(f"mean over {words.span(seeds)} seeds{band_said.get(band, '')}")
    canvas.legend(figure, ax, note)
    return figure


def _over_seeds(
    runs: Sequence[Run], name: str, against: str, band: str, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, the mean and the band's half width, at the rounds after which a seed has a value.

    A seed without a value there, as when nobody trained, is taken at the last value that it had.
    """
    num_rounds = min(run.done for run in runs)
    has = np.stack([run.has(name)[:num_rounds] for run in runs])
    latest = np.maximum.accumulate(np.where(has, np.arange(num_rounds), -1), axis=1)
    where = np.flatnonzero(has.any(axis=0) & (latest >= 0).all(axis=0))
    if len(where) > _POINTS:
        where = where[np.linspace(0, len(where) - 1, _POINTS).round().astype(int)]
    unit = 1e6 if name.startswith("bytes") else 1.0
    columns = [run.rounds[name][rows] for run, rows in zip(runs, latest[:, where], strict=True)]
    values = np.stack([column.astype(float) / unit for column in columns])
    values[~np.isfinite(values)] = math.nan
    x = where + 1.0
    if against == "megabytes":
        sent = [run.rounds["bytes_down"][where] + run.rounds["bytes_up"][where] for run in runs]
        x = np.mean(sent, axis=0) / 1e6
    elif against == "seconds":
        x = np.mean([run.rounds[SECONDS][where] for run in runs], axis=0)
    n, half = len(runs), np.full(len(where), math.nan)
    if n > 1:
        half = values.std(axis=0, ddof=1)
        if band == "interval":
            half = half * float(stdtrit(n - 1, (1 + confidence) / 2)) / math.sqrt(n)
    return x, values.mean(axis=0), half


def plot(results: Results, path: str | Path, metric: str) -> Path:
    """Writes the figure that suits: `response` to a numeric axis of four values, else `curves`.

    Args:
      path: its suffix says the format: .png, .svg or .pdf.

    Raises:
      ValueError: for an unknown metric or format.
    """
    path = Path(path)
    _check_choice("path's suffix", path.suffix, (".png", ".svg", ".pdf"))
    numeric = max(map(len, numeric_axes(results).values()), default=0)
    by_round = any(run.rounds.get(metric, np.zeros(())).ndim == 1 for run in results.runs)
    answers = metric in results.metrics and (numeric >= 4 or not by_round)
    figure = response(results, metric) if answers else curves(results, metric)
    save(figure, path)
    return path


def save(figure: Any, path: str | Path) -> None:
    """Writes a figure, whole or not at all.

    Args:
      path: its suffix says the format: .png, .svg or .pdf.

    Raises:
      ValueError: for another format.
    """
    path = Path(path)
    _check_choice("path's suffix", path.suffix, (".png", ".svg", ".pdf"))
    kind = path.suffix[1:]
    replace_file(path, lambda file: figure.savefig(file, format=kind, dpi=160, facecolor="white"))


def _scale_rounds(ax: Any, lines: Sequence[np.ndarray], against: str) -> None:
    last = [line[-1] for line in lines] or [1.0]
    if against in _NEEDED:
        ax.set_xlabel(_AXES[against])
        if min(last) > 0 and max(last) >= 5 * min(last):
            first = min(line[0] for line in lines)
            canvas.scale(ax, ax.get_xlabel(), first if first > 0 else min(last) / 100, max(last))
            return
    else:
        canvas.rounds(ax, max(last))
        return
    ax.set_xlim(0, 1.02 * max(last))


def _check_column(results: Results, name: str) -> None:
    for run in results.runs:
        if getattr(run.rounds.get(name), "ndim", 0) != 1:
            columns = [k for k, x in run.rounds.items() if x.ndim == 1 and k != "evaluated"]
            raise ValueError(
                f"metric must be a column by round, {', '.join(columns) or 'and there is none'}; "
                f"got {name!r}"
            )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
