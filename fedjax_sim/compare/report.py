"""Tables, files and pictures of a comparison."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from fedjax_sim.compare.comparison import ResolvedComparison
from fedjax_sim.core.files import replace_file
from fedjax_sim.core.history import Communication
from fedjax_sim.plots import canvas, line_styles
from fedjax_sim.results import Results, Run
from fedjax_sim.results.columns import BYTES
from fedjax_sim.results.folder import HISTORY, PICTURE
from fedjax_sim.results.targets import rounds_to_target
from fedjax_sim.settings.resolved import cohort_size


class Curve(NamedTuple):
    """The measurements of one mode and fraction; arrays are [seeds, rounds]."""

    mode: str
    fraction: float
    score: np.ndarray
    train_loss: np.ndarray
    bytes_down: np.ndarray  # Int64, cumulative
    bytes_up: np.ndarray  # Int64, cumulative
    share: np.ndarray  # n_V / n
    diverged: int  # seeds
    test: np.ndarray | None = None  # of the same metric, where `score` is of a validation set


class Row(NamedTuple):
    """One line of the table: a mode and a fraction, over the seeds."""

    mode: str
    fraction: float
    cohort: int  # m
    seeds: int
    rounds: int
    score_mean: float  # after the last round
    score_std: float | None  # sample standard deviation over seeds; None for one seed
    diverged: int  # seeds with an update or a measure that held a NaN or an infinity
    target_reached: int  # seeds that reached the target
    rounds_to_target: float | None  # mean over the seeds that did
    megabytes_down: float  # 10^6 bytes, the whole run, mean over seeds
    megabytes_up: float
    megabytes_up_all_send: float  # the reading in which every client sends in every round
    mean_share: float  # n_V / n
    min_share: float
    max_share: float
    test_mean: float | None = None  # after the last round, where the score is of a validation set
    test_std: float | None = None


def curves(setting: ResolvedComparison, results: Results) -> list[Curve]:
    """The runs of each mode and fraction side by side, cut to one length.

    After an interrupt these are the seeds that are complete or, if none is, all seeds with a
    round, up to the last round that all of them have.
    """
    cells: dict[tuple[float, str], list[Run]] = {}
    for run in results.runs:
        if run.done:
            place = run.configuration["fraction"], run.configuration["mode"]
            cells.setdefault(place, []).append(run)
    all_curves = []
    for (fraction, mode), runs in cells.items():
        runs = [run for run in runs if run.done == run.num_rounds] or runs
        num_rounds = min(run.done for run in runs)

        def side_by_side(
            name: str, runs: list[Run] = runs, num_rounds: int = num_rounds
        ) -> np.ndarray:
            return np.stack([run.rounds[name][:num_rounds] for run in runs])

        all_curves.append(
            Curve(
                mode=mode,
                fraction=fraction,
                score=side_by_side(setting.base.score).astype(np.float64),
                train_loss=side_by_side("train_loss").astype(np.float64),
                bytes_down=side_by_side("bytes_down"),
                bytes_up=side_by_side("bytes_up"),
                share=side_by_side("reporting_share").astype(np.float64),
                diverged=sum(run.diverged for run in runs),
                test=None
                if setting.base.validation is None
                else side_by_side(setting.base.test_score).astype(np.float64),
            )
        )
    return all_curves


def rows(
    setting: ResolvedComparison, all_curves: list[Curve], exchange: Communication
) -> list[Row]:
    """The table of a resolved setting."""
    clients = setting.base.clients
    table = []
    for curve in all_curves:
        seeds, rounds = curve.score.shape
        last = curve.score[:, -1]
        test = None if curve.test is None else curve.test[:, -1]
        reached = [rounds_to_target(score, setting.target) for score in curve.score]
        times = [time for time in reached if time is not None]
        everyone_up = rounds * clients * exchange.up
        table.append(
            Row(
                mode=curve.mode,
                fraction=curve.fraction,
                cohort=cohort_size(curve.fraction, clients),
                seeds=seeds,
                rounds=rounds,
                score_mean=float(last.mean()),
                score_std=float(last.std(ddof=1)) if seeds > 1 else None,
                diverged=curve.diverged,
                target_reached=len(times),
                rounds_to_target=float(np.mean(times)) if times else None,
                megabytes_down=float(curve.bytes_down[:, -1].mean()) / 1e6,
                megabytes_up=float(curve.bytes_up[:, -1].mean()) / 1e6,
                megabytes_up_all_send=everyone_up / 1e6,
                mean_share=float(curve.share.mean()),
                min_share=float(curve.share.min()),
                max_share=float(curve.share.max()),
                test_mean=None if test is None else float(test.mean()),
                test_std=float(test.std(ddof=1)) if test is not None and seeds > 1 else None,
            )
        )
    return table


def identity(setting: ResolvedComparison, table: list[Row]) -> list[str]:
    """Which server learning rates make the modes equal, for each fraction.

    `all_clients = w + (n_V/n) (selected - w)`: exactly where n_V/n is the same in every
    round, else up to how it varies.
    """
    lr = 1.0 if setting.base.server is None else float(setting.base.server.lr)
    lines = []
    for fraction in dict.fromkeys(row.fraction for row in table):
        row = next(row for row in table if row.fraction == fraction)
        line = f"C={fraction:g}: those selected hold {100 * row.mean_share:.3g} % of the examples"
        if row.max_share - row.min_share < 1e-6:
            lines.append(f"{line} in every round.")
        else:
            line += f" ({100 * row.min_share:.3g} to {100 * row.max_share:.3g} % by round)."
            lines.append(line)
        if row.min_share < 1 - 1e-6:
            lines[-1] += (
                f" all_clients with server lr {lr / row.mean_share:.3g} is selected with {lr:g}; "
                f"selected with {row.mean_share * lr:.3g} is all_clients with {lr:g}."
            )
        else:
            lines[-1] += " The modes coincide."
    return lines


def write(
    folder: Path,
    setting: ResolvedComparison,
    results: Results,
    all_curves: list[Curve],
    table: list[Row],
    exchange: Communication,
    complete: bool,
) -> tuple[str, ...]:
    """Writes the files of `Results.save`, history.csv and compare.png, each whole or not at all."""
    names = results.save(
        folder,
        {
            "kind": "compare",
            "configuration": setting.configuration,
            "seeds": list(range(setting.seeds)),
            "complete": complete,
            "score": setting.base.score,
            **exchange.facts(),
            "rows": [row._asdict() for row in table],
            "identity": identity(setting, table),
        },
    )
    replace_file(folder / HISTORY, lambda file: _write_history(file, setting, results.runs))
    replace_file(
        folder / PICTURE,
        lambda file: figure(setting, all_curves).savefig(file, format="png", dpi=160),
    )
    return PICTURE, HISTORY, *names


def _write_history(file: IO[bytes], setting: ResolvedComparison, runs: Sequence[Run]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(
        ["mode", "fraction", "cohort", "seed", "round", "score", "train_loss"]
        + [*BYTES, "reporting_share"]
    )
    for run in runs:
        fraction, mode = run.configuration["fraction"], run.configuration["mode"]
        cohort = cohort_size(fraction, setting.base.clients)
        column, measures = run.rounds, (setting.base.score, "train_loss")
        has = {name: run.has(name) for name in measures}
        for t in range(run.done):
            writer.writerow(
                [mode, fraction, cohort, run.seed, t + 1]
                + [f"{column[name][t]:.6g}" if has[name][t] else "" for name in measures]
                + [int(column[name][t]) for name in BYTES]
                + [f"{column['reporting_share'][t]:.6g}"]
            )
    text.detach()


def figure(setting: ResolvedComparison, all_curves: list[Curve]) -> Any:
    """A matplotlib Figure: a row a fraction, the score by round and by megabytes sent."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    base = setting.base
    fractions = list(dict.fromkeys(curve.fraction for curve in all_curves))
    styles = line_styles.of_modes([curve.mode for curve in all_curves])
    figure = Figure(figsize=(11, 1.2 + 2.8 * len(fractions)), layout="constrained")
    FigureCanvasAgg(figure)
    target = f"target {setting.target:g}"
    low, high = _limits(base.score, all_curves)
    # A target outside of the axes is not drawn, so the legend does not name it, either.
    is_shown = low <= setting.target <= high
    axes = figure.subplots(len(fractions), 2, squeeze=False, sharey=True, sharex="col")
    for line, fraction in enumerate(fractions):
        curve_of = {curve.mode: curve for curve in all_curves if curve.fraction == fraction}
        for order, mode in enumerate(mode for mode in styles if mode in curve_of):
            mean, below, above = _band(base.score, curve_of[mode])
            megabytes = (curve_of[mode].bytes_down + curve_of[mode].bytes_up).mean(axis=0) / 1e6
            for ax, x in zip(axes[line], (np.arange(1, len(mean) + 1), megabytes), strict=True):
                style = line_styles.with_marker(styles[mode], x)
                canvas.band(ax, x, below, above, style["color"], 0.13)
                marks = (order * len(x) // 24, max(1, len(x) // 6))
                ax.plot(x, mean, **style, label=mode, zorder=2 + order, markevery=marks)
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
    first, last = _megabytes_shown(all_curves, low)
    canvas.scale(axes[-1, 1], "megabytes sent, down and up, all clients together", first, last)
    seeds = all_curves[0].score.shape[0]
    values = base.values()
    figure.suptitle(
        f"FedAvg's aggregation modes on {base.dataset} ({base.partition}): "
        f"K={base.clients}, E={values['epochs']}, B={values['batch_size']}, "
        f"client lr {values['client_lr']:g}, server lr {values['server_lr']:g}\n"
        f"lines: mean over {seeds} seed{'s' if seeds > 1 else ''}; bands: standard deviation",
        fontsize=10,
    )
    handles = {
        label: handle
        for ax in axes[:, 0]
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    shown = [name for name in (*setting.modes, target) if name in handles]  # the table's order
    figure.legend(
        [handles[mode] for mode in shown],
        shown,
        loc="outside lower center",
        ncols=len(shown),
        frameon=False,
        handlelength=4,
    )
    return figure


def _band(score: str, curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean over the seeds, and a standard deviation below and above it."""
    mean = curve.score.mean(axis=0)
    std = curve.score.std(axis=0, ddof=1) if len(curve.score) > 1 else np.zeros_like(mean)
    return mean, *canvas.interval([score], mean, std)


def _limits(score: str, all_curves: list[Curve]) -> tuple[float, float]:
    """Limits of the score's axis: the range of the means, and at most a quarter more for the bands.

    They are (0, 1) where no mean is finite.
    """
    bands = [_band(score, curve) for curve in all_curves]
    ends = canvas.ends([mean for mean, _, _ in bands], lowest=False)
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


def _megabytes_shown(all_curves: list[Curve], lowest: float) -> tuple[float, float]:
    """The range of megabytes over which the curves are above the lower edge of the axes."""
    firsts, lasts = [], []
    for curve in all_curves:
        mean = curve.score.mean(axis=0)
        sent = (curve.bytes_down + curve.bytes_up).mean(axis=0) / 1e6
        shown = np.flatnonzero(np.isfinite(mean) & (mean >= lowest))
        at = int(shown[0]) if shown.size else len(sent) - 1
        # The line rises to its first point above the edge from the point before, so the range
        # begins between the two, in the middle of a logarithmic scale.
        firsts.append(float(np.sqrt(sent[max(0, at - 1)] * sent[at])))
        lasts.append(float(sent[-1]))
    return min(firsts), max(lasts)
