"""What starting costs: `python -m benchmarks.startup` writes benchmarks/records/STARTUP.md.

Every figure is of whole fresh processes, interleaved, the median of several.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

from benchmarks import RECORDS
from benchmarks.run import machine

_PYTHON = {
    "import jax, optax": "import jax, optax",
    "import fedjax_sim": "import fedjax_sim",
    "import jax, optax, fedjax_sim": "import jax, optax, fedjax_sim",
    "import jax, optax, fedjax_sim and its models (flax)": (
        "import jax, optax, fedjax_sim; fedjax_sim.models"
    ),
}
PROCESSES = {name: [sys.executable, "-c", code] for name, code in _PYTHON.items()} | {
    "fedjax-sim --help": [sys.executable, "-m", "fedjax_sim.cli", "--help"],
    "fedjax-sim run --help": [sys.executable, "-m", "fedjax_sim.cli", "run", "--help"],
}


def seconds(command: list[str], cache: str = "") -> float:
    """Of the wall clock; without a cache of compiled programs, which the command would keep."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def time_processes(runs: int = 9) -> dict[str, float]:
    seconds_of: dict[str, list[float]] = {name: [] for name in PROCESSES}
    for i in range(runs + 1):  # the first round warms the disk's cache
        for name, command in PROCESSES.items():
            elapsed = seconds(command)
            if i:
                seconds_of[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds_of.items()}


def time_compare(runs: int = 3) -> tuple[list[float], list[float]]:
    """`fedjax-sim compare` with its defaults: cold each time, and with its programs cached."""
    cold, cached = [], []
    with tempfile.TemporaryDirectory() as cache:
        for i in range(runs + 1):
            for times, folder_of_programs in ((cold, ""), (cached, cache)):
                with tempfile.TemporaryDirectory() as out:
                    command = [sys.executable, "-m", "fedjax_sim.cli", "compare", "--out", out]
                    elapsed = seconds([*command, "--overwrite"], folder_of_programs)
                if i:
                    times.append(elapsed)
    return cold, cached


def compile_once() -> None:
    """Prints seconds to trace and to compile: a round of logistic regression, and a gradient."""
    import jax
    import jax.numpy as jnp
    import optax

    import fedjax_sim as fs

    digits = fs.datasets.digits()
    key = jax.random.key(0)
    ids = fs.partition.dirichlet(key, digits.train["y"], num_clients=50, alpha=0.3)
    data = fs.FederatedData.from_arrays(digits.train, ids)
    model = fs.models.logistic_regression((8, 8), num_classes=10)
    loss_fn = fs.models.cross_entropy(model.apply)
    algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining(epochs=5, batch_size=10))
    state = fs.init(algorithm, model.init(key), data)
    cohort = fs.sampling.uniform(5).sample(key, 0, data)
    batch = jax.tree.map(lambda x: x[:10], digits.train)
    of_loss = lambda params, batch: jnp.mean(loss_fn(params, batch, key)[0])
    seconds_of = {}
    for name, function, arguments in (
        ("a gradient of its loss", jax.grad(of_loss), (state.params, batch)),
        ("a round", fs.make_round(algorithm), (key, state, data, cohort)),
    ):
        start = time.perf_counter()
        lowered = jax.jit(function).lower(*arguments)
        traced = time.perf_counter()
        lowered.compile()
        seconds_of[name] = [traced - start, time.perf_counter() - traced]
    print(json.dumps(seconds_of))


def time_compiling(runs: int = 5) -> dict[str, list[float]]:
    """Of `compile_once` in fresh processes, medians: seconds to trace, and to compile."""
    command = [sys.executable, "-c", "from benchmarks import startup; startup.compile_once()"]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    measured = []
    for _ in range(runs):
        process = subprocess.run(command, check=True, capture_output=True, env=environment)
        measured.append(json.loads(process.stdout.splitlines()[-1]))
    return {
        name: [statistics.median(m[name][i] for m in measured) for i in range(2)]
        for name in measured[0]
    }


def main() -> None:
    processes, compare, compiling = time_processes(), time_compare(), time_compiling()
    base = next(iter(processes.values()))
    lines = [
        "# Start-up",
        "",
        "`python -m benchmarks.startup`: whole processes, interleaved, median of 9; compare, of 3.",
        "",
        ", ".join(f"{k} {v}" for k, v in machine().items())
        + f", jax {version('jax')}, optax {version('optax')}, "
        f"flax {version('flax')}.",
        "",
        "| process | seconds | ratio |",
        "|---|---|---|",
    ]
    lines += [f"| `{name}` | {s:.2f} | {s / base:.2f} |" for name, s in processes.items()]
    words = ("cold, compilation included", "with its programs cached")
    lines += ["", "`fedjax-sim compare` with its defaults:", ""]
    lines += [
        f"- {text}: {statistics.median(times):.1f} s ({min(times):.1f} to {max(times):.1f})"
        for text, times in zip(words, compare, strict=True)
    ]
    lines += [
        "",
        "Logistic regression on the digits, 5 of 50 clients, 5 epochs, blocks of 10; medians of 5:",
        "",
        "| | seconds to trace | seconds to compile |",
        "|---|---|---|",
        *(f"| {name} | {a:.2f} | {b:.2f} |" for name, (a, b) in compiling.items()),
    ]
    text = "\n".join(lines) + "\n"
    (RECORDS / "STARTUP.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
