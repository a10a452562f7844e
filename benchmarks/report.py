"""What benchmarks.run measured, as Markdown and as a picture."""

from pathlib import Path
from typing import Any

from benchmarks.jobs import JOBS
from fedjax_sim.core.files import save_png
from fedjax_sim.plots import canvas, line_styles

HEAD = """# Ours and the peers

`python -m benchmarks.run --lanes` makes this page. Each implementation has its own process; all
are warm, repetitions interleaved, medians. In brackets the fastest and the slowest repetition.

A client-step is one local step of one client on one block of B examples; only steps that the
algorithm asks for are counted. The *floor* of a step is its products' flops at the matmul peak
that was measured in the same run (or, where a model's weights and gradient do not fit the cache,
8 bytes a parameter at the measured bandwidth); the share of the floor is that time over the time
taken. *Useful* is the share of the lanes' steps that some client needed. Every implementation was
found to end, without shuffling, in the same weights as ours after two rounds on fewer examples
(*apart*: distance over the distance moved). Start-up is from the start of the process to the end
of the first round, data made and programs compiled.
"""


# Each was measured beside what is there, on a CPU.
TRIED = """## Tried, and not faster

- `d W^T`, the gradient by the inputs, and `x W` of few rows in four forms each: as XLA has them.
- x^T d of few rows as a sum of outer products that XLA joins with what makes d, which it then makes
  anew for each row of the kernel. What is there instead: [decisions](../../docs/decisions.md).
- A convolution as a product of patches: slower than XLA's kernel for channels-last images, which is
  at a core's matmul peak ([LAYERS.md](LAYERS.md), which has the parts of a step of the CNN and of
  a layer of LSTM, and so where the rest of their time goes).
- Configurations of the 2NN side by side ([EXPERIMENTS.md](EXPERIMENTS.md)).
- To compile sooner: XLA's flags (its older emitters are sooner, and their rounds slower), a few
  rounds of a permutation in one turn of its loop, powers of two from their bits. Shuffles as loops
  inside training compile sooner on a CPU, and launch more on a GPU: not taken.
"""


def best_of(result: dict[str, Any], ours: bool) -> dict[str, Any] | None:
    timed = [e for e in result["entries"] if "us" in e and (e["implementation"] == "ours") == ours]
    return min(timed, key=lambda e: e["us"], default=None)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(x: float | None, digits: int = 3) -> str:
    if x is None:
        return ""
    return f"{x:,.0f}" if x >= 10**digits else f"{x:.{digits}g}"


def _head(cells: list[str]) -> list[str]:
    return [_row(cells), _row(["---"] * len(cells))]


def _cells(result: dict[str, Any], e: dict[str, Any]) -> list[str]:
    floor = result["floor_us"]
    return [
        _number(e["us"]),
        f"{_number(e['us_range'][0])} - {_number(e['us_range'][1])}",
        _number(e["us"] * result["steps_per_round"] / 1e6),
        f"{floor / e['us']:.1%}",
        f"{e['useful']:.0%}" if "useful" in e else "",
    ]


def table(results: dict[str, Any]) -> str:
    """All implementations of each job, at every setting that was timed."""
    lines = []
    for name, result in results.items():
        lines += [
            "",
            f"**{name}**: {result['steps_per_round']:,.0f} client-steps a round"
            + (f" of all {result['sweep']} configurations" if result["sweep"] > 1 else "")
            + f", floor {_number(result['floor_us'])} us a step",
            "",
            *_head(
                [
                    "implementation",
                    "us / client-step",
                    "fastest - slowest",
                    "s / round",
                    "share of the floor",
                    "useful",
                    "ours is faster by",
                    "compile s",
                    "start-up s",
                    "peak MB",
                    "apart",
                ]
            ),
        ]
        ours = best_of(result, True)
        for e in result["entries"]:
            label = f"{e['implementation']} ({e['setting']})"
            if "us" not in e:
                lines.append(_row([label, f"not run: {e.get('error', '')}"]))
                continue
            faster = f"{e['us'] / ours['us']:.2f}" if ours else ""
            lines.append(
                _row(
                    [
                        label,
                        *_cells(result, e),
                        "" if e["implementation"] == "ours" else faster,
                        _number(e.get("compile")),
                        _number(e["first_round"]),
                        f"{e['peak_memory'] / 2**20:,.0f}",
                        f"{e['apart']:.0e}",
                    ]
                )
            )
    return "\n".join(lines)


def summary(results: dict[str, Any]) -> str:
    """For each job ours, its fastest peer, and both shares of the floor."""
    lines = _head(
        [
            "job",
            "ours, us / client-step",
            "share of the floor",
            "fastest peer",
            "us / client-step",
            "share of the floor",
            "ours is faster by",
            "compilation included",
        ]
    )
    for name, result in results.items():
        ours, peer = best_of(result, True), best_of(result, False)
        floor = result["floor_us"]
        if ours is None:
            lines.append(_row([name, "not run"]))
            continue
        cells = [name, _number(ours["us"]), f"{floor / ours['us']:.1%}"]
        if peer is not None:
            total = result["steps_per_round"] * result["rounds"] / 1e6
            cold = ours["us"] * total + ours["compile"]
            cells += [
                f"{peer['implementation']} ({peer['setting']})",
                _number(peer["us"]),
                f"{floor / peer['us']:.1%}",
                f"{peer['us'] / ours['us']:.2f}",
                f"{peer['us'] * total / cold:.2f}" if result["sweep"] > 1 else "",
            ]
        lines.append(_row(cells))
    return "\n".join(lines)


def lanes(results: dict[str, Any]) -> str:
    """Ours on one device, by lanes."""
    lines = []
    for name, result in results.items():
        if "lanes" not in result:
            continue
        lines += [
            "",
            f"**{name}**",
            "",
            *_head(
                [
                    "execution",
                    "us / client-step",
                    "fastest - slowest",
                    "s / round",
                    "share of the floor",
                    "useful",
                    "longest-first could",
                    "compile s",
                ]
            ),
        ]
        for e in result["lanes"]:
            if "us" in e:
                could = f"{e['best_useful']:.0%}" if "best_useful" in e else ""
                cells = [e["setting"], *_cells(result, e), could, _number(e["compile"])]
                lines.append(_row(cells))
            else:
                lines.append(_row([e["setting"], f"not run: {e.get('error', '')}"]))
    return "\n".join(lines)


def _machines(results: dict[str, Any]) -> str:
    """Where each job was run, jobs of one machine and commit together."""
    groups: dict[tuple, list[str]] = {}
    for name, result in results.items():
        groups.setdefault(tuple(result["machine"].items()), []).append(name)
    lines = []
    for items, names in groups.items():
        lines.append(f"- {', '.join(names)}: " + ", ".join(f"{k} {v}" for k, v in items) + ".")
    versions: dict[str, str] = {}
    for result in results.values():
        for e in result["entries"]:
            versions |= e.get("versions", {})
    lines.append("- Versions: " + ", ".join(f"{k} {v}" for k, v in sorted(versions.items())) + ".")
    repeats = sorted({str(r["repeats"]) for r in results.values()})
    lines.append(f"- Medians of {' or '.join(repeats)} repetitions (`--repeats`).")
    peaks = [r["ceilings"]["matmul"] / 1e9 for r in results.values()]
    rates = [r["ceilings"]["bandwidth"] / 1e9 for r in results.values()]
    lines.append(
        f"- Measured by job: matmul peak {min(peaks):.0f} to {max(peaks):.0f} Gflop/s, "
        f"bandwidth {min(rates):.0f} to {max(rates):.0f} GB/s."
    )
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    parts = [
        HEAD,
        summary(results),
        "\n![us a client-step](results.png)\n",
        "A peer's sweep is some of the learning rates one by one, scaled to all; its compilation "
        "is never counted.\nA thread setting much slower than the peer's best was timed once.\n",
        _machines(results),
        "",
        TRIED,
        "## Every implementation and setting",
        table(results),
        "\n## Ours by lanes, on one device",
        lanes(results),
    ]
    return "\n".join(parts).rstrip() + "\n"


NAMES = ("ours", "pytorch", "fedjax", "fedlab", "pfl")


def plotted(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What the picture shows: job -> implementation, or floor -> microseconds a client-step."""
    numbers: dict[str, dict[str, float]] = {}
    for job, result in results.items():
        best: dict[str, float] = {"floor": result["floor_us"]}
        for entry in result["entries"]:
            if "us" in entry:
                name = entry["implementation"]
                best[name] = min(entry["us"], best.get(name, float("inf")))
        numbers[job] = best
    return numbers


def missing(job: str, result: dict[str, Any], shown: dict[str, float]) -> str:
    """Which implementations have no point, and why."""
    errors = {e["implementation"]: e["error"] for e in result["entries"] if "error" in e}
    asked_peers = JOBS[job].peers if job in JOBS else ()
    failed = [name for name in NAMES if name not in shown and name in errors]
    unasked = [name for name in NAMES[1:] if name not in (*shown, *failed, *asked_peers)]
    parts = [f"{name}: {errors[name].splitlines()[0][:40]}" for name in failed]
    parts += [f"not asked of {' and '.join(unasked)}"] if unasked else []
    return "; ".join(parts)


def plot(results: dict[str, Any], path: Path) -> None:
    """Microseconds a client-step by job: a point each, on a scale that needs no base."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    looks = dict(zip(NAMES, line_styles.STYLES, strict=False))
    numbers = plotted(results)
    figure = Figure(figsize=(8.5, 1.4 + 0.42 * len(results)), facecolor="white")
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    canvas.dress(axes)
    for row, (job, shown) in enumerate(numbers.items()):
        axes.plot([shown["floor"]] * 2, [row - 0.3, row + 0.3], color=canvas.INK, linewidth=2)
        for i, name in enumerate(NAMES):  # one below the other: some are as fast
            if name in shown:
                look = {key: looks[name][key] for key in ("color", "marker")}
                axes.plot(shown[name], row + 0.13 * (i - 2), markersize=7, **look)
        says = missing(job, results[job], shown)
        if says:
            axes.annotate(
                says,
                (1, row + 0.2),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=7.5,
                color="0.35",
            )
    for name in NAMES:
        look = {key: looks[name][key] for key in ("color", "marker")}
        axes.plot([], [], linestyle="none", markersize=7, label=name, **look)
    axes.plot([], [], color=canvas.INK, linewidth=2, label="floor")
    values = [value for shown in numbers.values() for value in shown.values()]
    canvas.scale(axes, "us a client-step, best setting (lower is better)", min(values), max(values))
    axes.set_yticks(range(len(numbers)), [*numbers])
    axes.set_ylim(len(numbers) - 0.5, -0.5)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    save_png(figure, path, numbers, 130)
