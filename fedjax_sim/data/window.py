"""What reads the examples of some clients, and the rows of a window on them, on the host."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import PyTree
from fedjax_sim.data.checks import (
    as_array,
    check_values,
    check_whole,
    checked_names,
    checked_weights,
    path_name,
)
from fedjax_sim.data.sizes import padded_sizes

if TYPE_CHECKING:
    from fedjax_sim.data.federation import FederatedData


_MOST_ROWS = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False, repr=False)
class Source:
    """A federation of which the examples are elsewhere, as on a disk: `FederatedData.window`.

    Attributes:
      num_examples: Int[K], n_k, of all clients.
      spec: one example's shapes and dtypes, a pytree of `jax.ShapeDtypeStruct`.
      read: ids -> the examples of each, a list of c pytrees of arrays `[n_k, ...]`; the ids are
        Int[c], rising, each once.
      weights: Float[K], p_k up to scale; None for n_k.
      client_names: K different texts; None for none.

    Raises:
      ValueError: for sizes that are none or hold no example, or weights or names that do not fit.

    >>> def read(ids):  # a client's examples are n_k times its number
    ...     return [np.full(k + 1, k, np.float32) for k in ids]
    >>> source = Source(np.arange(4) + 1, jax.ShapeDtypeStruct((), np.float32), read)
    >>> source.total_num_examples, source.read(np.array([1]))[0].tolist()
    (10, [1.0, 1.0])
    """

    num_examples: np.ndarray
    spec: PyTree
    read: Callable[[np.ndarray], Sequence[PyTree]]
    weights: np.ndarray | None = None
    client_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        sizes = np.asarray(self.num_examples)
        if sizes.ndim != 1 or not np.issubdtype(sizes.dtype, np.integer) or (sizes < 0).any():
            raise ValueError(
                "num_examples must be whole numbers, at least 0, one for each client; got "
                f"{sizes.dtype} of shape {sizes.shape}"
            )
        if not sizes.any():
            raise ValueError("num_examples must hold at least one example; all clients are empty")
        checked_weights(self.weights, sizes)
        # A tuple, since it is static in what is compiled for a window.
        names = checked_names(self.client_names, len(sizes))
        object.__setattr__(self, "client_names", names)

    def __repr__(self) -> str:
        return fields_of(self)

    @classmethod
    def of(cls, data: "FederatedData") -> "Source":
        """A federation in memory as a source.

        Raises:
          ValueError: for a window, which does not know the sizes of the clients outside.
        """
        check_whole(data, "data")
        examples = jax.tree.map(np.asarray, data.examples)
        starts, sizes = np.asarray(data.offsets), np.asarray(data.num_examples)

        def read(ids: np.ndarray) -> list[PyTree]:
            return [
                jax.tree.map(lambda x, k=k: x[starts[k] : starts[k] + sizes[k]], examples)
                for k in ids
            ]

        return cls(
            num_examples=sizes,
            spec=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), examples),
            read=read,
            weights=np.asarray(data.client_weights),
            client_names=data.client_names,
        )

    @cached_property
    def client_weights(self) -> np.ndarray:
        """Float[K]."""
        return checked_weights(self.weights, np.asarray(self.num_examples))

    @cached_property
    def padded_sizes(self) -> tuple[int, ...]:
        """As those of the whole federation."""
        return padded_sizes(np.asarray(self.num_examples))

    @cached_property
    def max_num_examples(self) -> int:
        """Of the largest client."""
        return int(np.max(self.num_examples))

    @cached_property
    def total_num_examples(self) -> int:
        """N."""
        return int(np.sum(self.num_examples))


def rows_of(
    source: Source, client_ids: Any, capacity: int
) -> tuple[PyTree, np.ndarray, np.ndarray]:
    """The examples of some clients end to end, padded to the capacity by zeros.

    Returns:
      Leaves `[capacity, ...]`; Int[K], where each client begins; and Int[K], how many it has, 0 of
      those that were not asked for.

    Raises:
      ValueError: as `FederatedData.window`.
    """
    capacity, sizes = check_count("capacity", capacity), np.asarray(source.num_examples)
    if capacity > _MOST_ROWS:
        raise ValueError(f"capacity must be at most {_MOST_ROWS}; got {capacity}")
    ids = np.asarray(client_ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or not len(ids):
        raise ValueError(
            f"client_ids must be integers, the clients of a window; got {ids.dtype} of shape "
            f"{ids.shape}"
        )
    ids = np.unique(ids)
    if ids[0] < 0 or ids[-1] >= len(sizes):
        wrong = ids[0] if ids[0] < 0 else ids[-1]
        raise ValueError(f"client_ids must lie in [0, {len(sizes)}); got {wrong}")
    within = sizes[ids]
    if within.sum() > capacity:
        raise ValueError(
            f"capacity must hold the {within.sum()} examples of these clients; got {capacity}"
        )
    starts = np.cumsum(within) - within
    clients = source.read(ids)
    if len(clients) != len(ids):
        raise ValueError(
            f"source must read as many clients as it is asked for, {len(ids)}; it reads "
            f"{len(clients)}"
        )
    paths, treedef_of_spec = jax.tree_util.tree_flatten_with_path(source.spec)
    treedef: Any = treedef_of_spec
    columns = [np.zeros((capacity, *leaf.shape), leaf.dtype) for _, leaf in paths]
    for k, size, start, examples in zip(ids, within, starts, clients, strict=True):
        leaves, structure = jax.tree.flatten(examples)
        if structure != treedef:
            raise ValueError(
                f"source must read examples of its spec, {treedef}; of client {k} it reads "
                f"{structure}"
            )
        for (path, leaf), column, x in zip(paths, columns, leaves, strict=True):
            array = as_array(x, f"{path_name(path)} of client {k}")
            if array.shape != (size, *leaf.shape) or array.dtype != leaf.dtype:
                raise ValueError(
                    f"source must read {leaf.dtype}{[int(size), *leaf.shape]} for "
                    f"{path_name(path)} of client {k}; it reads {array.dtype}{list(array.shape)}"
                )
            column[start : start + size] = array
    for (path, _), column in zip(paths, columns, strict=True):
        check_values(column[: within.sum()], path_name(path), starts, ids)
    offsets, num_examples = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    offsets[ids], num_examples[ids] = starts, within
    return jax.tree.unflatten(treedef, columns), offsets, num_examples
