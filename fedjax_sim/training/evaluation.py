"""Metrics of one model over a federation: overall, for each client, and how they spread."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_sim.core.checks import check_count, check_takes
from fedjax_sim.core.loss import check_metric, per_example
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.sums import of_stretches
from fedjax_sim.core.types import Array, FederatedState, LossFn, Params, PyTree, accumulator
from fedjax_sim.data import FederatedData, Source
from fedjax_sim.execution.mapped import map_over_devices
from fedjax_sim.execution.placing import check_mesh_or_none
from fedjax_sim.training.flat import check_flat, flat, looked_at


class Evaluation(NamedTuple):
    """Means of what the metric function returns, by name ("loss" and its named values).

    Attributes:
      mean: name -> Float[], over all N examples.
      clients: name -> Float[K], over each client's examples; NaN without any.
    """

    mean: dict[str, Array]
    clients: dict[str, Array]

    def __repr__(self) -> str:
        return fields_of(self)


def evaluate(
    metric_fn: LossFn,
    params: Params,
    data: FederatedData | Source,
    *,
    key: Array | None = None,
    batch_size: int = 1024,
    mesh: Mesh | None = None,
) -> Evaluation:
    """The model's loss and metrics on every example, in one pass over the flat data.

    `mean = (1/N) sum_i value_i`, and for client k `(1/n_k) sum_{i of k} value_i`. Outside of
    `jax.jit` each call traces anew, in a tenth of a second or more.

    Args:
      metric_fn: as `loss_fn`: (params, batch, key) -> losses[B], or
        (losses[B], {name: values[B]}).
      params: the model.
      data: a federation; a plain test set is one client,
        `fs.FederatedData.from_clients([test])`. A `Source` is read block by block, with the bits
        of the same in memory, which then holds a number for each example and no examples.
      key: folded by block and handed to metric_fn; None hands it None.
      batch_size: examples at a time, on each device, which bounds the memory.
      mesh: over whose devices the blocks are dealt, as `fs.execution.cores()` makes one; None for
        one device. Examples have the same values. Place params and data by `replicate`.

    Raises:
      ValueError: if batch_size < 1, mesh is not a `jax.sharding.Mesh` or has several axes of which
        none is named "clients", metric_fn does not return values of shape [B] or mixes the examples
        of a block, as a batch norm does and `fs.init` refuses, too, or, of a loss from `fs.models`,
        the examples do not fit the model: a label that is none of its classes.

    >>> import numpy as np
    >>> data = FederatedData.from_clients([np.array([1.0, 3.0]), np.array([5.0])])
    >>> result = evaluate(lambda params, batch, key: batch - params, 1.0, data)
    >>> float(result.mean["loss"]), result.clients["loss"].tolist()
    (2.0, [1.0, 4.0])
    """
    batch_size = check_count("batch_size", batch_size)
    check_takes("metric_fn", metric_fn, "params", "batch", "key")
    check_mesh_or_none(mesh)
    if isinstance(params, FederatedState):
        raise ValueError("params must be a model's params, as state.params; got the state itself")
    check_flat(data, "data")
    for examples in looked_at(data):
        check_metric(metric_fn, params, examples, key, "data")
    data, arrays, block_of = flat(data)
    total = data.total_num_examples
    size = min(batch_size, total)
    blocks = -(-total // size)

    def block(number: Array, params: Params, arrays: PyTree, key: Array | None) -> dict[str, Array]:
        batch = block_of(arrays, number, size)
        block_key = None if key is None else jax.random.fold_in(key, number)
        values = per_example(metric_fn, params, batch, block_key, "metric_fn")
        return {name: v.astype(accumulator(v.dtype)) for name, v in values.items()}

    numbers = jnp.arange(blocks, dtype=jnp.int32)
    values = map_over_devices(block, numbers, (params, arrays, key), mesh)
    values = {name: v.reshape(-1)[:total] for name, v in values.items()}

    def by_client(value: Array) -> Array:
        sums = of_stretches(value, data.offsets, data.num_examples, data.max_num_examples)
        has_examples = data.num_examples > 0
        sizes = jnp.where(has_examples, data.num_examples, 1).astype(value.dtype)
        return jnp.where(has_examples, ratio_rounded_once(sums, sizes), jnp.nan)

    return Evaluation(
        mean={
            name: ratio_rounded_once(jnp.sum(v), jnp.array(total, v.dtype))
            for name, v in values.items()
        },
        clients={name: by_client(v) for name, v in values.items()},
    )


def ratio_rounded_once(sums: Array, sizes: Array) -> Array:
    """`sums / sizes`, Float[...] of two that broadcast, each rounded once.

    XLA would multiply by the reciprocal of sizes that it knows, or of one size of many sums under
    `vmap`: 9700 of 10,000 right would be an accuracy below 0.97, and not reach that target.
    """
    return sums / jax.lax.optimization_barrier(jnp.where(sums == sums, sizes, sizes))


class ClientStatistics(NamedTuple):
    """How a metric spreads over the clients that have it; Float[] each.

    All are NaN if none has it or a value is not finite.

    Attributes:
      mean: over clients, each counting once.
      weighted_mean: over clients by weight; NaN if theirs are all zero.
      std: standard deviation over clients, `sqrt(mean((v - mean)^2))`.
      worst_tenth: the mean of the worst ceil(n / 10) clients.
      p10: the 10th percentile, interpolated linearly.
      p50: the median.
      p90: the 90th percentile.
      jain: Jain's index of fairness, `(sum v)^2 / (n sum v^2)`: 1 where all are equal, 1/n where
        one has all (Jain, Chiu and Hawe 1984).
    """

    mean: Array
    weighted_mean: Array
    std: Array
    worst_tenth: Array
    p10: Array
    p50: Array
    p90: Array
    jain: Array

    def __repr__(self) -> str:
        return fields_of(self)


def client_statistics(
    values: Array, weights: Array, has: Array, *, higher_is_better: bool = True
) -> ClientStatistics:
    """`ClientStatistics` of Float[K] values, of the clients with `has`.

    Args:
      values: Float[K], one for each client.
      weights: Float[K], not negative, p_k up to scale.
      has: Bool[K], the clients that count, as `data.num_examples > 0`.
      higher_is_better: whether the worst are the lowest (accuracy) or the highest (loss).

    Raises:
      ValueError: if the shapes differ.

    >>> v = jnp.array([1.0, 3.0, jnp.nan])
    >>> stats = client_statistics(v, jnp.array([3.0, 1.0, 0.0]), jnp.array([True, True, False]))
    >>> float(stats.mean), float(stats.weighted_mean), float(stats.std), float(stats.worst_tenth)
    (2.0, 1.5, 1.0, 1.0)
    """
    values, weights, has = jnp.asarray(values), jnp.asarray(weights), jnp.asarray(has)
    if not values.ndim == 1 or not values.shape == weights.shape == has.shape:
        raise ValueError(
            "values, weights and has must have shape [K]; got "
            f"{values.shape}, {weights.shape} and {has.shape}"
        )
    dtype = accumulator(values.dtype)
    values, weights = values.astype(dtype), weights.astype(dtype)
    count = jnp.sum(has, dtype=jnp.int32)
    num_or_1 = jnp.maximum(count, 1).astype(dtype)

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(has, x, 0))

    mean = total(values) / num_or_1
    weight = total(weights)
    squares = total(values**2)
    ordered = jnp.sort(jnp.where(has, values, jnp.inf))  # those without come last

    def percentile(q: float) -> Array:
        place = q * (num_or_1 - 1)
        low = jnp.floor(place).astype(jnp.int32)
        high = jnp.minimum(low + 1, jnp.maximum(count - 1, 0))
        return ordered[low] + (place - low.astype(dtype)) * (ordered[high] - ordered[low])

    tenth = -(-count // 10)
    place = jnp.arange(len(values), dtype=jnp.int32)
    worst = place < tenth if higher_is_better else (place >= count - tenth) & (place < count)
    statistics = ClientStatistics(
        mean=mean,
        weighted_mean=jnp.where(
            weight > 0, total(weights * values) / jnp.where(weight > 0, weight, 1), jnp.nan
        ),
        std=jnp.sqrt(total((values - mean) ** 2) / num_or_1),
        worst_tenth=jnp.sum(jnp.where(worst, ordered, 0)) / jnp.maximum(tenth, 1).astype(dtype),
        p10=percentile(0.1),
        p50=percentile(0.5),
        p90=percentile(0.9),
        jain=jnp.where(  # clients that all have 0 are equal
            squares > 0, total(values) ** 2 / jnp.where(squares > 0, num_or_1 * squares, 1), 1
        ),
    )
    is_measured = (count > 0) & jnp.all(jnp.where(has, jnp.isfinite(values), True))
    return jax.tree.map(lambda x: jnp.where(is_measured, x, jnp.nan), statistics)
