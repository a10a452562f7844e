"""Rounds of 100 clients of K = 10^3 to 10^6, in memory and from a disk; and data beyond memory.

    python -m benchmarks.scale clients [--numbers 1000,1000000] [--rounds 200] [--repeats 2]
    python -m benchmarks.scale data [--gigabytes 20] [--rounds 60] [--folder FOLDER]

`clients` has logistic regressions on 5 to 15 examples of 16 numbers for each client, FedAvg and
SCAFFOLD, whose clients keep 170 numbers each. `data` has a 2NN of 784-200-200-10 on clients of 600
examples, 20 of them in a round; the files are dropped from the page cache before the first round.
Every row is a process of its own, the faster one of `--repeats`; times are those behind the first
chunks, in which programs load; memory is the most that was resident, mapped pages included, above
what was resident when the package was imported. Both print a table in Markdown.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import fedjax_sim as fs
from fedjax_sim.host.driver import Progress

_FEATURES, _CLASSES = 16, 10
_IMAGE, _CLIENT = 784, 600  # numbers of an example, and examples of a client, of `data`
_KINDS = ("memory", "disk")


def small_clients(number: int) -> Iterator[dict[str, np.ndarray]]:
    """Clients of 5 to 15 examples, one at a time."""
    rng = np.random.default_rng(0)
    for _ in range(number):
        size = int(rng.integers(5, 16))
        yield {
            "x": rng.standard_normal((size, _FEATURES), np.float32),
            "y": rng.integers(0, _CLASSES, size, dtype=np.int32),
        }


def large_clients(number: int) -> Iterator[dict[str, np.ndarray]]:
    """Clients of 600 images: parts of one block of random numbers, each from a place of its own."""
    rng = np.random.default_rng(0)
    block = rng.random((8 * _CLIENT, _IMAGE), np.float32)
    for _ in range(number):
        start = int(rng.integers(0, 7 * _CLIENT))
        labels = rng.integers(0, _CLASSES, _CLIENT, dtype=np.int32)
        yield {"x": block[start : start + _CLIENT], "y": labels}


def experiment(data: Any, algorithm: str, cohort: int, rounds: int) -> fs.Experiment:
    """FedAvg or SCAFFOLD on what the data hold."""
    is_small = jax.tree.leaves(data.spec if isinstance(data, fs.data.Source) else data.examples)
    is_small = is_small[0].shape[-1] == _FEATURES
    if is_small:
        model = fs.models.logistic_regression((_FEATURES,), num_classes=_CLASSES)
    else:
        model = fs.models.mlp((_IMAGE,), (200, 200), _CLASSES)
    loss_fn, local = fs.models.cross_entropy(model.apply), fs.LocalTraining(1, 10)
    if algorithm == "scaffold":
        chosen = fs.scaffold(loss_fn, 0.05, local)
    else:
        chosen = fs.fedavg(loss_fn, optax.sgd(0.05), local)
    sampler = fs.sampling.uniform(cohort)
    return fs.Experiment(
        chosen, model.init, data, sampler, rounds, execution=fs.execution.packed(1)
    )


def resident() -> int:
    """The most bytes that were resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def row(options: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process: of a round seconds, of CPU, too, and major page faults; memory."""
    store = fs.data.FederatedStore.open(options.folder)
    before = resident()
    data = store if options.kind == "disk" else store.in_memory
    moments: list[tuple[int, float, float, int]] = []

    def tell(progress: Progress) -> None:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        moments.append((progress.round, time.perf_counter(), time.process_time(), faults))

    given = experiment(data, options.algorithm, options.cohort, options.rounds)
    keeps = options.kind == "disk" and options.algorithm == "scaffold"
    with tempfile.TemporaryDirectory(dir=Path(options.folder).parent) as out:
        run = fs.simulate(
            given,
            key=0,
            out=out if keeps else None,
            client_states="disk" if keeps else "memory",
            capacity=options.capacity,
            on_progress=tell,
        )
        written = run.state.clients.num_written if keeps else 0
    (first, *began), (last, *ended) = moments[1], moments[-1]
    seconds, cpu, faults = ((b - a) / (last - first) for a, b in zip(began, ended, strict=True))
    return {
        "seconds": seconds,
        "cpu": cpu,
        "bytes": resident() - before,
        "faults": faults,
        "written": written,
        "model": float(sum(np.abs(x).sum() for x in jax.tree.leaves(run.state.params))),
    }


def measured(folder: Path, repeats: int, **options: Any) -> dict[str, Any]:
    """The fastest of some processes that each measure a row."""
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    command = [sys.executable, "-m", "benchmarks.scale", "row", f"--folder={folder}", *words]
    rows = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return min(rows, key=lambda x: x["seconds"])


def written(folder: Path, clients: Iterator[Any]) -> fs.data.FederatedStore:
    """A store, and a line of how long it took."""
    start = time.perf_counter()
    store = fs.data.FederatedStore.write(folder, clients)
    gigabytes = sum(x.stat().st_size for x in folder.iterdir()) / 1e9
    seconds = time.perf_counter() - start
    print(f"wrote {store} ({gigabytes:.2f} GB) in {seconds:.0f} s", file=sys.stderr)
    return store


def clients(options: argparse.Namespace) -> None:
    """The table of time and memory by K."""
    numbers = [int(number) for number in options.numbers.split(",")]
    head = "".join(f" | K = {number:,}" for number in numbers)
    lines = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for number in numbers:
            store = Path(folder) / str(number)
            written(store, small_clients(number))
            for algorithm in ("fedavg", "scaffold"):
                for kind in _KINDS:
                    x = measured(
                        store,
                        options.repeats,
                        algorithm=algorithm,
                        kind=kind,
                        cohort=100,
                        rounds=options.rounds,
                        capacity=20_000 if kind == "disk" else None,
                    )
                    cell = f"{1000 * x['seconds']:.1f} ms ({1000 * x['cpu']:.1f} of CPU), "
                    cell += f"{x['bytes'] / 1e6:,.0f} MB"
                    lines.setdefault((algorithm, kind), []).append(cell)
                    print(number, algorithm, kind, x, file=sys.stderr)
    print(f"| a round, memory{head} |\n|{'---|' * (len(numbers) + 1)}")
    for (algorithm, kind), cells in lines.items():
        print(f"| {algorithm}, {kind} | {' | '.join(cells)} |")


def data(options: argparse.Namespace) -> None:
    """The table of a federation beyond memory, beside one of a tenth of it in memory."""
    number = max(200, int(options.gigabytes * 1e9 / (_CLIENT * (_IMAGE + 1) * 4)))
    given = {"algorithm": "fedavg", "cohort": 20, "rounds": options.rounds}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        part, whole = Path(folder) / "part", Path(folder) / "whole"
        written(part, large_clients(number // 10))
        rows = {"in memory, a tenth": measured(part, options.repeats, kind="memory", **given)}
        written(whole, large_clients(number))
        for name, repeats in (("from the disk, cold", 1), ("from the disk", options.repeats)):
            if "cold" in name:
                drop(whole)
            rows[name] = measured(whole, repeats, kind="disk", capacity=options.capacity, **given)
    fastest = rows["in memory, a tenth"]["seconds"]
    print("| | ms a round | of CPU | of the speed in memory | memory | major faults a round |")
    print("|---|---|---|---|---|---|")
    for name, x in rows.items():
        print(
            f"| {name} | {1000 * x['seconds']:.1f} | {1000 * x['cpu']:.1f} | "
            f"{fastest / x['seconds']:.2f} | "
            f"{x['bytes'] / 1e6:,.0f} MB | {x['faults']:.0f} |"
        )


def drop(folder: Path) -> None:
    """Drops the files from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["clients", "data", "row"])
    parser.add_argument("--numbers", default="1000,10000,100000,1000000", help="of clients")
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", help="where the files are for a while; or, of a row, the store")
    parser.add_argument("--algorithm", default="fedavg")
    parser.add_argument("--kind", choices=_KINDS, default="disk")
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--capacity", type=int)
    options = parser.parse_args()
    if options.what == "row":
        print(json.dumps(row(options)))
    else:
        {"clients": clients, "data": data}[options.what](options)


if __name__ == "__main__":
    main()
