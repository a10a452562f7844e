"""The aggregation modes: `python -m benchmarks.modes` writes benchmarks/records/MODES.md.

Time, bytes and memory of a round of `selected` and `all_clients`, with the m selected gathered
and with a mask over all K, against K and m. Warm, interleaved, the median of several.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs
from benchmarks import RECORDS
from benchmarks.run import machine

SIZES = ((100, 10), (1000, 10), (1000, 100), (10_000, 10))  # K, m
EXAMPLES, FEATURES, CLASSES = 60, 64, 10
REPEATS, SECONDS = 7, 0.1  # a repetition is as many rounds as fit
RULES = {"selected": fs.aggregation.selected, "all_clients": fs.aggregation.all_clients}
EXECUTIONS = {"vmapped()": fs.execution.vmapped(), "packed(4)": fs.execution.packed(4)}


def cohorts(num_clients: int, m: int) -> dict[str, fs.Cohort]:
    ids = np.sort(np.random.default_rng(0).choice(num_clients, m, replace=False))
    mask = np.zeros(num_clients, bool)
    mask[ids] = True
    gathered = fs.Cohort(jnp.asarray(ids, jnp.int32))
    return {"gathered": gathered, "masked": fs.Cohort(jnp.arange(num_clients), jnp.asarray(mask))}


def cells(num_clients: int, m: int) -> list[dict[str, Any]]:
    """Every rule, form and execution, compiled."""
    rng = np.random.default_rng(1)
    total = num_clients * EXAMPLES
    examples = {
        "x": rng.standard_normal((total, FEATURES), dtype=np.float32),
        "y": rng.integers(0, CLASSES, total, dtype=np.int32),
    }
    data = fs.FederatedData.from_arrays(examples, np.repeat(np.arange(num_clients), EXAMPLES))
    model = fs.models.logistic_regression((FEATURES,), CLASSES)
    loss_fn = fs.models.cross_entropy(model.apply)
    algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    key = jax.random.key(0)
    state = fs.init(algorithm, model.init(key), data)
    exchange = fs.communication(algorithm, state.params, data)
    measured_cells, params = [], []
    for execution, strategy in EXECUTIONS.items():
        for rule, aggregation in RULES.items():
            for form, cohort in cohorts(num_clients, m).items():
                round_fn = jax.jit(fs.make_round(algorithm, aggregation, strategy))
                arguments = key, state, data, cohort
                compiled = round_fn.lower(*arguments).compile()
                new_state, metrics = compiled(*arguments)
                params.append((rule, new_state.params))
                measured_cells.append(
                    {
                        "cell": [str(num_clients), str(m), rule, form, execution],
                        "run": lambda f=compiled, a=arguments: jax.block_until_ready(f(*a)),
                        "bytes": exchange.total(metrics),
                        "memory": compiled.memory_analysis().temp_size_in_bytes,
                        "microseconds": [],
                    }
                )
    check_same(params)
    return measured_cells


def check_same(params: list[tuple[str, Any]]) -> None:
    """A rule's result does not depend on form and execution."""
    first = dict(reversed(params))
    for rule, tree in params:
        for a, b in zip(jax.tree.leaves(first[rule]), jax.tree.leaves(tree), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def microseconds(run: Callable[[], Any], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times * 1e6


def main() -> None:
    lines = [
        "# The aggregation modes",
        "",
        f"`python -m benchmarks.modes`: one round of FedAvg, logistic regression of {FEATURES} "
        f"features and {CLASSES} classes, {EXAMPLES} examples a client, B = 10, E = 1. *Gathered*: "
        "a cohort of the m selected; *masked*: all K with a mask. Both modes and both forms give "
        "the same model to rounding (asserted). Warm, interleaved, medians of "
        f"{REPEATS}; memory is what the compiled round allocates beside its arguments and results.",
        "",
        ", ".join(f"{k} {v}" for k, v in machine().items()) + f", jax {jax.__version__}.",
        "",
        "| K | m | mode | form | execution | us / round | of the gathered `selected` | "
        "bytes down | bytes up | memory, kB |",
        "|" + "---|" * 10,
    ]
    for num_clients, m in SIZES:
        measured_cells = cells(num_clients, m)
        times = [max(1, int(SECONDS * 1e6 / microseconds(c["run"], 1))) for c in measured_cells]
        for _ in range(REPEATS):
            for cell, n in zip(measured_cells, times, strict=True):
                cell["microseconds"].append(microseconds(cell["run"], n))
        medians = [statistics.median(c["microseconds"]) for c in measured_cells]
        for cell, median in zip(measured_cells, medians, strict=True):
            reference = (
                measured_cells.index(cell)
                // (len(measured_cells) // len(EXECUTIONS))
                * (len(measured_cells) // 2)
            )
            down, up = cell["bytes"]
            lines.append(
                "| "
                + " | ".join(cell["cell"])
                + f" | {median:,.0f} | {median / medians[reference]:.2f} | {down:,} | {up:,}"
                + f" | {cell['memory'] / 1e3:,.0f} |"
            )
    text = "\n".join(lines) + "\n"
    (RECORDS / "MODES.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
