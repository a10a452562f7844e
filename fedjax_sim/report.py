"""Tables, files and pictures of a comparison."""

import csv
import io
import json
import math
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from fedjax_sim import __version__
from fedjax_sim.comparison import Chunk, Setting, cohort_size, rounds_to_target
from fedjax_sim.traffic import Communication

FILES = ("summary.json", "history.csv", "compare.png")


class Curve(NamedTuple):
    """All that was computed of one mode and fraction; arrays [seeds, rounds]."""

    mode: str
    fraction: float
    score: np.ndarray
    train_loss: np.ndarray
    bytes_down: np.ndarray  # Int64, cumulative
    bytes_up: np.ndarray  # Int64, cumulative
    share: np.ndarray  # n_V / n
    nonfinite: np.ndarray  # Int64


class Row(NamedTuple):
    """One line of the table: a mode and a fraction, over the seeds."""

    mode: str
    fraction: float
    cohort: int  # m
    seeds: int
    rounds: int
    score_mean: float  # after the last round
    score_std: float | None  # sample standard deviation over seeds; None for one seed
    diverged: int  # seeds with an update that held a NaN or an infinity
    target_reached: int  # seeds that reached the target
    rounds_to_target: float | None  # mean over the seeds that did
    megabytes_down: float  # 10^6 bytes, the whole run, mean over seeds
    megabytes_up: float
    megabytes_up_all_send: float  # the reading in which every client sends in every round
    mean_share: float  # n_V / n
    min_share: float
    max_share: float


def curves(chunks: list[Chunk], exchange: Communication) -> list[Curve]:
    """Joins chunks to curves, in the order in which they came."""
    cells: dict[tuple[str, float], list[Chunk]] = {}
    for chunk in chunks:
        cells.setdefault((chunk.mode, chunk.fraction), []).append(chunk)

    def join(parts: list[Chunk], name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts], axis=1)

    return [
        Curve(
            mode=mode,
            fraction=fraction,
            score=join(parts, "score"),
            train_loss=join(parts, "train_loss"),
            bytes_down=np.cumsum(join(parts, "receivers"), axis=1) * exchange.down,
            bytes_up=np.cumsum(join(parts, "senders"), axis=1) * exchange.up,
            share=join(parts, "share"),
            nonfinite=join(parts, "nonfinite"),
        )
        for (mode, fraction), parts in cells.items()
    ]


def rows(setting: Setting, found: list[Curve], exchange: Communication) -> list[Row]:
    """The table of a resolved setting."""
    assert setting.clients is not None
    assert setting.target is not None
    table = []
    for curve in found:
        seeds, rounds = curve.score.shape
        last = curve.score[:, -1]
        reached = [rounds_to_target(score, setting.target) for score in curve.score]
        times = [time for time in reached if time is not None]
        everyone_up = rounds * setting.clients * exchange.up
        table.append(
            Row(
                mode=curve.mode,
                fraction=curve.fraction,
                cohort=cohort_size(curve.fraction, setting.clients),
                seeds=seeds,
                rounds=rounds,
                score_mean=float(last.mean()),
                score_std=float(last.std(ddof=1)) if seeds > 1 else None,
                diverged=int((curve.nonfinite.sum(axis=1) > 0).sum()),
                target_reached=len(times),
                rounds_to_target=float(np.mean(times)) if times else None,
                megabytes_down=float(curve.bytes_down[:, -1].mean()) / 1e6,
                megabytes_up=float(curve.bytes_up[:, -1].mean()) / 1e6,
                megabytes_up_all_send=everyone_up / 1e6,
                mean_share=float(curve.share.mean()),
                min_share=float(curve.share.min()),
                max_share=float(curve.share.max()),
            )
        )
    return table


def identity(setting: Setting, table: list[Row]) -> list[str]:
    """Which server learning rates make the modes equal, for each fraction.

    `all_clients = w + (n_V/n) (selected - w)`: exactly where n_V/n is the same in every
    round, else up to how it varies.
    """
    lr = setting.server_lr
    lines = []
    for fraction in dict.fromkeys(row.fraction for row in table):
        row = next(row for row in table if row.fraction == fraction)
        held = f"C={fraction:g}: those selected hold {100 * row.mean_share:.3g} % of the examples"
        if row.max_share - row.min_share < 1e-6:
            lines.append(f"{held} in every round.")
        else:
            held += f" ({100 * row.min_share:.3g} to {100 * row.max_share:.3g} % by round)."
            lines.append(held)
        if row.min_share < 1 - 1e-6:
            lines[-1] += (
                f" all_clients with server lr {lr / row.mean_share:.3g} is selected with {lr:g}; "
                f"selected with {row.mean_share * lr:.3g} is all_clients with {lr:g}."
            )
        else:
            lines[-1] += " The modes coincide."
    return lines


def versions() -> dict[str, str]:
    """What made a result: packages, Python, machine."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    device = jax.devices()[0]
    return {
        "fedjax-sim": __version__,
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": f"{device.platform} ({device.device_kind})",
    }


def check_writable(folder: Path, overwrite: bool) -> None:
    """Makes the folder and proves that files can be written, before anything is trained.

    Raises:
      ValueError: if it cannot be written, or holds results and overwrite is False.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written: {error.strerror}") from error
    there = [name for name in FILES if (folder / name).exists()]
    if there and not overwrite:
        raise ValueError(
            f"--out {folder} holds results already ({', '.join(there)}); name another folder, or "
            "give --overwrite"
        )


def write(
    folder: Path,
    setting: Setting,
    score_name: str,
    found: list[Curve],
    table: list[Row],
    exchange: Communication,
    complete: bool,
) -> tuple[str, ...]:
    """Writes summary.json, history.csv and compare.png, each whole or not at all."""
    summary = {
        "configuration": asdict(setting),
        "seeds": list(range(setting.seeds)),
        "complete": complete,
        "score": score_name,
        "bytes": exchange._asdict(),
        "rows": [row._asdict() for row in table],
        "identity": identity(setting, table),
        "versions": versions(),
    }
    _replace(
        folder / "summary.json",
        lambda file: file.write((json.dumps(_no_nan(summary), indent=2) + "\n").encode()),
    )
    _replace(folder / "history.csv", lambda file: _write_history(file, setting, found))
    _replace(folder / "compare.png", lambda file: _plot(file, setting, score_name, found))
    return FILES


def _no_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _no_nan(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_no_nan(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, save: Callable[[IO[bytes]], Any]) -> None:
    """Writes beside the path and moves it there: a reader never sees half a file."""
    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("wb") as file:
            save(file)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _write_history(file: IO[bytes], setting: Setting, found: list[Curve]) -> None:
    assert setting.clients is not None
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(
        ["mode", "fraction", "cohort", "seed", "round", "score", "train_loss"]
        + ["bytes_down", "bytes_up", "reporting_share"]
    )
    for curve in found:
        cohort = cohort_size(curve.fraction, setting.clients)
        for seed, round in np.ndindex(curve.score.shape):
            writer.writerow(
                [curve.mode, curve.fraction, cohort, seed, round + 1]
                + [f"{x[seed, round]:.6g}" for x in (curve.score, curve.train_loss)]
                + [int(x[seed, round]) for x in (curve.bytes_down, curve.bytes_up)]
                + [f"{curve.share[seed, round]:.6g}"]
            )
    text.detach()


# Widest and palest first, so that curves that coincide all show, in greyscale too.
_STYLES: dict[str, dict[str, Any]] = {
    "selected": {"color": "#9ecae1", "linestyle": "-", "linewidth": 6.0},
    "unbiased": {"color": "#756bb1", "linestyle": "-", "linewidth": 2.6, "marker": "D"},
    "uniform": {"color": "#00441b", "linestyle": (0, (1, 1.6)), "linewidth": 1.8, "marker": "^"},
    "all_clients": {"color": "#b30000", "linestyle": (0, (6, 2)), "linewidth": 1.8, "marker": "s"},
}


def _plot(file: IO[bytes], setting: Setting, score_name: str, found: list[Curve]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fractions = list(dict.fromkeys(curve.fraction for curve in found))
    modes = [mode for mode in _STYLES if any(curve.mode == mode for curve in found)]
    figure = Figure(figsize=(11, 1.2 + 2.8 * len(fractions)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(fractions), 2, squeeze=False, sharey=True, sharex="col")
    for line, fraction in enumerate(fractions):
        here = {curve.mode: curve for curve in found if curve.fraction == fraction}
        for order, mode in enumerate(mode for mode in modes if mode in here):
            score = here[mode].score
            mean = score.mean(axis=0)
            std = score.std(axis=0, ddof=1) if len(score) > 1 else np.zeros_like(mean)
            megabytes = (here[mode].bytes_down + here[mode].bytes_up).mean(axis=0) / 1e6
            for ax, x in zip(axes[line], (np.arange(1, len(mean) + 1), megabytes), strict=True):
                ax.fill_between(
                    x, mean - std, mean + std,
                    color=_STYLES[mode]["color"], alpha=0.13, linewidth=0, zorder=1,
                )  # fmt: skip
                marks = (order * len(x) // 24, max(1, len(x) // 6))
                ax.plot(x, mean, **_STYLES[mode], label=mode, zorder=2 + order, markevery=marks)
        cohort = cohort_size(fraction, setting.clients or 1)
        axes[line, 0].set_ylabel(f"C = {fraction:g} (m = {cohort})\ntest {score_name}")
        for ax in axes[line]:
            ax.axhline(setting.target, color="0.35", linewidth=0.9, linestyle=":", zorder=0)
            ax.grid(alpha=0.25, linewidth=0.6)
            ax.spines[["top", "right"]].set_visible(False)
        label = axes[line, 1].annotate(
            f"target {setting.target:g}", (0.01, setting.target),
            xycoords=("axes fraction", "data"), va="bottom", fontsize=8, color="0.3",
            annotation_clip=True,
        )  # fmt: skip
        label.set_in_layout(False)  # it is outside while the target is far
    # Limits are set, not found: a curve that diverged has nothing to find them from.
    _limit(axes[0, 0], found)
    megabytes = [(curve.bytes_down + curve.bytes_up).mean(axis=0) / 1e6 for curve in found]
    axes[0, 0].set_xlim(0, 1.02 * max(len(x) for x in megabytes))
    axes[0, 1].set_xlim(0.8 * min(x[0] for x in megabytes), 1.25 * max(x[-1] for x in megabytes))
    axes[-1, 0].set_xlabel("round")
    axes[-1, 1].set_xlabel("megabytes sent, down and up, all clients together (log scale)")
    axes[-1, 1].set_xscale("log")
    axes[-1, 0].xaxis.get_major_locator().set_params(integer=True)
    batch = "full" if setting.batch_size is None else setting.batch_size
    seeds = found[0].score.shape[0]
    figure.suptitle(
        f"FedAvg's aggregation modes on {setting.dataset} ({setting.partition}): "
        f"K={setting.clients}, E={setting.epochs}, B={batch}, client lr {setting.client_lr:g}, "
        f"server lr {setting.server_lr:g}\n"
        f"lines: mean over {seeds} seed{'s' if seeds > 1 else ''}; bands: standard deviation",
        fontsize=10,
    )
    handles = {
        label: handle
        for ax in axes[:, 0]
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles),
        frameon=False, handlelength=4,
    )  # fmt: skip
    figure.savefig(file, format="png", dpi=160)


def _limit(ax: Any, found: list[Curve]) -> None:
    """The scores' range, without the first rounds' worst and without what diverged."""
    means = np.concatenate([curve.score.mean(axis=0) for curve in found])
    means = means[np.isfinite(means)]
    if not means.size:
        return
    low, high = np.quantile(means, 0.03), means.max()
    if high > low:
        ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
