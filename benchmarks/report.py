"""What benchmarks.run measured, as Markdown and as a picture."""

from pathlib import Path
from typing import Any

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
        "\n## Every implementation and setting",
        table(results),
        "\n## Ours by lanes, on one device",
        lanes(results),
    ]
    return "\n".join(parts).rstrip() + "\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """Microseconds a client-step by job, the floor as a line under each group."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = ["ours", "pytorch", "fedjax", "fedlab", "pfl"]
    colors = ["#0b3d91", "#e4572e", "#2e933c", "#f3a712", "#8a8a8a"]
    figure, axes = plt.subplots(figsize=(max(7.0, 1.25 * len(results) + 2), 4.5))
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        label: str | None = name
        for j, result in enumerate(results.values()):
            timed = [
                e["us"] for e in result["entries"] if e["implementation"] == name and "us" in e
            ]
            if timed:
                axes.bar(j + (i - 2) * 0.16, min(timed), 0.15, color=color, label=label)
                label = None
    for j, result in enumerate(results.values()):
        label = "floor" if j == 0 else None
        axes.hlines(result["floor_us"], j - 0.42, j + 0.42, "black", linewidth=1.5, label=label)
    axes.set_yscale("log")
    axes.set_xticks(range(len(results)), results, rotation=20, ha="right")
    axes.set_ylabel("us a client-step, best setting")
    axes.set_title("Time of a useful client-step, lower is better")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(ncols=6, fontsize=8, loc="upper left")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 3)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
