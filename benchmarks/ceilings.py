"""What the machine can do at most: `python -m benchmarks.ceilings` prints JSON.

The f32 matmul peak, of XLA and of NumPy's BLAS, and the bandwidth of memory, all cores.
"""

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

SIZES = (768, 1536, 3072)
MEGABYTES = 256


def best(run: Callable[[], object], seconds: float = 1.0) -> float:
    """The shortest of as many runs as fit, after one to warm up."""
    run()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def matmul_peak() -> dict[str, float]:
    """Flops a second of the best size, by library."""
    rng = np.random.default_rng(0)
    product = jax.jit(jnp.matmul)
    peaks = {"xla": 0.0, "numpy": 0.0}
    for n in SIZES:
        a, b = (rng.standard_normal((n, n), dtype=np.float32) for _ in range(2))
        on_device = jnp.asarray(a), jnp.asarray(b)
        seconds_of = {
            "xla": best(lambda xs=on_device: product(*xs).block_until_ready()),
            "numpy": best(lambda a=a, b=b: a @ b),
        }
        peaks = {name: max(peaks[name], 2 * n**3 / s) for name, s in seconds_of.items()}
    return peaks


def bandwidth() -> dict[str, float]:
    """Bytes a second read and written: a copy by threads, and XLA's a + 2 b."""
    size = MEGABYTES * 2**20
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    source = np.ones(size // 4, np.float32)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(target, cores), np.array_split(source, cores), strict=True))
    with ThreadPoolExecutor(cores) as pool:
        copy = best(lambda: list(pool.map(lambda part: np.copyto(*part), parts)))
    a, b = jnp.asarray(source), jnp.asarray(target)
    triad = jax.jit(lambda a, b: a + 2 * b)
    return {
        "copy": 2 * size / copy,
        "triad": 3 * size / best(lambda: triad(a, b).block_until_ready()),
    }


def main() -> None:
    flops, rates = matmul_peak(), bandwidth()
    print(
        json.dumps(
            {
                "matmul": max(flops.values()),
                "bandwidth": max(rates.values()),
                "matmul_by": flops,
                "bandwidth_by": rates,
                "cores": os.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    main()
