"""Layers in loops: `python -m benchmarks.layers` writes benchmarks/records/LAYERS.md.

A step is one step of SGD on a batch of 10. Each figure is of a fresh process, the smallest of
several repeats; the processes are interleaved twice and the smaller kept.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

from benchmarks import RECORDS
from benchmarks.layer_parts import (
    BATCH,
    dense,
    pooling,
    recurrence,
    smallest,
    step_of_cnn,
    step_of_sgd,
)
from benchmarks.run import machine

STEPS, PROCESSES = 20, 2
MODELS = {"CNN": ("ours", "flax"), "character LSTM": ("ours", "flax")}
SETTINGS = {  # lanes (0: no loop), devices
    "outside a loop": (0, 1),
    "in a scan": (1, 1),
    "4 clients vmapped, in a scan": (4, 1),
    "2 devices, a client each, in a scan": (1, 2),
    "2 devices, 4 clients each, in a scan": (4, 2),
}


def model_of(name: str, library: str) -> tuple[Any, Any, Any]:
    """The model, and how to make inputs and labels of shape [n, BATCH, ...]."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    import fedjax_sim as fs

    key = jax.random.key(0)
    if name == "CNN":
        layers: list[Any] = []
        for channels in (32, 64):
            layers += [nn.Conv(channels, (5, 5)), nn.relu, partial(_flax_pool, nn)]
        layers += [lambda x: x.reshape(len(x), -1), nn.Dense(512), nn.relu, nn.Dense(10)]
        flax_model = fs.models.from_flax(nn.Sequential(layers), (28, 28, 1))
        x = lambda n: jax.random.normal(key, (n, BATCH, 28, 28, 1))
        y = lambda n: jax.random.randint(key, (n, BATCH), 0, 10)
        return (fs.models.cnn() if library == "ours" else flax_model), x, y
    layers = [nn.Embed(90, 8)] + [nn.RNN(nn.OptimizedLSTMCell(256)) for _ in range(2)]
    flax_model = fs.models.from_flax(nn.Sequential([*layers, nn.Dense(90)]), (80,), jnp.int32)
    x = lambda n: jax.random.randint(key, (n, BATCH, 80), 0, 90)
    return (fs.models.character_lstm() if library == "ours" else flax_model), x, x


def _flax_pool(nn: Any, x: Any) -> Any:
    return nn.max_pool(x, (2, 2), (2, 2))


def measure(name: str, library: str, lanes: int, devices: int) -> dict[str, float]:
    """Milliseconds a client-step, over all clients at work, and seconds to compile."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, PartitionSpec

    import fedjax_sim as fs

    jax.config.update("jax_num_cpu_devices", devices)
    model, x, y = model_of(name, library)
    step = step_of_sgd(fs.models.cross_entropy(model.apply))
    params = model.init(jax.random.key(1))
    steps = STEPS if library == "ours" or lanes == 0 else 4
    batches = {"x": x(steps), "y": y(steps)}
    if lanes == 0:
        compiled_step = jax.jit(step, donate_argnums=0)
        first_batch = jax.tree.map(lambda a: a[0], batches)
        params = compiled_step(params, first_batch)

        def run() -> Any:
            params_now = jax.tree.map(jnp.copy, params)
            for _ in range(steps):
                params_now = compiled_step(params_now, first_batch)
            return params_now

        return {"ms": smallest(run) / steps * 1e3}

    def train(params: Any, batches: Any) -> Any:
        return jax.lax.scan(lambda p, b: (step(p, b), None), params, batches)[0]

    def work(params: Any, batches: Any) -> Any:
        if lanes > 1:
            return jax.vmap(train, (0, None))(params, batches)
        trained = train(jax.tree.map(lambda a: a[0], params), batches)
        return jax.tree.map(lambda a: a[None], trained)

    stacked = jax.tree.map(lambda a: jnp.stack([a] * lanes * devices), params)
    if devices > 1:
        mesh, split = Mesh(np.array(jax.devices()), ("clients",)), PartitionSpec("clients")
        # flax's LSTM starts from a carry that does not vary over the mesh.
        checked = library == "ours"
        specs: Any = {"in_specs": (split, PartitionSpec()), "out_specs": split}
        specs["check_vma"] = checked
        work = jax.shard_map(work, mesh=mesh, **specs)
    start = time.perf_counter()
    compiled = jax.jit(work).lower(stacked, batches).compile()
    seconds = time.perf_counter() - start
    run = partial(compiled, stacked, batches)
    jax.block_until_ready(run())
    return {"ms": smallest(run) / (steps * lanes * devices) * 1e3, "compile": seconds}


def peak() -> dict[str, float]:
    from benchmarks.ceilings import matmul_peak

    return {"gflops": matmul_peak()["xla"] / 1e9}


def fresh(*arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.layers", json.dumps(arguments)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return json.loads(lines[-1])


def main() -> None:
    if len(sys.argv) > 1:
        name, *arguments = json.loads(sys.argv[1])
        parts: dict[str, Callable[..., dict[str, Any]]] = {
            "measure": measure,
            "pooling": pooling,
            "dense": dense,
            "recurrence": recurrence,
            "step_of_cnn": step_of_cnn,
            "peak": peak,
        }
        print(json.dumps(parts[name](*arguments)))
        return
    jobs = [
        (n, w, *s) for n, libraries in MODELS.items() for w in libraries for s in SETTINGS.values()
    ]
    best: dict[Any, dict[str, float]] = {}
    for _ in range(PROCESSES):
        for job in jobs:
            new = fresh("measure", *job)
            old = best.get(job, new)
            best[job] = {key: min(old[key], new[key]) for key in new}
            print(job, best[job], flush=True)
    lines = [
        "# Layers in loops",
        "",
        "`python -m benchmarks.layers`: milliseconds for each step of SGD on 10 "
        "examples, over all clients at work, the smallest of fresh processes; seconds to compile "
        "a scan of steps.",
        "",
        ", ".join(f"{k} {v}" for k, v in machine().items()) + f", jax {version('jax')}, "
        f"flax {version('flax')}; {fresh('peak')['gflops']:.0f} GFLOP/s measured in float32 "
        "matrix products.",
    ]
    for name in MODELS:
        lines += [
            "",
            f"## {name}",
            "",
            "| | ours | flax's layers | compile, ours |",
            "|---|---|---|---|",
        ]
        for setting, numbers in SETTINGS.items():
            ours, flax = (best[name, library, *numbers] for library in ("ours", "flax"))
            compiled = f"{ours['compile']:.1f} s" if "compile" in ours else ""
            lines.append(f"| {setting} | {ours['ms']:.1f} | {flax['ms']:.1f} | {compiled} |")
    lines += ["", "## Pooling", "", "Value and gradient, [10, 28, 28, 32], windows of 2 by 2.", ""]
    lines += ["| | microseconds |", "|---|---|"]
    lines += [f"| {name} | {us:.0f} |" for name, us in fresh("pooling").items()]
    lines += ["", "## Dense layers", "", "The kernel's gradient and its step, in a scan.", ""]
    lines += ["| product | lax's, microseconds | `nn.dot_general` |", "|---|---|---|"]
    lines += [f"| {name} | {a:.1f} | {b:.1f} |" for name, (a, b) in fresh("dense").items()]
    for heading, says, part in (
        ("A layer of LSTM", "256 units, 80 steps, on one core.", "recurrence"),
        ("A step of the CNN", "On one core, with nothing beside it.", "step_of_cnn"),
    ):
        lines += ["", f"## {heading}", "", says, "", "| part | milliseconds | GFLOP/s |"]
        lines.append("|---|---|---|")
        for name, (ms, gflops) in fresh(part).items():
            lines.append(
                f"| {name} | {ms:.2f} | {gflops:.0f} |" if gflops else f"| {name} | {ms:.2f} | |"
            )
    text = "\n".join(lines) + "\n"
    (RECORDS / "LAYERS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
