"""Rounds on a federation that is read from a disk, beside the same in memory.

    python -m benchmarks.windows [--clients 400] [--cohort 20] [--hidden 200] [--rounds 60]

A federation of images of 784 float32 numbers lies in one file. Times are those of the rounds of
`fs.simulate` behind its first two chunks, so that nothing compiles in them. A window holds three of
the largest cohorts. The last row has a disk that takes as long as training would, by sleeping.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import fedjax_sim as fs
from fedjax_sim.host.driver import Progress


class Timed(NamedTuple):
    """Of a round: seconds, and seconds of CPU in all threads; and the trained model."""

    seconds: float
    cpu: float
    params: Any


def on_disk(folder: Path, num_clients: int) -> fs.data.Source:
    """A federation of clients of 100 to 500 examples."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 501, num_clients)
    starts, total = np.cumsum(sizes) - sizes, int(sizes.sum())
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (total, 784))
    y = rng.integers(0, 10, total, dtype=np.int32)
    for start, size in zip(starts, sizes, strict=True):
        x[start : start + size] = rng.random((size, 784), np.float32)
    x.flush()

    def read(ids: np.ndarray) -> list[dict[str, np.ndarray]]:
        rows = [slice(starts[k], starts[k] + sizes[k]) for k in ids]
        return [{"x": np.asarray(x[own]), "y": y[own]} for own in rows]

    spec = {
        "x": jax.ShapeDtypeStruct((784,), np.float32),
        "y": jax.ShapeDtypeStruct((), np.int32),
    }
    return fs.data.Source(sizes, spec, read)


def timed(experiment: fs.Experiment, capacity: int | None) -> Timed:
    """The rounds of one run."""
    moments: list[tuple[int, float, float]] = []

    def tell(progress: Progress) -> None:
        moments.append((progress.round, time.perf_counter(), time.process_time()))

    run = fs.simulate(experiment, key=0, capacity=capacity, on_progress=tell)
    (first, *began), (last, *ended) = moments[1], moments[-1]
    seconds, cpu = ((end - begin) / (last - first) for begin, end in zip(began, ended, strict=True))
    return Timed(seconds, cpu, run.state.params)


def slowed(source: fs.data.Source, seconds: float) -> fs.data.Source:
    """The same from a disk that takes so long for a client."""

    def read(ids: np.ndarray) -> Any:
        time.sleep(seconds * len(ids))
        return source.read(ids)

    return replace(source, read=read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=400)
    parser.add_argument("--cohort", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=200, help="0 is a logistic regression")
    parser.add_argument("--rounds", type=int, default=60)
    chosen = parser.parse_args()
    if chosen.hidden:
        model = fs.models.mlp((784,), (chosen.hidden, chosen.hidden), 10)
    else:
        model = fs.models.logistic_regression((784,), num_classes=10)
    loss_fn = fs.models.cross_entropy(model.apply)
    algorithm = fs.fedavg(loss_fn, optax.sgd(0.05), fs.LocalTraining(1, 50))
    with tempfile.TemporaryDirectory() as folder:
        source = on_disk(Path(folder), chosen.clients)
        everyone = source.read(np.arange(chosen.clients))
        data = fs.FederatedData.from_clients(everyone)
        experiment = fs.Experiment(
            algorithm, model.init, data, fs.sampling.uniform(chosen.cohort), chosen.rounds
        )
        capacity = 3 * 500 * chosen.cohort
        size = 784 * 4 * source.total_num_examples
        print(f"{source.total_num_examples} examples, {size / 1e6:.0f} MB; window {capacity} rows")
        in_memory = timed(experiment, None)
        seconds = in_memory.seconds / chosen.cohort
        runs = {
            "in memory": in_memory,
            "from a disk": timed(experiment._replace(data=source), capacity),
            "from a slow disk": timed(experiment._replace(data=slowed(source, seconds)), capacity),
        }
        for name, run in runs.items():
            equal = jax.tree.map(np.array_equal, in_memory.params, run.params)
            print(
                f"{name:<18}{1000 * run.seconds:8.1f} ms a round, {1000 * run.cpu:8.1f} ms of CPU, "
                f"{'same' if all(jax.tree.leaves(equal)) else 'OTHER'} bits"
            )


if __name__ == "__main__":
    main()
