"""What wrappers cost: `python -m benchmarks.costs [NAME ...]` writes benchmarks/records/COSTS.md.

A round of FedAvg on the 2NN (K = 100 clients of 600 examples of MNIST's shape, m = 10, B = 10,
E = 1), and the same round with one thing wrapped around it, in seconds of the processor, which
other programs on the machine do not change. The two are run in turn within one process, warm; the
cost is the median of their ratios. `WRAPPED` is the registry: a new wrapper is a line there.
"""

import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs
from benchmarks import RECORDS
from benchmarks.run import machine

K, M, EXAMPLES, SIDE, CLASSES, REPEATS = 100, 10, 600, 28, 10, 7
compressed, compression = fs.compression.compressed, fs.compression


class Wrapped(NamedTuple):
    """Something around FedAvg.

    Attributes:
      wrap: what it makes of an algorithm.
      most: what it may cost, in % of the plain round, if that is promised.
      rule: of aggregation, of the wrapped round and of the plain one beside it.
    """

    wrap: Callable[[fs.FederatedAlgorithm], fs.FederatedAlgorithm]
    most: float | None = None
    rule: Callable[..., Any] = fs.aggregation.selected


def feeding_back(codec: Any) -> Callable[[fs.FederatedAlgorithm], fs.FederatedAlgorithm]:
    return lambda algorithm: compressed(algorithm, codec, error_feedback=True)


def private(algorithm: fs.FederatedAlgorithm) -> fs.FederatedAlgorithm:
    return fs.privacy.central(algorithm, clip=1.0, noise_multiplier=0.0, expected_cohort=M)


def noised(algorithm: fs.FederatedAlgorithm) -> fs.FederatedAlgorithm:
    return fs.privacy.central(algorithm, clip=1.0, noise_multiplier=1.0, expected_cohort=M)


FIXED = fs.aggregation.all_clients  # private sums have a denominator that no client changes
WRAPPED = {
    "top_k(0.01), error feedback": Wrapped(feeding_back(compression.top_k(0.01)), most=40),
    "top_k(0.1), error feedback": Wrapped(feeding_back(compression.top_k(0.1)), most=40),
    "random_k(0.01)": Wrapped(lambda a: compressed(a, compression.random_k(0.01))),
    "quantise(8)": Wrapped(lambda a: compressed(a, compression.quantise(8))),
    "quantise(4, rotated)": Wrapped(lambda a: compressed(a, compression.quantise(4, rotated=True))),
    "sign, error feedback": Wrapped(feeding_back(compression.sign())),
    "drive": Wrapped(lambda a: compressed(a, compression.drive())),
    "quantise(8) down": Wrapped(lambda a: compressed(a, downlink=compression.quantise(8))),
    "privacy.central, clip alone": Wrapped(private, most=5, rule=FIXED),
    "privacy.central, clip and noise": Wrapped(noised, rule=FIXED),
}


def federation() -> fs.FederatedData:
    rng = np.random.default_rng(0)
    examples = {
        "x": rng.random((K * EXAMPLES, SIDE * SIDE), dtype=np.float32),
        "y": rng.integers(0, CLASSES, K * EXAMPLES, dtype=np.int32),
    }
    return fs.FederatedData.from_arrays(examples, np.repeat(np.arange(K), EXAMPLES))


def compiled(
    algorithm: fs.FederatedAlgorithm,
    rule: Callable[..., Any],
    params: Any,
    data: fs.FederatedData,
) -> Callable[[], None]:
    """A function of no argument: the next round, whose state replaces the one before, as in a run.

    The memory of the old state is given to the new one, which else would be a copy of what all K
    clients keep.
    """
    cohort = fs.Cohort(jnp.arange(M, dtype=jnp.int32))
    states, key = [fs.init(algorithm, jax.tree.map(jnp.copy, params), data)], jax.random.key(0)
    round_fn = jax.jit(fs.make_round(algorithm, rule), donate_argnums=1)
    program = round_fn.lower(key, states[0], data, cohort).compile()

    def run() -> None:
        states[0] = jax.block_until_ready(program(key, states[0], data, cohort)[0])

    return run


def seconds(run: Callable[[], Any]) -> float:
    """Of the processor, of all threads."""
    start = time.process_time()
    run()
    return time.process_time() - start


def cost(plain: Callable[[], Any], wrapped: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the plain round, and how much longer the wrapped one takes, in %; medians."""
    plain(), wrapped()
    pairs = [(seconds(plain), seconds(wrapped)) for _ in range(REPEATS)]
    ratio = statistics.median(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), 100 * (ratio - 1)


def main(names: list[str]) -> None:
    model = fs.models.two_nn((SIDE * SIDE,), CLASSES)
    loss_fn = fs.models.cross_entropy(model.apply)
    fedavg = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining(epochs=1, batch_size=10))
    params, data = model.init(jax.random.key(0)), federation()
    rules = {WRAPPED[name].rule for name in names or WRAPPED}
    plain = {rule: compiled(fedavg, rule, params, data) for rule in rules}
    command = " ".join(["python -m benchmarks.costs", *map(shlex.quote, names)])
    lines = [
        "# What wrappers cost",
        "",
        f"`{command}`: a round of FedAvg on the 2NN, K = {K} clients of "
        f"{EXAMPLES} examples of MNIST's shape, m = {M}, B = 10, E = 1, and the same round with "
        f"one thing around it, in turn within one process: seconds of the processor, medians of "
        f"{REPEATS}.",
        "",
        ", ".join(f"{k} {v}" for k, v in machine().items()) + f", jax {jax.__version__}.",
        "",
        "| around FedAvg | ms of the processor, plain | longer, % | at most, % | MB up |",
        "|---|---|---|---|---|",
    ]
    for name in names or WRAPPED:
        wrap, most, rule = WRAPPED[name]
        algorithm = wrap(fedavg)
        base, longer = cost(plain[rule], compiled(algorithm, rule, params, data))
        up = fs.communication(algorithm, params, data).up / 1e6
        promised = "" if most is None else f"{most:g}"
        lines.append(f"| `{name}` | {base * 1e3:.1f} | {longer:.1f} | {promised} | {up:.4f} |")
        print(lines[-1], flush=True)
        (RECORDS / "COSTS.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
