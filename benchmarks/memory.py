"""Peak memory against the cohort: `python -m benchmarks.memory` prints it.

Rounds of 2NN by `packed(4)` and `vmapped()` at m = 50 and m = 500, fresh processes, same data.
"""

import subprocess
import sys

CLIENTS, EXAMPLES, FEATURES, LANES = 500, 20, 784, 4


def measure(execution: str, m: int) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import fedjax_sim as fs
    from benchmarks.worker import peak_memory

    rng, total = np.random.default_rng(0), CLIENTS * EXAMPLES
    examples = {
        "x": rng.random((total, FEATURES), dtype=np.float32),
        "y": rng.integers(0, 10, total, dtype=np.int32),
    }
    data = fs.FederatedData.from_arrays(examples, np.repeat(np.arange(CLIENTS), EXAMPLES))
    model = fs.models.two_nn()
    algorithm = fs.fedavg(fs.models.cross_entropy(model.apply), optax.sgd(0.1), fs.LocalTraining())
    key = jax.random.key(0)
    state = fs.init(algorithm, model.init(key), data)
    strategy = fs.execution.packed(LANES) if execution == "packed" else fs.execution.vmapped()
    round_fn = jax.jit(fs.make_round(algorithm, execution=strategy))
    compiled = round_fn.lower(key, state, data, fs.Cohort(jnp.arange(m))).compile()
    peak_before = peak_memory()
    for _ in range(3):
        state, _ = jax.block_until_ready(compiled(key, state, data, fs.Cohort(jnp.arange(m))))
    temporary = compiled.memory_analysis().temp_size_in_bytes
    print(
        f"{execution} m = {m}: {peak_memory() / 2**20:.0f} MB at the peak, "
        f"{(peak_memory() - peak_before) / 2**20:.0f} MB of it since compiling; "
        f"the program allocates {temporary / 2**20:.1f} MB"
    )


def main() -> None:
    if len(sys.argv) == 3:
        measure(sys.argv[1], int(sys.argv[2]))
        return
    for execution in ("packed", "vmapped"):
        for m in (50, 500):
            command = [sys.executable, "-m", "benchmarks.memory", execution, str(m)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
