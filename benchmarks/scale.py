"""What scale costs: many clients, data beyond memory, a sweep shared by processes.

    python -m benchmarks.scale [clients] [data] [shards]

`clients` has logistic regressions on 5 to 15 examples of 16 numbers for each of K = 10^3 to 10^6
clients, FedAvg and SCAFFOLD, whose clients keep 170 numbers each, in memory and from a disk. `data`
has a 2NN of 784-200-200-10 on clients of 600 examples, 20 of them in a round; the files are dropped
from the page cache before the first round. Every row of these two is a process of its own, the
fastest of some. `shards` is in `benchmarks.shards`. Writes records/scale.json and SCALE.md; a part
that was not run keeps its figures.
"""

import argparse
import json
import os
import resource
import shutil
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
from benchmarks import RECORDS, scale_page, shards
from benchmarks.run import machine
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
    leaves = jax.tree.leaves(data.spec if isinstance(data, fs.data.Source) else data.examples)
    is_small = leaves[0].shape[-1] == _FEATURES
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


def written(folder: Path, clients: Iterator[Any]) -> float:
    """Writes a store client by client; seconds."""
    start = time.perf_counter()
    fs.data.FederatedStore.write(folder, clients)
    return time.perf_counter() - start


def clients(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time and memory by K, algorithm and place of the data."""
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for number in map(int, options.numbers.split(",")):
            store = Path(folder) / str(number)
            took = written(store, small_clients(number))
            for algorithm in ("fedavg", "scaffold"):
                for kind in _KINDS:
                    rows.append(
                        {"clients": number, "algorithm": algorithm, "kind": kind, "wrote": took}
                        | measured(
                            store,
                            options.repeats,
                            algorithm=algorithm,
                            kind=kind,
                            cohort=100,
                            rounds=options.rounds,
                            capacity=5_000 if kind == "disk" else None,
                        )
                    )
                    print(rows[-1], file=sys.stderr)
            shutil.rmtree(store)
    return rows


def data(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A federation beyond memory, beside one of a tenth of it in memory."""
    number = max(200, int(options.gigabytes * 1e9 / (_CLIENT * (_IMAGE + 1) * 4)))
    given = {"algorithm": "fedavg", "cohort": 20, "rounds": options.data_rounds}
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        part, whole = Path(folder) / "part", Path(folder) / "whole"
        took = {part: written(part, large_clients(number // 10))}
        took[whole] = written(whole, large_clients(number))
        for name, store, kind in (
            ("in memory", part, "memory"),
            ("from the disk, cold", whole, "disk"),
            ("from the disk", whole, "disk"),
        ):
            cold = name.endswith("cold")
            if cold:
                drop(whole)
            rows.append(
                {
                    "name": name,
                    "gigabytes": sum(x.stat().st_size for x in store.iterdir()) / 1e9,
                    "wrote": took[store],
                }
                | measured(store, 1 if cold else options.repeats, kind=kind, **given)
            )
            print(rows[-1], file=sys.stderr)
    return rows


def drop(folder: Path) -> None:
    """Drops the files from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    add("--numbers", default="1000,10000,100000,1000000", help="of clients")
    add("--gigabytes", type=float, default=20)
    add("--rounds", type=int, default=200, help="of clients, or of a row")
    add("--data-rounds", type=int, default=60)
    add("--repeats", type=int, default=2)
    add("--folder", help="where the files are for a while; or, of a row, the store")
    add("--dry", action="store_true", help="prints the page, and writes nothing")
    for name, default in (("algorithm", "fedavg"), ("kind", "disk")):
        add(f"--{name}", default=default, help="of a row")
    add("--cohort", type=int, default=100, help="of a row")
    add("--capacity", type=int, help="of a row")
    options = parser.parse_args()
    if options.parts == ["row"]:
        print(json.dumps(row(options)))
        return
    if unknown := set(options.parts) - {*PARTS}:
        parser.error(f"PART must be one of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    path = RECORDS / "scale.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    measured_on = machine()
    for name in options.parts or PARTS:
        load = os.getloadavg()[0]
        rows = PARTS[name](options)
        record[name] = {
            "machine": measured_on,
            "load": load,
            "repeats": options.repeats,
            "rows": rows,
        }
        record = {part: record[part] for part in PARTS if part in record}
        page = scale_page.page(record)
        if not options.dry:
            path.write_text(json.dumps(record, indent=1) + "\n")
            (RECORDS / "SCALE.md").write_text(page)
    print(page)


PARTS = {"clients": clients, "data": data, "shards": shards.measured}

if __name__ == "__main__":
    main()
