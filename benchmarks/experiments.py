"""Runs driven from the host and sweeps: `python -m benchmarks.experiments [PART...]`.

Writes records/EXPERIMENTS.md; parts that are not run keep their figures. `sweep`: the grid of
64 learning rates and 4 seeds of `lr-mnist`, 100 rounds, as one `fs.sweep` in a fresh process,
beside loops over the same configurations in fedjax and PyTorch (`python -m benchmarks.peers`
makes them), timed on a part. `width`: configurations side by side. `overhead`: `fs.simulate` with
progress and checkpoints beside one scan. `evaluation`: what a test set takes beside a round.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import RECORDS, floor
from benchmarks.jobs import JOBS
from benchmarks.run import Process, ceilings, machine
from benchmarks.worker import SWEPT

RATES, SEEDS, ROUNDS, M = 64, 4, 100, 10
REPEATS = 3
TEST_IMAGES = 10_000


def experiment_of(name: str, rounds: int) -> Any:
    """A job as a factory of experiments by learning rate."""
    import numpy as np
    import optax

    import fedjax_sim as fs
    from benchmarks.ours import make_model

    job = JOBS[name]
    x, y = job.examples()
    ids = np.repeat(np.arange(len(job.sizes())), job.sizes())
    data = fs.FederatedData.from_arrays({"x": x, "y": y}, ids)
    model = make_model(job)
    loss_fn = fs.models.cross_entropy(model.apply)
    local = fs.LocalTraining(job.epochs, job.batch_size)

    def experiment(lr: Any) -> fs.Experiment:
        algorithm = fs.fedavg(loss_fn, optax.sgd(lr), local)
        return fs.Experiment(algorithm, model.init, data, fs.sampling.uniform(job.m), rounds)

    return experiment


def sweep(name: str, rates: int, seeds: int, rounds: int, width: int | None) -> dict[str, float]:
    """Seconds of a sweep, compilation included, and microseconds a client-step without it."""
    import numpy as np

    import fedjax_sim as fs

    fs.execution.cores()
    experiment = experiment_of(name, rounds)
    chunks: list[Any] = []
    start = time.perf_counter()
    results = fs.sweep(
        experiment,
        {"lr": np.geomspace(1e-3, 0.3, rates).tolist()},
        range(seeds),
        side_by_side=width,
        on_progress=chunks.append,
    )
    seconds = time.perf_counter() - start
    steps = sum(int(run.rounds["client_steps"].sum()) for run in results.runs)
    pace = statistics.median(chunk.client_steps_per_second for chunk in chunks[1:])
    return {"seconds": seconds, "steps": steps, "us": 1e6 / pace, "runs": len(results.runs)}


def overhead(rounds: int) -> dict[str, Any]:
    """Seconds of a run as one scan, a call a round, and a simulation; warm, interleaved."""
    import jax

    import fedjax_sim as fs

    mesh = fs.execution.cores()
    experiment = experiment_of("2nn", rounds)(0.05)
    experiment = experiment._replace(execution=fs.execution.sharded(mesh))
    experiment = experiment._replace(data=fs.execution.replicate(experiment.data, mesh))
    key = jax.random.key(0)

    def scan(data: Any, state: Any) -> Any:
        # The examples are arguments, as they are in a simulation.
        return fs.run(experiment.round_fn, key, state, data, experiment.sampler, rounds)

    state = fs.execution.replicate(experiment.start(key), mesh)
    compiled = jax.jit(scan).lower(experiment.data, state).compile()
    jax.block_until_ready(compiled(experiment.data, state))
    one_round = jax.jit(
        lambda data, state: fs.run(experiment.round_fn, key, state, data, experiment.sampler, 1)
    )
    jax.block_until_ready(one_round(experiment.data, state))
    seconds_of: dict[str, Any] = {"scan": [], "calls": [], "simulate": [], "saved": []}
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(experiment.data, state))
        seconds_of["scan"].append(time.perf_counter() - start)
        start, after = time.perf_counter(), state
        for _ in range(rounds):
            after, _row = jax.block_until_ready(one_round(experiment.data, after))
        seconds_of["calls"].append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            marks: list[float] = []

            def mark(progress: Any, marks: list[float] = marks) -> None:
                marks.append(time.perf_counter())

            fs.simulate(experiment, key, out=folder, on_progress=mark)
            # From the end of the first chunk, one round behind compilation, to the very end.
            seconds = time.perf_counter() - marks[0]
            seconds_of["simulate"].append(seconds * rounds / (rounds - 1))
            seconds_of["saved"].append(len(list(Path(folder, "checkpoints").iterdir())))
    return seconds_of


def evaluation() -> dict[str, Any]:
    """Seconds of a round of `cnn` and of what is measured after it, interleaved; and devices."""
    import jax
    import numpy as np

    import fedjax_sim as fs
    from benchmarks.ours import make_model

    mesh = fs.execution.cores()
    job = JOBS["cnn"]
    experiment = experiment_of("cnn", 1)(0.05)
    model = make_model(job)
    rng = np.random.default_rng(0)
    images = rng.random((TEST_IMAGES, *job.examples()[0].shape[1:]), np.float32)
    labels = rng.integers(0, 10, TEST_IMAGES)
    test = fs.FederatedData.from_clients([{"x": images, "y": labels}])
    loss_fn = fs.models.cross_entropy(model.apply)
    key = jax.random.key(0)
    data, test, state = fs.execution.replicate((experiment.data, test, experiment.start(key)), mesh)
    round_fn = jax.jit(experiment._replace(execution=fs.execution.sharded(mesh)).round_fn)
    cohort = experiment.sampler.sample(key, 0, data)

    def measure(over: Any) -> Any:
        compiled = jax.jit(lambda p, test: fs.evaluate(loss_fn, p, test, mesh=over).mean)
        return lambda: compiled(state.params, test)

    calls = {
        "round": lambda: round_fn(key, state, data, cohort),
        "whole": measure(None),
        "dealt": measure(mesh),
    }
    seconds_of: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(REPEATS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn:  # the first turn compiles
                seconds_of[name].append(time.perf_counter() - start)
    return {**seconds_of, "devices": mesh.size}


def fresh(*arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.experiments", "--part", json.dumps(arguments)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(process.stderr)
    return json.loads(process.stdout.splitlines()[-1])


def sweep_section() -> str:
    """Ours first and last, the peers between."""
    job = replace(JOBS["sweep"], name="sweep")
    measured = ceilings()
    ours = [fresh("sweep", "lr-mnist", RATES, SEEDS, ROUNDS, None)]
    lines = []
    total = ours[0]["steps"]
    fastest = float("inf")
    for name, setting in (("fedjax", "1"), ("fedjax", "2"), ("pytorch", "1"), ("pytorch", "2")):
        process = Process(name, setting, job.name)
        if "error" in (answer := process.ask("prepare")):
            lines.append(f"| {name} ({setting}) | {answer['error']} | | |\n")
            continue
        answers = [process.ask("time") for _ in range(REPEATS)]
        process.close()
        us = statistics.median(a["seconds"] / a["steps"] for a in answers) * 1e6
        fastest = min(fastest, us)
        lines.append(f"| {name} ({setting}) | {us:.1f} | {us * total / 1e6:.0f} (scaled) | |\n")
    ours += [fresh("sweep", "lr-mnist", RATES, SEEDS, ROUNDS, None) for _ in range(REPEATS - 1)]
    us = statistics.median(run["us"] for run in ours)
    seconds = statistics.median(run["seconds"] for run in ours)
    least = floor.seconds(job, 1, measured) * 1e6
    our_row = (
        f"| ours | {us:.2f} steady | {seconds:.1f} with compilation | "
        f"{fastest / us:.1f}x steady, {fastest * total / 1e6 / seconds:.1f}x in all |\n"
    )
    return (
        f"## A sweep: {RATES} learning rates x {SEEDS} seeds of `lr-mnist`, {ROUNDS} rounds\n\n"
        f"{total:,} client-steps. A peer runs {SWEPT} of the learning rates one by one, scaled to "
        f"all. The floor of a step is {least:.2f} us ({measured['matmul'] / 1e9:.0f} Gflop/s): "
        f"ours is at {least / us:.0%} of it. Medians of {REPEATS}; ours in fresh processes.\n\n"
        "| | us / client-step | seconds | ours is faster by |\n|---|---|---|---|\n"
        + our_row
        + "".join(lines)
    )


def width_section() -> str:
    text = (
        "## Configurations side by side\n\nMicroseconds a client-step by how many run under one "
        "`vmap` on each of two devices; *chosen* is `fs.sweep`'s own.\n\n"
        "| job | 1 | 4 | 16 | 32 | chosen |\n|---|---|---|---|---|---|\n"
    )
    for name, seeds, rounds in (("lr-mnist", 1, 40), ("2nn", 1, 6)):
        us_of_width = {}
        for width in (1, 4, 16, 32, None):
            us_of_width[width] = min(
                fresh("sweep", name, 64, seeds, rounds, width)["us"] for _ in range(2)
            )
            print(name, width, us_of_width[width], flush=True)
        text += f"| {name} | " + " | ".join(f"{x:.1f}" for x in us_of_width.values()) + " |\n"
    return text


def overhead_section() -> str:
    rounds = 500
    table = _times(
        fresh("overhead", rounds),
        {
            "scan": "one scan",
            "calls": "a call a round",
            "simulate": "`fs.simulate` with progress and checkpoints (one each 15 s or so)",
        },
    )
    return f"## What driving costs\n\n{rounds} rounds of `2nn`. {table}"


def evaluation_section() -> str:
    measured = fresh("evaluation")
    devices = measured.pop("devices")
    table = _times(
        measured,
        {
            "round": "a round of `cnn`, ten clients",
            "whole": "its evaluation, all of it on every device",
            "dealt": "its evaluation, dealt over the devices (`fs.evaluate(..., mesh=mesh)`)",
        },
    )
    return f"## What evaluation costs\n\n{TEST_IMAGES:,} test images, {devices} devices. {table}"


def _times(measured: dict[str, list[float]], texts: dict[str, str]) -> str:
    """Medians and spans as a table, beside the first.

    Args:
      measured: name -> seconds, one for each repetition.
      texts: name -> what the table calls it, in the table's order.
    """
    first = statistics.median(measured[next(iter(texts))])
    lines = []
    for name, text in texts.items():
        middle, seconds = statistics.median(measured[name]), measured[name]
        span = f"{min(seconds):.2f} to {max(seconds):.2f}"
        lines.append(f"| {text} | {middle:.2f} ({span}) | {middle / first:.3f} |\n")
    return (
        f"Warm, interleaved, medians of {REPEATS}.\n\n| | seconds | ratio |\n|---|---|---|\n"
        + "".join(lines)
    )


SECTIONS = {
    "sweep": sweep_section,
    "width": width_section,
    "overhead": overhead_section,
    "evaluation": evaluation_section,
}
PARTS = {"sweep": sweep, "overhead": overhead, "evaluation": evaluation}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.experiments", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(SECTIONS)}; all")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, *arguments = json.loads(options.part)
        print(json.dumps(PARTS[name](*arguments)))
        return
    if unknown := set(options.parts) - set(SECTIONS):
        parser.error(f"PART must be one of {', '.join(SECTIONS)}; got {', '.join(unknown)}")
    path = RECORDS / "EXPERIMENTS.md"
    kept_parts = path.read_text().split("\n\n<!-- ")[1:] if path.exists() else []
    texts = dict(part.split(" -->\n", 1) for part in kept_parts)
    machine_text = ", ".join(f"{k} {v}" for k, v in machine().items())
    for name in options.parts or SECTIONS:
        texts[name] = f"{SECTIONS[name]()}\n{machine_text}."
        ordered = {name: texts[name].strip() for name in SECTIONS if name in texts}
        head = "# Experiments\n\n`python -m benchmarks.experiments` makes this page."
        path.write_text(
            head + "".join(f"\n\n<!-- {name} -->\n{text}" for name, text in ordered.items()) + "\n"
        )
        print(texts[name], flush=True)


if __name__ == "__main__":
    main()
