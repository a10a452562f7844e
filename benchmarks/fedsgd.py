"""FedSGD against the matmul peak: `python -m benchmarks.fedsgd` prints it.

A round is one gradient over the cohort's examples, 2NN, 60 examples a client.
"""

import statistics
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs
from benchmarks.ceilings import matmul_peak
from benchmarks.jobs import JOBS

CLIENTS, EXAMPLES, REPEATS = 1000, 60, 7


def main() -> None:
    job = replace(JOBS["2nn"], make_sizes=lambda rng: np.full(CLIENTS, EXAMPLES), batch_size=1)
    x, y = job.examples()
    ids = np.repeat(np.arange(CLIENTS), EXAMPLES)
    data = fs.FederatedData.from_arrays({"x": x, "y": y}, ids)
    model = fs.models.two_nn()
    algorithm = fs.fedsgd(fs.models.cross_entropy(model.apply), optax.sgd(0.1))
    key = jax.random.key(0)
    state = fs.init(algorithm, model.init(key), data)
    peak = max(matmul_peak().values())
    print(f"matmul peak {peak / 1e9:.0f} Gflop/s\n")
    print("| execution | m | ms / round | Gflop/s | share of the peak |\n|---|---|---|---|---|")
    for name, strategy in {
        "vmapped()": fs.execution.vmapped(),
        "packed()": fs.execution.packed(),
    }.items():
        round_fn = jax.jit(fs.make_round(algorithm, execution=strategy))
        for m in (10, 100, 1000):
            arguments = key, state, data, fs.Cohort(jnp.arange(m))
            jax.block_until_ready(round_fn(*arguments))
            taken = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                jax.block_until_ready(round_fn(*arguments))
                taken.append(time.perf_counter() - start)
            seconds = statistics.median(taken)
            rate = m * EXAMPLES * job.flops() / seconds
            print(
                f"| {name} | {m} | {seconds * 1e3:.2f} | {rate / 1e9:.1f} | {rate / peak:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
