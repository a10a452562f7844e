"""An accelerator in one go: `python -m benchmarks.gpu` writes benchmarks/records/GPU.md.

Correctness against the CPU, times of rounds by lanes, the forms of a convolution, a sweep of 256
configurations, the share of the ceilings that the same run measures, and a PyTorch loop on the
same card where PyTorch is there. With `--small` everything is of a size that a CPU does in a minute
or two, printed, and not recorded: that is how the script itself is tried.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_sim as fs
from benchmarks import RECORDS
from benchmarks.run import machine

CLASSES, SIDE, RATE = 10, 28, 0.05
REPEATS = 5
AGREEMENT = 2e-4  # of the largest change of a parameter, in float32


class Size(NamedTuple):
    """How large everything is."""

    clients: int
    examples: int  # of each client
    cohort: int
    lanes: tuple[int, ...]
    configurations: int
    product: int  # rows and columns of the matrix product that is the ceiling
    copy: int  # bytes of the copy that is the other


WHOLE = Size(1000, 600, 256, (8, 32, 64, 128, 256), 256, 8192, 2**30)
SMALL = Size(20, 40, 8, (1, 4), 8, 512, 2**24)


class Row(NamedTuple):
    """A line of a table."""

    name: str
    value: str


def problem(size: Size, is_image: bool) -> tuple[fs.models.Model, Any, fs.FederatedData]:
    rng = np.random.default_rng(0)
    shape = (SIDE, SIDE, 1) if is_image else (SIDE * SIDE,)
    number = size.clients * size.examples
    examples = {
        "x": rng.random((number, *shape), dtype=np.float32),
        "y": rng.integers(0, CLASSES, number, dtype=np.int32),
    }
    ids = np.repeat(np.arange(size.clients), size.examples)
    model = fs.models.cnn(shape, CLASSES) if is_image else fs.models.two_nn(shape, CLASSES)
    loss_fn = fs.models.cross_entropy(model.apply)
    return model, loss_fn, fs.FederatedData.from_arrays(examples, ids)


def algorithms(loss_fn: Any, local: fs.LocalTraining) -> dict[str, fs.FederatedAlgorithm]:
    sgd = optax.sgd(RATE)
    return {
        "fedavg": fs.fedavg(loss_fn, sgd, local),
        "fedsgd": fs.fedsgd(loss_fn, optax.sgd(RATE)),
        "fedprox": fs.fedprox(loss_fn, sgd, local, mu=0.1),
        "scaffold": fs.scaffold(loss_fn, RATE, local),
        "fednova": fs.fednova(loss_fn, RATE, local),
        "mime": fs.mime(loss_fn, RATE, local),
        "ditto": fs.ditto(loss_fn, sgd, local, lam=0.1),
        "qfedavg": fs.qfedavg(loss_fn, RATE, local, q=1.0),
    }


def agreement(size: Size) -> Iterator[Row]:
    """Two rounds on the accelerator and on the CPU: how far apart the models are."""
    few = size._replace(clients=8, examples=25, cohort=4)
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    for is_image in (False, True):
        model, loss_fn, _ = problem(few, is_image)
        local = fs.LocalTraining(epochs=1, batch_size=10)
        tried = algorithms(loss_fn, local)
        if is_image:  # the convolutions are the same in all of them
            tried = {"fedavg": tried["fedavg"]}
        for name, algorithm in tried.items():
            first = model.init(jax.random.key(0))
            models = []
            for place in (device, cpu):
                with jax.default_device(place):
                    _, _, data = problem(few, is_image)
                    models.append(trained(algorithm, jax.device_get(first), data, few.cohort))
            moved = max(np.abs(x - y).max() for x, y in leaves_of(models[1], first))
            apart = max(np.abs(x - y).max() for x, y in leaves_of(*models)) / max(moved, 1e-12)
            words = f"{apart:.1e} of the largest change"
            yield Row(f"{name}, {'CNN' if is_image else '2NN'}", words)
            if apart > AGREEMENT:
                raise SystemExit(f"{name}: the models differ by {words}; allowed is {AGREEMENT}")


def trained(algorithm: Any, params: Any, data: Any, cohort: int) -> Any:
    round_fn = jax.jit(fs.make_round(algorithm))
    state, key = fs.init(algorithm, params, data), jax.random.key(0)
    for _ in range(2):
        state, _ = round_fn(key, state, data, fs.Cohort(jnp.arange(cohort, dtype=jnp.int32)))
    return jax.device_get(state.params)


def leaves_of(tree: Any, other: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return ((np.asarray(x), np.asarray(y)) for x, y in pairs)


def seconds_of(run: Callable[[], Any]) -> float:
    """The median of warm repetitions."""
    jax.block_until_ready(run())
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ceilings(size: Size) -> tuple[float, float]:
    """Flop/s of a matrix product in float32, and bytes/s of a copy, read and written."""
    a = jnp.ones((size.product, size.product))
    product = jax.jit(lambda a: a @ a)
    flops = 2 * size.product**3 / seconds_of(lambda: product(a))
    x = jnp.ones(size.copy // 4)
    copy = jax.jit(lambda x: x + 1)
    return flops, 2 * size.copy / seconds_of(lambda: copy(x))


def rounds(size: Size, flops: float, copied: float) -> Iterator[Row]:
    """A round of the 2NN and of the CNN, by strategy."""
    strategies = {f"packed({n})": fs.execution.packed(n) for n in size.lanes}
    strategies |= {"vmapped()": fs.execution.vmapped(), "automatic()": fs.execution.automatic()}
    local = fs.LocalTraining(epochs=1, batch_size=10)
    for is_image in (False, True):
        model, loss_fn, data = problem(size, is_image)
        params = model.init(jax.random.key(0))
        num_params = sum(x.size for x in jax.tree.leaves(params))
        cohort, key = fs.Cohort(jnp.arange(size.cohort, dtype=jnp.int32)), jax.random.key(0)
        steps = size.cohort * -(-size.examples // 10)
        for name, strategy in strategies.items():
            algorithm = fs.fedavg(loss_fn, optax.sgd(RATE), local)
            state = fs.init(algorithm, params, data)
            round_fn = jax.jit(fs.make_round(algorithm, execution=strategy))
            seconds = seconds_of(partial(round_fn, key, state, data, cohort))
            words = f"{1e6 * seconds / steps:.2f} us a client-step"
            if not is_image:  # of dense layers six operations an example and parameter
                done = 6 * num_params * size.cohort * size.examples / seconds
                # A step reads and writes a client's model, and reads its gradient.
                moved = 12 * num_params * steps / seconds
                words += f", {done / flops:.1%} of the product, {moved / copied:.1%} of the copy"
            yield Row(f"{'CNN' if is_image else '2NN'}, {name}", words)


def convolutions(size: Size) -> Iterator[Row]:
    """The gradient of 5x5 convolutions of clients side by side, each with kernels of its own."""
    lanes = size.lanes[-1]
    x = jnp.ones((lanes, 10, 14, 14, 32))
    kernels = jnp.ones((lanes, 5, 5, 32, 64))

    def of_package(x: Any, kernel: Any) -> Any:
        return fs.nn.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def of_xla(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    for name, convolve in (("the package's form", of_package), ("XLA's grouped form", of_xla)):

        def total(x: Any, kernels: Any, convolve: Any = convolve) -> Any:
            return jnp.sum(jax.vmap(convolve)(x, kernels) ** 2)

        gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
        seconds = seconds_of(lambda g=gradient: g(x, kernels))
        yield Row(f"{lanes} clients, {name}", f"{1e3 * seconds:.2f} ms")


def sweep(size: Size) -> Iterator[Row]:
    """Learning rates of the 2NN side by side: five rounds of each in one call."""
    few = size._replace(clients=max(20, size.clients // 10), cohort=4)
    model, loss_fn, data = problem(few, False)
    local, key = fs.LocalTraining(epochs=1, batch_size=10), jax.random.key(0)
    params = model.init(key)

    def run(rate: Any) -> Any:
        algorithm = fs.fedavg(loss_fn, optax.sgd(rate), local)
        state = fs.init(algorithm, params, data)
        sampler = fs.sampling.uniform(few.cohort)
        return fs.run(fs.make_round(algorithm), key, state, data, sampler, 5)[1].rounds.train

    rates = jnp.geomspace(1e-3, 1, size.configurations)
    side_by_side = min(32, size.configurations)
    program = jax.jit(lambda rates: jax.lax.map(run, rates, batch_size=side_by_side))
    seconds = seconds_of(lambda: program(rates))
    steps = size.configurations * 5 * few.cohort * -(-few.examples // 10)
    words = f"{seconds:.2f} s, {1e6 * seconds / steps:.2f} us a client-step"
    yield Row(f"{size.configurations} configurations", words)


def pytorch(size: Size) -> Iterator[Row]:
    """The same round of the 2NN as a loop over clients, on the same card."""
    if importlib.util.find_spec("torch") is None:
        yield Row("2NN, PyTorch loop", "not measured: PyTorch is not installed here")
        return
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    few = size._replace(cohort=min(size.cohort, 16))
    _, _, data = problem(few, False)
    x = torch.tensor(np.asarray(data.examples["x"]), device=device)
    y = torch.tensor(np.asarray(data.examples["y"]), device=device).long()
    layers = [torch.nn.Linear(a, b) for a, b in ((784, 200), (200, 200), (200, CLASSES))]
    net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2]).to(
        device
    )

    def round_of_clients() -> None:
        first = [p.detach().clone() for p in net.parameters()]
        total = [torch.zeros_like(p) for p in first]
        for k in range(few.cohort):
            for p, w in zip(net.parameters(), first, strict=True):
                p.data.copy_(w)
            optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
            order = torch.randperm(few.examples, device=device) + k * few.examples
            for block in order.split(10):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(x[block]), y[block]).backward()
                optimizer.step()
            for t, p in zip(total, net.parameters(), strict=True):
                t += p.detach() / few.cohort
        for p, t in zip(net.parameters(), total, strict=True):
            p.data.copy_(t)
        if device == "cuda":
            torch.cuda.synchronize()

    steps = few.cohort * -(-few.examples // 10)
    seconds = seconds_of(round_of_clients)
    yield Row(f"2NN, PyTorch loop ({device})", f"{1e6 * seconds / steps:.2f} us a client-step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a trial, which is not recorded")
    options = parser.parse_args()
    device = jax.devices()[0]
    if device.platform == "cpu" and not options.small:
        raise SystemExit("there is no accelerator that JAX sees; --small tries the script")
    size = SMALL if options.small else WHOLE
    flops, copied = ceilings(size)
    tables = {
        "Agreement with the CPU": agreement(size),
        "Rounds": rounds(size, flops, copied),
        "Convolutions": convolutions(size),
        "A sweep": sweep(size),
        "Beside it": pytorch(size),
    }
    facts = ", ".join(f"{name} {value}" for name, value in machine().items())
    lines = [
        "# An accelerator",
        "",
        f"`python -m benchmarks.gpu` on {device.device_kind}. {facts}.",
        "",
        f"Ceilings of the run: {flops / 1e12:.2f} Tflop/s of a product of {size.product} rows and "
        f"columns in float32, {copied / 1e9:.0f} GB/s of a copy.",
    ]
    for title, table in tables.items():
        lines += ["", f"## {title}", "", "| | |", "|---|---|"]
        for row in table:
            print(f"{row.name}: {row.value}", flush=True)
            lines.append(f"| {row.name} | {row.value} |")
    if not options.small:
        (RECORDS / "GPU.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
