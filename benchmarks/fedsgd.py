"""FedSGD against the matmul peak: `python -m benchmarks.fedsgd` writes records/FEDSGD.md.

A round is one gradient over the cohort's examples, 2NN, 60 examples a client. Rounds are timed in
one scan, as a run has them.
"""

import statistics
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs
from benchmarks import RECORDS
from benchmarks.jobs import JOBS
from benchmarks.run import ceilings, machine

CLIENTS, EXAMPLES, REPEATS = 1000, 60, 7
ROUNDS = {10: 40, 100: 8, 1000: 2}  # of a repetition, by m

HEAD = """# FedSGD

`python -m benchmarks.fedsgd`: rounds of FedSGD (E = 1, B = infinity) of the 2NN, {examples}
examples a client: one forward and backward pass over the cohort's examples. The products' flops
(without the gradient of the inputs) over the matmul peak of all cores, {peak:.0f} Gflop/s, measured
before. Rounds in one scan, warm, the median of {repeats}.

{machine}, jax {jax}.

| execution | m | ms / round | Gflop/s | share of the peak |
|---|---|---|---|---|
"""


def main() -> None:
    peak = ceilings()["matmul"]  # a process of its own: JAX begins here with a device a core
    mesh = fs.execution.cores()
    job = replace(JOBS["2nn"], make_sizes=lambda rng: np.full(CLIENTS, EXAMPLES), batch_size=1)
    x, y = job.examples()
    ids = np.repeat(np.arange(CLIENTS), EXAMPLES)
    data = fs.FederatedData.from_arrays({"x": x, "y": y}, ids)
    model = fs.models.two_nn()
    algorithm = fs.fedsgd(fs.models.cross_entropy(model.apply), optax.sgd(0.1))
    key = jax.random.key(0)
    state = fs.init(algorithm, model.init(key), data)
    text = HEAD.format(
        examples=EXAMPLES,
        peak=peak / 1e9,
        repeats=REPEATS,
        machine=", ".join(f"{k} {v}" for k, v in machine().items()),
        jax=jax.__version__,
    )
    for name, strategy in {
        "vmapped()": fs.execution.vmapped(),
        "packed()": fs.execution.packed(),
        "sharded(cores())": fs.execution.sharded(mesh),
    }.items():
        round_fn = fs.make_round(algorithm, execution=strategy)
        arguments: Any = key, state, data
        if name.startswith("sharded"):
            arguments = fs.execution.replicate(arguments, mesh)
        for m, rounds in ROUNDS.items():

            def train(key: Any, state: Any, data: Any, ids: Any, n: int = rounds) -> Any:
                def body(state: Any, _: None) -> Any:
                    return round_fn(key, state, data, fs.Cohort(ids))[0], None  # noqa: B023

                return jax.lax.scan(body, state, None, length=n)[0].params

            compiled = jax.jit(train).lower(*arguments, jnp.arange(m)).compile()
            times = []
            for i in range(REPEATS + 1):
                start = time.perf_counter()
                jax.block_until_ready(compiled(*arguments, jnp.arange(m)))
                times += [(time.perf_counter() - start) / rounds] * (i > 0)
            seconds = statistics.median(times)
            rate = m * EXAMPLES * job.flops() / seconds
            row = f"| {name} | {m} | {seconds * 1e3:.2f} | {rate / 1e9:.0f} | {rate / peak:.0%} |\n"
            print(row, end="", flush=True)
            text += row
    (RECORDS / "FEDSGD.md").write_text(text)


if __name__ == "__main__":
    main()
