"""Figures of results: curves over rounds or bytes, and how a metric responds to an axis."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from fedjax_sim import canvas
from fedjax_sim.checks import check_count, check_number
from fedjax_sim.columns import BYTES
from fedjax_sim.results import Mean, Results, Run, joined, ranked
from fedjax_sim.saving import replace_file
from fedjax_sim.split_figure import split as split

_POINTS = 300  # of a line; more are not seen at this width
_BANDS = 5  # lines that have them, at most
_APART = 3.0  # points between the intervals of two lines at one value


def groups(results: Results) -> list[list[Run]]:
    """The runs by configuration, in order, as `Results.mean` takes them together."""
    found: dict[str, list[Run]] = {}
    for run in results.runs:
        found.setdefault(repr(run.configuration), []).append(run)
    return list(found.values())


def best(results: Results, metric: str, most: int) -> Results:
    """The runs of the `most` configurations best by the mean of `metric`, in their order.

    Raises:
      ValueError: for an unknown metric, or most < 1.
    """
    check_count("most", most)
    order = ranked(results.mean(metric), canvas.lowest_is_best(metric))
    runs = groups(results)
    return Results(tuple(run for i in sorted(order[:most]) for run in runs[i]))


def varying(results: Results) -> list[str]:
    """The hyper-parameters that differ between configurations, in order."""
    names = dict.fromkeys(name for run in results.runs for name in run.configuration)
    return [n for n in names if len({repr(r.configuration.get(n)) for r in results.runs}) > 1]


def curves(
    results: Results | Sequence[Results] | Mapping[str, Results],
    metric: str | Sequence[str],
    *,
    against: str = "rounds",
    band: str = "interval",
    confidence: float = 0.95,
    most: int = 8,
    by: str | None = None,
    width: float = canvas.WIDE,
) -> Any:
    """A metric over rounds or bytes: a line a configuration, the mean over its seeds.

    Where two hyper-parameters vary, the one is told by colours and the other by dashes. More than
    five lines have no bands, which would cover each other. A line ends with the seed that has the
    fewest rounds. Of more than `most` configurations those with the best final mean are shown, and
    the legend says so.

    Args:
      results: of one sweep or run, or several: a dict names them, and those of a list that share
        a run are numbered.
      metric: a column by round; or several, of one configuration, each a line.
      against: "rounds", or "megabytes" (10^6 bytes, down and up, all clients together).
      band: "interval" (Student's t, of the mean), "std" (of the seeds) or "none".
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
    _check_choice("against", against, ("rounds", "megabytes"))
    _check_choice("band", band, ("interval", "std", "none"))
    check_number("confidence", confidence, lambda x: 0 < x < 1, "in (0, 1)")
    check_number(
        "most", most, lambda x: 1 <= x <= len(canvas.STYLES), f"in [1, {len(canvas.STYLES)}]"
    )
    needed = [*names, *([*BYTES] if against == "megabytes" else [])]
    for name in needed:
        _check_column(results, name)
    found, note = groups(results), []
    if len(names) > 1 and (len(found) > 1 or len(names) > len(canvas.STYLES)):
        raise ValueError(
            f"metric must be one column where there are several configurations; got {names}"
        )
    if len(found) > most:
        by = names[0] if by is None else by
        note.append(f"the {most} best of {len(found)} by final {by}")
        found = groups(best(results, by, most))
    axes = varying(Results(tuple(run for runs in found for run in runs)))
    figure, ax = canvas.figure(width)
    lines, seeds = [], set()
    for runs in found:
        for name, tail in zip(names, canvas.tails(names), strict=True):
            said = tail if len(names) > 1 else canvas.label(runs[0].configuration, axes)
            line = _over_seeds(runs, name, against, band, confidence)
            if any(run.diverged for run in runs):
                said += " (diverged)"
            seeds.add(len(runs))
            lines.append((*line, said, runs[0].configuration))
    styles = canvas.styles([configuration for *_, configuration in lines])
    faint = 0.14 if len(lines) < 5 else 0.08
    band = "none" if len(lines) > _BANDS else band
    for i, ((x, mean, half, said, _), style) in enumerate(zip(lines, styles, strict=True)):
        if band != "none" and np.isfinite(half).any():
            ax.fill_between(x, mean - half, mean + half, color=style["color"], alpha=faint,
                            linewidth=0, zorder=1)  # fmt: skip
        every = max(1, len(x) // 6)
        marks = (i * every // len(lines), every)
        ax.plot(x, mean, label=canvas.plain(said), markevery=marks, **style)
    down = all(canvas.lowest_is_best(name) for name in names)
    canvas.limit(ax, [mean for _, mean, *_ in lines], down)
    ax.set_ylabel(canvas.plain((canvas.stem(names) or "value").replace("bytes", "megabytes")))
    _scale_rounds(ax, [x for x, *_ in lines if len(x)], against)
    if max(seeds) > 1:
        band_said = {
            "interval": f"; bands: {confidence:.0%} interval",
            "std": "; bands: std. deviation",
        }
        note.append(f"mean over {canvas.span(seeds)} seeds{band_said.get(band, '')}")
    canvas.legend(figure, ax, note)
    return figure


def _over_seeds(
    runs: Sequence[Run], name: str, against: str, band: str, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, the mean and the band's half width, at the rounds after which a seed has a value.

    A seed that has none there, as when nobody trained, stands at the last one that it had.
    """
    done = min(run.done for run in runs)
    has = np.stack([run.has(name)[:done] for run in runs])
    latest = np.maximum.accumulate(np.where(has, np.arange(done), -1), axis=1)
    where = np.flatnonzero(has.any(axis=0) & (latest >= 0).all(axis=0))
    if len(where) > _POINTS:
        where = where[np.linspace(0, len(where) - 1, _POINTS).round().astype(int)]
    each = 1e6 if name.startswith("bytes") else 1.0
    columns = [run.rounds[name][rows] for run, rows in zip(runs, latest[:, where], strict=True)]
    values = np.stack([column.astype(float) / each for column in columns])
    values[~np.isfinite(values)] = math.nan
    x = where + 1.0
    if against == "megabytes":
        sent = [run.rounds["bytes_down"][where] + run.rounds["bytes_up"][where] for run in runs]
        x = np.mean(sent, axis=0) / 1e6
    n, half = len(runs), np.full(len(where), math.nan)
    if n > 1:
        half = values.std(axis=0, ddof=1)
        if band == "interval":
            half = half * float(stdtrit(n - 1, (1 + confidence) / 2)) / math.sqrt(n)
    return x, values.mean(axis=0), half


def numeric_axes(results: Results) -> dict[str, list[float]]:
    """The numeric hyper-parameters that vary -> their values, ascending; the longest first."""
    found = {}
    for name in varying(results):
        values = [run.configuration.get(name) for run in results.runs]
        if all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in values):
            found[name] = sorted({float(x) for x in values})  # type: ignore[arg-type]
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def response(
    results: Results | Sequence[Results] | Mapping[str, Results],
    metric: str,
    *,
    confidence: float = 0.95,
    most: int = 8,
    width: float = canvas.WIDE,
) -> Any:
    """The final mean of a metric against the numeric axis that varies, with its interval.

    Intervals of one value stand side by side; one that is longer than the axes ends in an arrow.

    A line for each combination of the other axes (of more than `most` the best, as the legend
    says); a logarithmic scale for values that span a factor of 20 or more. A grid of just two
    numeric axes with three values or more is a heat map. Without a numeric axis configurations
    stand side by side. A configuration that has no finite mean is a cross at the lower edge.

    Returns:
      A matplotlib Figure.

    Raises:
      ValueError: for an unknown metric.
    """
    results = joined(results)
    means = results.mean(metric, confidence)
    names, numeric = varying(results), numeric_axes(results)
    if len(numeric) == 2 == len(names) and all(len(x) > 2 for x in numeric.values()):
        first, second = numeric
        if len(means) > max(len(numeric[first]), len(numeric[second])):
            columns = {x: i for i, x in enumerate(numeric[first])}
            rows = {y: i for i, y in enumerate(numeric[second])}
            cells = np.full((len(rows), len(columns)), math.nan)
            for mean in means:
                place = rows[mean.configuration[second]], columns[mean.configuration[first]]
                cells[place] = mean.mean
            return canvas.heat_map(
                (first, list(columns)), (second, list(rows)), cells, metric, width
            )
    axis = next(iter(numeric), None)
    others = [name for name in names if name != axis]
    lines: dict[str, list[tuple[float, Mean]]] = {}
    for i, mean in enumerate(means):
        # Random draws of several numeric axes have no two points on a line.
        alone = axis is None or (len(numeric) > 1 and len(numeric[axis]) == len(means))
        said = "" if alone else canvas.label(mean.configuration, others)
        x = i + 1 if axis is None else mean.configuration[axis]
        lines.setdefault(said, []).append((float(x), mean))
    note = []
    if len(lines) > most:
        note.append(f"the {most} best of {len(lines)} by their best mean")
        sign = 1 if canvas.lowest_is_best(metric) else -1
        rank = {
            said: min((sign * m.mean for _, m in line if math.isfinite(m.mean)), default=math.inf)
            for said, line in lines.items()
        }
        lines = {said: lines[said] for said in sorted(lines, key=rank.__getitem__)[:most]}
    figure, ax = canvas.figure(width)
    styles = canvas.styles([line[0][1].configuration for line in lines.values()])
    connected = max(len(line) for line in lines.values()) > 1 and axis is not None
    connected &= len(numeric) < 2 or len(numeric[axis or ""]) < len(means)
    limits: list[np.ndarray] = []
    ends: list[tuple[Any, ...]] = []
    for i, ((said, line), style) in enumerate(zip(lines.items(), styles, strict=True)):
        line.sort(key=lambda point: point[0])
        x = np.array([point for point, _ in line])
        middle = np.array([m.mean for _, m in line])
        half = np.array([m.high - m.mean for _, m in line])
        middle[~np.isfinite(middle)] = math.nan
        half[~np.isfinite(half)] = 0
        limits += [middle, *_within(middle, half)]
        many = {"markersize": 3.2} if len(x) > 24 else {}
        look = {**style, "marker": style.get("marker", "o"), **many}
        look["linestyle"] = style["linestyle"] if connected else "none"
        beside = canvas.moved(ax, _APART * (i - (len(lines) - 1) / 2))
        ax.plot(x, middle, label=canvas.plain(said) or None, transform=beside, **look)
        ax.errorbar(x, middle, yerr=half, color=style["color"], linestyle="none", elinewidth=1,
                    capsize=0 if len(x) > 24 else 2, alpha=0.75, zorder=2,
                    transform=beside)  # fmt: skip
        ends.append((x, middle, half, style["color"], beside))
    canvas.limit(ax, limits, canvas.lowest_is_best(metric))
    cut = [_arrows(ax, *end) for end in ends]
    _crosses(ax, [point for line in lines.values() for point in line])
    ax.set_ylabel(canvas.plain(metric))
    if axis is None:
        canvas.name_ticks(ax, [canvas.label(mean.configuration, names) or "all" for mean in means])
    else:
        ax.set_xlabel(canvas.plain(axis))
        canvas.scale(ax, axis, numeric[axis][0], numeric[axis][-1])
    if not connected and axis is not None:
        note.append(f"each point a configuration, differing in {', '.join(others)} too")
    seeds = {mean.seeds for mean in means}
    if max(seeds) > 1:
        note.append(f"mean over {canvas.span(seeds)} seeds, {confidence:.0%} interval")
    if any(cut):
        note.append("arrows: an interval goes on")
    canvas.legend(figure, ax, note)
    return figure


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


def _within(mean: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The intervals' ends, no farther from the means than these lie apart."""
    known = mean[np.isfinite(mean)]
    apart = float(np.ptp(known)) if known.size else 0.0
    half = np.minimum(half, apart) if apart > 0 else half
    return mean - half, mean + half


def _arrows(
    ax: Any, x: np.ndarray, mean: np.ndarray, half: np.ndarray, color: str, transform: Any
) -> bool:
    """Marks the intervals that leave the axes where they leave them; whether any does."""
    low, high = ax.get_ylim()
    there = np.isfinite(mean)
    up, down = there & (mean + half > high), there & (mean - half < low)
    for leaves, edge, marker in ((up, high, "^"), (down, low, "v")):
        if leaves.any():
            ax.plot(x[leaves], np.full(leaves.sum(), edge), color=color, linestyle="none",
                    marker=marker, markersize=5, clip_on=False, transform=transform,
                    zorder=4)  # fmt: skip
    return bool((up | down).any())


def _crosses(ax: Any, points: Sequence[tuple[float, Mean]]) -> None:
    """Marks what diverged where it is, or at the lower edge if it is nowhere."""
    there = [(x, m.mean) for x, m in points if m.diverged and math.isfinite(m.mean)]
    lost = [(x, m) for x, m in points if not math.isfinite(m.mean)]
    look = {"color": canvas.INK, "linestyle": "none", "marker": "x", "zorder": 20}
    if there:
        ax.plot(*zip(*there, strict=True), label="diverged" if not lost else None, **look)
    if lost:
        said = "diverged" if all(m.diverged for _, m in lost) else "no finite value"
        ax.plot([x for x, _ in lost], [0.02] * len(lost), label=said, clip_on=False,
                transform=ax.get_xaxis_transform(), **look)  # fmt: skip


def _scale_rounds(ax: Any, lines: Sequence[np.ndarray], against: str) -> None:
    last = [line[-1] for line in lines] or [1.0]
    if against == "megabytes":
        ax.set_xlabel("megabytes sent, down and up")
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
            there = [k for k, x in run.rounds.items() if x.ndim == 1 and k != "evaluated"]
            raise ValueError(
                f"metric must be a column by round, {', '.join(there) or 'and there is none'}; "
                f"got {name!r}"
            )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
