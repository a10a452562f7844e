"""Tables, files and pictures of a comparison."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from fedjax_sim.compare.comparison import ResolvedComparison
from fedjax_sim.compare.identities import identity
from fedjax_sim.compare.measured import SPREAD_NAMES, Curve, Row
from fedjax_sim.core.files import replace_file
from fedjax_sim.core.history import Communication
from fedjax_sim.plots import canvas, line_styles
from fedjax_sim.results import Results, Run
from fedjax_sim.results.columns import BYTES, SECONDS
from fedjax_sim.results.folder import HISTORY, PICTURE
from fedjax_sim.settings.resolved import cohort_size

GLOBAL = "global model, on each client's examples"


def write(
    folder: Path,
    setting: ResolvedComparison,
    results: Results,
    all_curves: list[Curve],
    table: list[Row],
    exchange: Communication,
    complete: bool,
    linear: bool,
) -> tuple[str, ...]:
    """Writes the files of `Results.save`, history.csv and compare.png, each whole or not at all.

    Args:
      linear: of `identity`.
    """
    names = results.save(
        folder,
        {
            "kind": "compare",
            "configuration": setting.configuration,
            "seeds": list(range(setting.seeds)),
            "complete": complete,
            "score": setting.base.score,
            **exchange.facts(),
            "rows": [_without_unmeasured(setting, row) for row in table],
            "identity": identity(setting, table, linear),
        },
    )
    replace_file(folder / HISTORY, lambda file: _write_history(file, setting, results.runs))
    replace_file(
        folder / PICTURE,
        lambda file: figure(setting, all_curves).savefig(file, format="png", dpi=160),
    )
    return PICTURE, HISTORY, *names


def _without_unmeasured(setting: ResolvedComparison, row: Row) -> dict[str, Any]:
    """A row's values; without those of clients' own models and of codecs where there are none."""
    values = row._asdict()
    if not setting.is_of_codecs:
        del values["compress"]
    if row.seconds is None:
        del values["seconds"]
    of_clients = [name for name in values if name.startswith(("personal_", "global_"))]
    return {k: x for k, x in values.items() if x is not None or k not in of_clients}


def _write_history(file: IO[bytes], setting: ResolvedComparison, runs: Sequence[Run]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    clocked = [SECONDS] if all(SECONDS in run.rounds for run in runs) else []
    of_clients = [name for name in SPREAD_NAMES if all(name in run.rounds for run in runs)]
    writer.writerow(
        ["mode", *(["compress"] if setting.is_of_codecs else []), "fraction", "cohort", "seed"]
        + ["round", "score", "train_loss", *BYTES, "reporting_share", *of_clients, *clocked]
    )
    for run in runs:
        fraction, mode = run.configuration["fraction"], run.configuration["mode"]
        cohort = cohort_size(fraction, setting.base.clients)
        codec = [run.configuration["compress"]] if setting.is_of_codecs else []
        column, measures = run.rounds, (setting.base.score, "train_loss")
        has = {name: run.has(name) for name in (*measures, *of_clients)}
        for t in range(run.done):
            writer.writerow(
                [mode, *codec, fraction, cohort, run.seed, t + 1]
                + [f"{column[name][t]:.6g}" if has[name][t] else "" for name in measures]
                + [int(column[name][t]) for name in BYTES]
                + [f"{column['reporting_share'][t]:.6g}"]
                + [f"{column[name][t]:.6g}" if has[name][t] else "" for name in of_clients]
                + [f"{column[name][t]:.6g}" for name in clocked]
            )
    text.detach()


def figure(setting: ResolvedComparison, all_curves: list[Curve]) -> Any:
    """A matplotlib Figure: a row a fraction, the score by round, by megabytes sent and, where the
    clients have a clock, by simulated time.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    base = setting.base
    fractions = list(dict.fromkeys(curve.fraction for curve in all_curves))
    label_of = {id(curve): setting.label(curve.mode, curve.compress) for curve in all_curves}
    styles = line_styles.of_modes([*label_of.values()])
    figure = Figure(figsize=(11, 1.2 + 2.8 * len(fractions)), layout="constrained")
    FigureCanvasAgg(figure)
    target = f"target {setting.target:g}"
    beside = [x for x in (_of_global(setting, curve) for curve in all_curves) if x is not None]
    low, high = _limits(base.score, all_curves, beside)
    # A target outside of the axes is not drawn, so the legend does not name it, either.
    is_shown = low <= setting.target <= high
    has_clock = all(curve.seconds is not None for curve in all_curves)
    if has_clock:
        figure.set_size_inches(15, figure.get_figheight())
    columns = 3 if has_clock else 2
    axes = figure.subplots(len(fractions), columns, squeeze=False, sharey=True, sharex="col")
    for line, fraction in enumerate(fractions):
        curve_of = {label_of[id(x)]: x for x in all_curves if x.fraction == fraction}
        for order, label in enumerate(label for label in styles if label in curve_of):
            mean, below, above = _band(base.score, curve_of[label])
            places = [np.arange(1, len(mean) + 1), _megabytes(curve_of[label])]
            if has_clock:
                places.append(_seconds(curve_of[label]))
            for ax, x in zip(axes[line], places, strict=True):
                style = line_styles.with_marker(styles[label], x)
                canvas.band(ax, x, below, above, style["color"], 0.13)
                marks = (order * len(x) // 24, max(1, len(x) // 6))
                ax.plot(x, mean, **style, label=label, zorder=2 + order, markevery=marks)
                of_global = _of_global(setting, curve_of[label])
                if of_global is not None:
                    thin = {"linewidth": 1.0, "linestyle": (0, (2, 1.5)), "zorder": 1}
                    ax.plot(x, of_global, color=style["color"], label=GLOBAL, **thin)
        cohort = cohort_size(fraction, base.clients)
        axes[line, 0].set_ylabel(
            f"C = {fraction:g} (m = {cohort})\n{setting.set_name} {setting.score_name}"
        )
        for ax in axes[line]:
            if is_shown:
                ax.axhline(
                    setting.target,
                    label=target,
                    color="0.35",
                    linewidth=1.2,
                    linestyle=":",
                    zorder=0,
                )
            ax.grid(alpha=0.25, linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
    # The limits are given to matplotlib because a curve that diverged would spoil its own choice.
    axes[0, 0].set_ylim(low, high)
    canvas.rounds(axes[-1, 0], max(curve.score.shape[1] for curve in all_curves))
    first, last = _shown_from(all_curves, _megabytes, low)
    canvas.scale(axes[-1, 1], "megabytes sent, down and up, all clients together", first, last)
    if has_clock:
        canvas.scale(axes[-1, 2], "simulated seconds", *_shown_from(all_curves, _seconds, low))
    seeds = all_curves[0].score.shape[0]
    values = base.values()
    figure.suptitle(
        f"{setting.algorithm_name}'s aggregation modes on {base.dataset} ({base.partition}): "
        f"K={base.clients}{_shown(values)}\n"
        f"lines: mean over {seeds} seed{'s' if seeds > 1 else ''}; bands: standard deviation",
        fontsize=10,
    )
    handles = {
        label: handle
        for ax in axes[:, 0]
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    labels = [setting.label(mode, codec) for mode in setting.modes for codec in setting.compress]
    in_order = (*labels, GLOBAL, target)  # as in the table
    shown = [name for name in in_order if name in handles]
    figure.legend(
        [handles[label] for label in shown],
        shown,
        loc="outside lower center",
        ncols=len(shown),
        frameon=False,
        handlelength=4,
    )
    return figure


def _of_global(setting: ResolvedComparison, curve: Curve) -> np.ndarray | None:
    """The mean over seeds of the clients' accuracy by the global model, where theirs is another."""
    name = f"global_{setting.base.measure}_mean"
    return curve.of_clients[name].mean(axis=0) if name in curve.of_clients else None


def _shown(values: Mapping[str, Any]) -> str:
    """The values of a setting that the picture's title has, those that its algorithm takes."""
    names = {"epochs": "E=", "batch_size": "B="} | {
        f"{who}_lr": f"{who} lr " for who in ("client", "server")
    }
    texts = {k: f"{x:g}" if isinstance(x, float) else str(x) for k, x in values.items()}
    return "".join(f", {word}{texts[name]}" for name, word in names.items() if name in texts)


def _band(score: str, curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean over the seeds, and a standard deviation below and above it."""
    mean = curve.score.mean(axis=0)
    std = curve.score.std(axis=0, ddof=1) if len(curve.score) > 1 else np.zeros_like(mean)
    return mean, *canvas.interval([score], mean, std)


def _limits(
    score: str, all_curves: list[Curve], beside: Sequence[np.ndarray] = ()
) -> tuple[float, float]:
    """Limits of the score's axis: the range of the means, and at most a quarter more for the bands.

    They are (0, 1) where no mean is finite.
    """
    bands = [_band(score, curve) for curve in all_curves]
    ends = canvas.ends([*(mean for mean, _, _ in bands), *beside], lowest=False)
    if ends is None:
        return 0.0, 1.0
    low, high = ends
    quarter = (high - low) / 4
    lowest, highest = low, high
    for mean, below, above in bands:
        shown = (low <= mean) & (mean <= high)  # without the worst first rounds and divergence
        lowest = min([lowest, *below[shown]])
        highest = max([highest, *above[shown]])
    return canvas.with_margin(max(lowest, low - quarter), min(highest, high + quarter))


def _megabytes(curve: Curve) -> np.ndarray:
    """Sent so far, down and up, mean over seeds."""
    return np.asarray((curve.bytes_down + curve.bytes_up).mean(axis=0) / 1e6)


def _seconds(curve: Curve) -> np.ndarray:
    """Simulated so far, mean over seeds."""
    assert curve.seconds is not None
    return np.asarray(curve.seconds.mean(axis=0))


def _shown_from(
    all_curves: list[Curve], of: Callable[[Curve], np.ndarray], lowest: float
) -> tuple[float, float]:
    """The range of what is sent or simulated where curves are above the lower edge of the axes."""
    firsts, lasts = [], []
    for curve in all_curves:
        mean = curve.score.mean(axis=0)
        sent = of(curve)
        shown = np.flatnonzero(np.isfinite(mean) & (mean >= lowest))
        at = int(shown[0]) if shown.size else len(sent) - 1
        # The line rises to its first point above the edge from the point before, so the range
        # begins between the two, in the middle of a logarithmic scale.
        firsts.append(float(np.sqrt(sent[max(0, at - 1)] * sent[at])))
        lasts.append(float(sent[-1]))
    return min(firsts), max(lasts)
