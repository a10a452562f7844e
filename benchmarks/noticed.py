"""Costs that users noticed, each beside what it should be near: `python -m benchmarks.noticed`.

Warm, the fastest of several; in milliseconds.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs

LARGE, REPEATS = 1_000_000, 5


def fastest(function: Callable[..., Any], *arguments: Any) -> float:
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def milliseconds(
    sizes: list[int],
    m: int,
    shape: tuple[int, int],
    local: fs.LocalTraining,
    execution: Any = None,
) -> float:
    """A round of the first m clients, multinomial regression of shape (features, classes)."""
    features, classes = shape
    rng, total = np.random.default_rng(0), sum(sizes)
    examples = {
        "x": rng.random((total, features), dtype=np.float32),
        "y": rng.integers(0, classes, total, dtype=np.int32),
    }
    data = fs.FederatedData.from_arrays(examples, np.repeat(np.arange(len(sizes)), sizes))
    model = fs.models.logistic_regression((features,), classes)
    algorithm = fs.fedavg(fs.models.cross_entropy(model.apply), optax.sgd(0.01), local)
    key = jax.random.key(0)
    state = fs.init(algorithm, model.init(key), data)
    round_fn = fs.make_round(algorithm, execution=execution)
    return fastest(round_fn, key, state, data, fs.Cohort(jnp.arange(m)))


def main() -> None:
    packed, vmapped = fs.execution.packed(), fs.execution.vmapped()

    full = fs.LocalTraining(5, None)
    for execution in (packed, vmapped):
        alone = milliseconds([600] * 20, 10, (8, 2), full, execution)
        beside = milliseconds([600] * 20 + [LARGE], 10, (8, 2), full, execution)
        print(f"{execution}: full batches {alone:.2f}, in a federation with 10^6 {beside:.2f}")

    for shuffle in (False, True):
        local = fs.LocalTraining(1, 10, shuffle=shuffle)
        print(f"10^6 examples, B = 10, {shuffle=}: {milliseconds([LARGE], 1, (4, 2), local):.0f}")

    for clients, shape in ((10, (784, 10)), (50, (784, 10)), (200, (784, 10)), (50, (784, 62))):
        times = {
            name: milliseconds([60] * clients, clients, shape, fs.LocalTraining(1, 10), execution)
            for name, execution in {"automatic": None, "packed": packed, "vmapped": vmapped}.items()
        }
        print(f"{clients} equal clients of {shape}:", {k: round(v, 2) for k, v in times.items()})

    weights = np.random.default_rng(0).lognormal(size=LARGE)
    data = fs.FederatedData.from_arrays(
        np.zeros(LARGE, np.float32), np.arange(LARGE), None, weights
    )
    for name, sampler in (
        ("uniform", fs.sampling.uniform(100)),
        ("weighted", fs.sampling.weighted(100)),
    ):

        def draw(key: Any, data: Any, sampler: Any = sampler) -> Any:
            return sampler.sample(key, 0, data)

        print(f"{name}, 100 of 10^6: {fastest(draw, jax.random.key(0), data):.1f}")


if __name__ == "__main__":
    main()
