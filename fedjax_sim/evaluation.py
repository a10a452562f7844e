"""Metrics of one model over a federation: overall, and for each client."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, LossFn, Params, PyTree, accumulator
from fedjax_sim.checks import check_count
from fedjax_sim.data import FederatedData, check_data
from fedjax_sim.loss import per_example


class Evaluation(NamedTuple):
    """Means of what the metric function returns, by name ("loss" and its named values).

    Attributes:
      mean: name -> Float[], over all N examples.
      clients: name -> Float[K], over each client's examples; NaN without any.
    """

    mean: dict[str, Array]
    clients: dict[str, Array]


def evaluate(
    metric_fn: LossFn,
    params: Params,
    data: FederatedData,
    *,
    key: Array | None = None,
    batch_size: int = 1024,
) -> Evaluation:
    """The model's loss and metrics on every example, in one pass over the flat data.

    `mean = (1/N) sum_i value_i`, and for client k `(1/n_k) sum_{i of k} value_i`.

    Args:
      metric_fn: as `loss_fn`: (params, batch, key) -> losses[B], or
        (losses[B], {name: values[B]}).
      params: the model.
      data: a federation; a plain test set is one client,
        `fs.FederatedData.from_clients([test])`.
      key: folded by block and handed to metric_fn; None hands it None.
      batch_size: examples at a time, which bounds the memory.

    Raises:
      ValueError: if batch_size < 1, or metric_fn does not return values of shape [B].

    >>> import numpy as np
    >>> data = FederatedData.from_clients([np.array([1.0, 3.0]), np.array([5.0])])
    >>> result = evaluate(lambda params, batch, key: batch - params, 1.0, data)
    >>> float(result.mean["loss"]), result.clients["loss"].tolist()
    (2.0, [1.0, 4.0])
    """
    check_data(data)
    check_count("batch_size", batch_size)
    total = data.total_num_examples
    size = min(batch_size, total)
    blocks = -(-total // size)

    def block(number: Array) -> dict[str, Array]:
        rows = jnp.minimum(number * size + jnp.arange(size, dtype=jnp.int32), total - 1)
        batch: PyTree = jax.tree.map(lambda x: x[rows], data.examples)
        block_key = None if key is None else jax.random.fold_in(key, number)
        values = per_example(metric_fn, params, batch, block_key, "metric_fn")
        return {name: v.astype(accumulator(v.dtype)) for name, v in values.items()}

    values = jax.lax.map(block, jnp.arange(blocks, dtype=jnp.int32))
    values = {name: v.reshape(-1)[:total] for name, v in values.items()}

    rows = jnp.arange(total, dtype=jnp.int32)
    owner = jnp.searchsorted(data.offsets, rows, side="right") - 1

    def by_client(value: Array) -> Array:
        sums = jax.ops.segment_sum(
            value, owner, num_segments=data.num_clients, indices_are_sorted=True
        )
        some = data.num_examples > 0
        sizes = jnp.where(some, data.num_examples, 1).astype(value.dtype)
        return jnp.where(some, sums / sizes, jnp.nan)

    return Evaluation(
        mean={name: jnp.mean(v) for name, v in values.items()},
        clients={name: by_client(v) for name, v in values.items()},
    )
