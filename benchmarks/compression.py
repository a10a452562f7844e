"""Accuracy against bytes: `python -m benchmarks.compression` writes records/COMPRESSION.md.

Compressors on the digits, each over three seeds and the same cohorts: the accuracy after R rounds,
and the bytes until a target is reached. The table, compression.json and compression.png are made
of the same runs.
"""

import json
import sys
import time
from typing import Any

import numpy as np

import fedjax_sim as fs
from benchmarks import RECORDS
from benchmarks.run import machine
from fedjax_sim.settings.build import experiment
from fedjax_sim.settings.setting import Setting

SHARED = {
    "dataset": "digits",
    "model": "mlp",
    "clients": 20,
    "fraction": 0.5,
    "epochs": 2,
    "client_lr": 0.1,
    "rounds": 100,
}
SEEDS, TARGET = 3, 0.95
# A name -> the settings that it has beside.
COMPRESSORS: dict[str, dict[str, Any]] = {
    "none": {},
    "top-k 5 %, error feedback": {"compress": "top_k", "share": 0.05, "error_feedback": True},
    "random-k 10 %": {"compress": "random_k", "share": 0.1},
    "4 bits": {"compress": "quantise", "bits": 4},
    "2 bits, rotated": {"compress": "quantise", "bits": 2, "rotated": True},
    "sign, error feedback": {"compress": "sign", "error_feedback": True},
    "DRIVE": {"compress": "drive"},
    "DRIVE, and 8 bits down": {"compress": "drive", "downlink": "quantise", "downlink_bits": 8},
}


def curves() -> dict[str, dict[str, Any]]:
    """Of each compressor the accuracy of every seed and round, and the bytes so far, [seeds, R]."""

    def factory(compressor: str) -> fs.Experiment:
        return experiment(Setting.of({**SHARED, **COMPRESSORS[compressor]}).resolved())

    axis = {"compressor": tuple(COMPRESSORS)}
    results = fs.sweep(factory, axis, range(SEEDS), static=("compressor",))
    of_each: dict[str, dict[str, Any]] = {}
    for name in COMPRESSORS:
        runs = [run for run in results.runs if run.configuration["compressor"] == name]
        of_each[name] = {
            column: np.stack([np.asarray(run.rounds[column], np.float64) for run in runs])
            for column in ("test_accuracy", "bytes_up", "bytes_down")
        }
    return of_each


def to_target(curve: dict[str, Any], column: str) -> str:
    """Megabytes until the accuracy first reaches the target, the mean over seeds, if all do."""
    reached = curve["test_accuracy"] >= TARGET
    if not reached.any(axis=1).all():
        return "never"
    first = reached.argmax(axis=1)
    return f"{np.mean(curve[column][np.arange(len(first)), first]) / 1e6:.3f}"


def figure(of_each: dict[str, dict[str, Any]]) -> Any:
    """A matplotlib Figure: accuracy by megabytes up, and by all that were sent."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for number, (name, curve) in enumerate(of_each.items()):
        mean = np.asarray(curve["test_accuracy"]).mean(axis=0)
        up, down = (np.asarray(curve[x]).mean(axis=0) / 1e6 for x in ("bytes_up", "bytes_down"))
        for ax, sent in zip(axes, (up, up + down), strict=True):
            ax.plot(sent, mean, label=name, color=f"C{number}", linewidth=1.4)
    for ax, words in zip(axes, ("megabytes up", "megabytes up and down"), strict=True):
        ax.set_xscale("log")
        ax.set_xlabel(f"{words}, all clients together")
        ax.axhline(TARGET, color="0.35", linestyle=":", linewidth=1.2)
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"test accuracy, mean of {SEEDS} seeds")
    axes[0].set_ylim(0.5, 1.0)
    axes[1].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def table(of_each: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| compressor | bytes up a client and round | accuracy | MB up to target | "
        "MB both ways to target |",
        "|---|---|---|---|---|",
    ]
    for name, curve in of_each.items():
        last = np.asarray(curve["test_accuracy"])[:, -1]
        resolved = Setting.of({**SHARED, **COMPRESSORS[name]}).resolved()
        curve = {**curve, "both": curve["bytes_up"] + curve["bytes_down"]}
        up = experiment(resolved).communication().up
        lines.append(
            f"| {name} | {up:,} | {100 * last.mean():.1f} ± {100 * last.std(ddof=1):.1f} % | "
            f"{to_target(curve, 'bytes_up')} | {to_target(curve, 'both')} |"
        )
    return lines


def main() -> None:
    numbers = RECORDS / "compression.json"
    if "--draw" in sys.argv:
        record = json.loads(numbers.read_text())
    else:
        start = time.perf_counter()
        of_each = {
            name: {column: np.round(values, 5).tolist() for column, values in curve.items()}
            for name, curve in curves().items()
        }
        facts = ", ".join(f"{k} {v}" for k, v in machine().items())
        record = {
            "machine": f"{facts}; {time.perf_counter() - start:.0f} s",
            "of_each": of_each,
        }
        numbers.write_text(json.dumps(record) + "\n")
    of_each = {
        name: {column: np.array(values) for column, values in curve.items()}
        for name, curve in record["of_each"].items()
    }
    values = ", ".join(f"{name} {value}" for name, value in SHARED.items())
    lines = [
        "# Accuracy against bytes",
        "",
        f"`python -m benchmarks.compression` (`--draw` makes this page and its picture again from "
        f"compression.json): {values}; {SEEDS} seeds, mean ± sample standard deviation. The "
        f"target is {TARGET:g}; what travels down is the model of 32-bit floats but where it says "
        "so.",
        "",
        record["machine"] + ".",
        "",
        *table(of_each),
        "",
        "![accuracy against bytes](compression.png)",
    ]
    (RECORDS / "COMPRESSION.md").write_text("\n".join(lines) + "\n")
    figure(of_each).savefig(RECORDS / "compression.png", dpi=110)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
