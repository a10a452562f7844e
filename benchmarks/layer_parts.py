"""Parts of layers by themselves, each figure for `benchmarks.layers`: the smallest of repeats."""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

BATCH = 10
PRODUCTS = (  # clients, rows, inputs, units
    (1, 10, 784, 10),
    (1, 600, 784, 10),
    (10, 10, 784, 10),
    (1, 10, 784, 200),
    (1, 10, 200, 200),
    (10, 10, 200, 200),
    (1, 50, 784, 200),
    (1, 600, 784, 200),
    (1, 10, 256, 1024),
    (1, 800, 256, 1024),
    (1, 800, 256, 86),
)


def smallest(run: Callable[[], Any], repeats: int = 5) -> float:
    import jax

    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def step_of_sgd(loss_fn: Any) -> Callable[[Any, Any], Any]:
    """(params, batch) -> the parameters after a step."""
    import jax
    import jax.numpy as jnp

    def step(params: Any, batch: Any) -> Any:
        gradient = jax.grad(lambda p: jnp.mean(loss_fn(p, batch, None)[0]))(params)
        return jax.tree.map(lambda w, g: w - 0.01 * g, params, gradient)

    return step


def pooling() -> dict[str, float]:
    """Microseconds for value and gradient at the CNN's first pool."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    import fedjax_sim as fs

    x = jax.random.normal(jax.random.key(0), (BATCH, 28, 28, 32))
    pools = {
        "max, ours": lambda x: fs.nn.max_pool(x, (2, 2), (2, 2)),
        "max, flax's": lambda x: nn.max_pool(x, (2, 2), (2, 2)),
        "average, flax's": lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
    }
    us_of = {}
    for name, pool in pools.items():
        forward_and_back = jax.jit(
            lambda x, pool=pool: jax.vjp(pool, x)[1](jnp.ones((BATCH, 14, 14, 32)))
        )
        jax.block_until_ready(forward_and_back(x))

        def twenty(forward_and_back: Any = forward_and_back) -> Any:
            for _ in range(20):  # one result at a time, or it is memory that is measured
                result = forward_and_back(x)
            return result

        us_of[name] = smallest(twenty) / 20 * 1e6
    return us_of


def _on_one_core() -> None:
    """As a device of `cores()` has; before JAX starts."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _ms_and_gflops(part: Any, arguments: tuple[Any, ...], flops: float) -> list[float]:
    import jax

    run = partial(jax.jit(part), *arguments)
    jax.block_until_ready(run())
    seconds = smallest(run, 20)
    return [seconds * 1e3, flops / seconds / 1e9]


def step_of_cnn() -> dict[str, list[float]]:
    """Milliseconds and GFLOP/s, on one core, of the parts of a step of McMahan's CNN."""
    _on_one_core()
    import jax
    import jax.numpy as jnp
    import numpy as np

    import fedjax_sim as fs

    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return jnp.asarray(rng.standard_normal(shape, dtype=np.float32) / 30)

    def conv(x: Any, w: Any) -> Any:
        return fs.nn.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def product(x: Any, w: Any) -> Any:
        return fs.nn.dot_general(x, w, (((1,), (0,)), ((), ())))

    layers: tuple[tuple[str, Any, Any, Any, int], ...] = (
        ("[28, 28, 1] to 32", conv, draw(BATCH, 28, 28, 1), draw(5, 5, 1, 32), 28 * 28),
        ("[14, 14, 32] to 64", conv, draw(BATCH, 14, 14, 32), draw(5, 5, 32, 64), 14 * 14),
        ("3136 to 512", product, draw(BATCH, 3136), draw(3136, 512), 1),
    )
    parts: dict[str, tuple[Any, tuple[Any, ...], float]] = {}
    for name, layer, x, w, positions in layers:
        flops = 2.0 * BATCH * positions * w.size
        y = layer(x, w)

        def to_inputs(w: Any, y: Any, x: Any = x, layer: Any = layer) -> Any:
            return jax.linear_transpose(lambda x: layer(x, w), x)(y)[0]

        def step(w: Any, x: Any, y: Any, layer: Any = layer) -> Any:
            return w - jax.vjp(lambda w: layer(x, w), w)[1](y)[0] / 100

        parts[f"{name}, forward"] = layer, (x, w), flops
        if x.shape[-1] > 1:  # images have no gradient
            parts[f"{name}, gradient of the inputs"] = to_inputs, (w, y), flops
        parts[f"{name}, gradient of the kernel and its step"] = step, (w, x, y), flops
    model = fs.models.cnn((28, 28, 1), 10)
    whole = step_of_sgd(fs.models.cross_entropy(model.apply))
    batch = {"x": draw(BATCH, 28, 28, 1), "y": jnp.arange(BATCH, dtype=jnp.int32)}
    total = sum(flops for _, _, flops in parts.values())
    parts["the whole step"] = whole, (model.init(jax.random.key(0)), batch), total
    parts["a product of 1000 x 1000 matrices"] = jnp.matmul, (jnp.ones((1000, 1000)),) * 2, 2e9
    return {name: _ms_and_gflops(*part) for name, part in parts.items()}


def recurrence() -> dict[str, list[float]]:
    """Milliseconds and GFLOP/s, on one core, of the parts of a layer of LSTM with 256 units."""
    _on_one_core()
    import jax
    import jax.numpy as jnp

    import fedjax_sim as fs

    units, length = 256, 80
    keys = jax.random.split(jax.random.key(0), 4)
    x, g = (jax.random.normal(k, (length, BATCH, n)) for k, n in ((keys[0], 256), (keys[1], 1024)))
    w = 0.05 * jax.random.normal(keys[2], (units, 4 * units))
    zeros, bias = jnp.zeros((BATCH, units)), jnp.zeros(4 * units)

    def forward(g: Any, w: Any) -> Any:
        return jax.lax.scan(lambda h, z: ((z + h @ w)[:, :units], None), zeros, g)[0]

    def backward(g: Any, w: Any) -> Any:
        back = w.T
        return jax.lax.scan(lambda h, z: ((z + jnp.tile(h, (1, 4))) @ back, None), zeros, g)[0]

    def gates(g: Any, w: Any) -> Any:
        def step(c: Any, z: Any) -> Any:
            i, f, new, o = jnp.split(jnp.tanh(z), 4, axis=-1)
            c = f * c + i * new
            return c, o * jnp.tanh(c)

        return jax.lax.scan(step, zeros, g)

    def layer(x: Any, w: Any) -> Any:
        return jnp.sum(fs.nn.lstm(jnp.swapaxes(x, 0, 1), w, w, bias)[0] ** 2)

    product = 2 * BATCH * length * units * 4 * units
    parts: dict[str, tuple[Any, tuple[Any, Any], float]] = {
        "x W of all steps, one product": (lambda x, w: x.reshape(-1, units) @ w, (x, w), product),
        "x^T d of all steps, one product": (
            lambda x, g: x.reshape(-1, units).T @ g.reshape(-1, 4 * units),
            (x, g),
            product,
        ),
        "h U, step by step": (forward, (g, w), product),
        "d U^T, step by step": (backward, (g, w), product),
        "the gates, step by step": (gates, (g, w), 0),
        "the layer, forward": (layer, (x, w), 2 * product),
        "the layer, forward and all gradients": (jax.grad(layer, (0, 1)), (x, w), 6 * product),
        "a product of 1000 x 1000 matrices": (jnp.matmul, (jnp.ones((1000, 1000)),) * 2, 2e9),
    }
    return {name: _ms_and_gflops(*part) for name, part in parts.items()}


def dense() -> dict[str, list[float]]:
    """Microseconds of a step that adds x^T d to W, in a scan: lax's own product, and ours."""
    _on_one_core()
    import jax
    import jax.numpy as jnp
    import numpy as np

    import fedjax_sim as fs

    def train(product: Any, clients: int, steps: int) -> Any:
        def step(w: Any, x: Any, d: Any) -> Any:
            y = lambda w: product(x, w, (((1,), (0,)), ((), ())))
            return w - jax.vjp(y, w)[1](d)[0] / 100

        def all_steps(w: Any, x: Any, d: Any) -> Any:
            return jax.vmap(step)(w, x, d) if clients > 1 else step(w[0], x[0], d[0])[None]

        def body(carry: Any, _: None) -> Any:
            w, x, d = carry  # all change, so that nothing is hoisted out of the loop
            return (all_steps(w, x, d), x * 0.999, d * 0.999), None

        return jax.jit(lambda *arrays: jax.lax.scan(body, arrays, length=steps)[0])

    us_of = {}
    for clients, rows, inputs, units in PRODUCTS:
        rng = np.random.default_rng(0)
        shapes = ((inputs, units), (rows, inputs), (rows, units))
        arrays = [rng.standard_normal((clients, *s), dtype=np.float32) / 30 for s in shapes]
        steps = max(20, int(1.5e9 / (clients * rows * inputs * units)))
        label = f"{clients} x " * (clients > 1) + f"[{rows}, {inputs}] by [{inputs}, {units}]"
        us_of[label] = []
        for product in (jax.lax.dot_general, fs.nn.dot_general):
            run = partial(train(product, clients, steps), *map(jnp.asarray, arrays))
            jax.block_until_ready(run())
            us_of[label].append(smallest(run, 9) / steps * 1e6)
    return us_of
