"""The page SCALE.md, from what records/scale.json holds."""

from collections.abc import Callable, Iterator
from typing import Any

Rows = list[dict[str, Any]]


def _clients(rows: Rows) -> Iterator[str]:
    numbers = list(dict.fromkeys(row["clients"] for row in rows))
    yield (
        "A round of 100 clients, logistic regression on 16 numbers, 5 to 15 examples a client, "
        "B = 10, `packed(1)`, behind the first chunk; from a disk in windows of 5,000 rows. Wall "
        "clock, CPU of all threads, and the most memory that was resident, mapped pages included, "
        "above the import. SCAFFOLD's clients keep 170 numbers each."
    )
    yield ""
    yield f"| |{''.join(f' K = {n:,} |' for n in numbers)} slowest / fastest K |"
    yield f"|---|{'---|' * len(numbers)}---|"
    for algorithm, kind in dict.fromkeys((row["algorithm"], row["kind"]) for row in rows):
        of_kind = [row for row in rows if (row["algorithm"], row["kind"]) == (algorithm, kind)]
        cells = [
            f"{1000 * row['seconds']:.1f} ms ({1000 * row['cpu']:.1f} of CPU), "
            f"{row['bytes'] / 1e6:,.0f} MB"
            for row in of_kind
        ]
        times = [row["seconds"] for row in of_kind]
        place = "in memory" if kind == "memory" else "from a disk"
        ratio = f"{max(times) / min(times):.2f}"
        yield f"| {algorithm}, {place} | {' | '.join(cells)} | {ratio} |"
    wrote = {row["clients"]: row["wrote"] for row in rows}
    yield f"| writing the store |{''.join(f' {wrote[n]:.0f} s |' for n in numbers)} |"


def _data(rows: Rows) -> Iterator[str]:
    fastest = rows[0]["seconds"]
    yield (
        "A 2NN of 784-200-200-10, clients of 600 examples, 20 in a round, B = 10, E = 1, behind "
        "the first chunk. *Cold*: the files were dropped from the page cache. The rows from the "
        "disk are of more data than the row in memory, whose rounds cost the same."
    )
    yield ""
    yield (
        "| | GB | written in | ms a round | of CPU | of the speed in memory | memory | "
        "page faults read from the disk, a round |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield (
            f"| {row['name']} | {row['gigabytes']:.1f} | {row['wrote']:.0f} s | "
            f"{1000 * row['seconds']:.0f} | {1000 * row['cpu']:.0f} | "
            f"{fastest / row['seconds']:.2f} | {row['bytes'] / 1e9:.2f} GB | {row['faults']:.1f} |"
        )


def _shards(rows: Rows) -> Iterator[str]:
    yield (
        "`fedjax-sim sweep --shard I/N`: learning rates of a 2NN on the digits, from "
        f"{rows[0]['rates'][0]:g} to {rows[0]['rates'][1]:g}, each process on one core, from the "
        "first start to the last end, with the programs in a cache. What is killed is killed by "
        "SIGKILL at random moments; the others take over what it had claimed. The rates are those "
        "at which training is stable: above, it is chaotic, and a batch of another width, which "
        "rounds otherwise, ends elsewhere."
    )
    yield ""
    yield (
        "| processes | killed | seconds | faster by | configurations, each once | largest "
        "difference of an accuracy from one process's |"
    )
    yield "|---|---|---|---|---|---|"
    for row in rows:
        once = f"{row['configurations']}, {'yes' if row['once'] else 'NO'}"
        yield (
            f"| {row['processes']} | {row['killed']} | {row['seconds']:.1f} | "
            f"{rows[0]['seconds'] / row['seconds']:.2f} | {once} | {row['apart']:.1e} |"
        )


_PARTS: dict[str, tuple[str, Callable[[Rows], Iterator[str]]]] = {
    "clients": ("Many clients", _clients),
    "data": ("Data beyond memory", _data),
    "shards": ("A sweep shared by processes", _shards),
}


def page(record: dict[str, Any]) -> str:
    """All parts that were run, each with the machine that it was run on."""
    lines = [
        "# Clients, data and sweeps beyond one process",
        "",
        "`python -m benchmarks.scale` makes this page, a part by its name: "
        f"{', '.join(f'`{name}`' for name in _PARTS)}. A row is the fastest of some repetitions, "
        "but for the cold one.",
    ]
    for name, part in record.items():
        heading, of_rows = _PARTS[name]
        of_machine = ", ".join(f"{key} {value}" for key, value in part["machine"].items())
        lines += ["", f"## {heading}", "", *of_rows(part["rows"]), ""]
        lines += [
            f"`{name}`: {of_machine}, {part['repeats']} repetitions, "
            f"load at its start {part['load']:.1f}."
        ]
    return "\n".join(lines) + "\n"
