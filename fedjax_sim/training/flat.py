"""A federation's examples in blocks of rows, from memory or, within a program, from a disk."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.checks import check_in_32_bits
from fedjax_sim.core.trees import shapes_with
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.data import (
    FederatedData,
    Source,
    check_data,
    check_whole,
    checked_leaves,
    read_clients,
)


class Flat(NamedTuple):
    """The examples of all clients, end to end.

    Attributes:
      data: the federation; of a source with the shapes of its examples.
      arrays: what a block is read of, leaves [N, ...]; () of a source.
      block: (arrays, number, B) -> rows [B, ...]; behind the last example it is repeated.
    """

    data: FederatedData
    arrays: PyTree
    block: Callable[[PyTree, Array, int], PyTree]


def looked_at(data: FederatedData | Source) -> list[PyTree]:
    """The examples that checks look at: all of them, or those of three clients of a source."""
    return data.sample if isinstance(data, Source) else [data.examples]


def check_flat(data: Any, name: str) -> None:
    """Refuses what has not all its examples.

    Raises:
      ValueError: naming the argument; for a source of more examples than 32 bits count.
    """
    if not isinstance(data, Source):
        check_whole(check_data(data, name), name)
    else:
        check_in_32_bits(f"{name} must have", data.total_num_examples, " examples")


def flat(data: FederatedData | Source) -> Flat:
    """The examples in blocks, of what `check_flat` lets pass."""
    total = data.total_num_examples

    def rows(number: Array, size: int) -> Any:
        return jnp.minimum(number * size + jnp.arange(size, dtype=jnp.int32), total - 1)

    if not isinstance(data, Source):

        def held(examples: PyTree, number: Array, size: int) -> PyTree:
            return jax.tree.map(lambda x: x[rows(number, size)], examples)

        return Flat(data, data.examples, held)
    source, whole = data, data.without_examples
    sizes = np.asarray(source.num_examples, np.int64)
    ends = np.cumsum(sizes)
    dtypes = jax.tree.map(lambda x: x.dtype, whole.examples)
    # An operand that a checksum of the program sees, which does not see what is read.
    name = np.frombuffer(hashlib.sha256((source.identity or "").encode()).digest(), np.uint32)

    def block(arrays: PyTree, number: Array, size: int) -> PyTree:
        def read(number: Any, name: Any) -> PyTree:
            first = int(number) * size
            last = min(first + size, total)
            begin, end = np.searchsorted(ends, [first, last - 1], side="right")
            within = np.arange(begin, end + 1)
            ids = within[sizes[within] > 0]
            starts = ends[ids] - sizes[ids]
            own_rows = [slice(max(first - start, 0), last - start) for start in starts]
            parts = [
                [x[own] for x in checked_leaves(source, k, client)]
                for k, own, client in zip(ids, own_rows, read_clients(source, ids), strict=True)
            ]

            def joined(dtype: Any, xs: Sequence[np.ndarray]) -> np.ndarray:
                column = np.concatenate(xs).astype(dtype, copy=False)
                padding = [(0, size - len(column))] + [(0, 0)] * (column.ndim - 1)
                return np.pad(column, padding, mode="edge")

            columns = map(joined, jax.tree.leaves(dtypes), zip(*parts, strict=True))
            return jax.tree.unflatten(jax.tree.structure(dtypes), columns)

        shapes = shapes_with(whole.examples, size)
        return jax.pure_callback(read, shapes, number, name, vmap_method="sequential")

    offsets = jnp.asarray(ends - sizes, jnp.int32)
    return Flat(replace(whole, offsets=offsets), (), block)
