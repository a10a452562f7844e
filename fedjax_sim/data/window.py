"""The rows of a window on some clients, read on the host."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.checks import check_count, check_in_32_bits
from fedjax_sim.core.trees import num_bytes
from fedjax_sim.core.types import PyTree
from fedjax_sim.data.checks import as_array, check_values, path_name
from fedjax_sim.data.source import Source

_USUAL_BYTES = 2**28  # of a window's examples, where nobody says how many it holds
_ALIGNMENT = 64  # bytes


def usual_rows(source: Source) -> int:
    """Rows of a window of 256 MiB, or all of the source; what one round reads may be more."""
    return max(1, min(source.total_num_examples, _USUAL_BYTES // max(num_bytes(source.spec), 1)))


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
    check_in_32_bits("capacity must be", capacity)
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
    offsets, num_examples = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    offsets[ids], num_examples[ids] = np.cumsum(within) - within, within
    return read_rows(source, ids, capacity), offsets, num_examples


def read_rows(source: Source, ids: np.ndarray, capacity: int) -> PyTree:
    """Leaves `[capacity, ...]`, the examples of these clients end to end, and zeros behind them.

    Args:
      ids: Int[c], rising, each once; nothing is read of none.
      capacity: at least as many rows as they have examples.

    Raises:
      ValueError: for what the source reads if it is not of its spec, of other numbers than it
        says, or not finite.
    """
    within = np.asarray(source.num_examples)[ids]
    starts = np.cumsum(within) - within
    clients = read_clients(source, ids)
    paths, treedef_of_spec = jax.tree_util.tree_flatten_with_path(source.spec)
    treedef: Any = treedef_of_spec
    columns = [_aligned_zeros((capacity, *leaf.shape), leaf.dtype) for _, leaf in paths]
    for k, size, start, examples in zip(ids, within, starts, clients, strict=True):
        for column, x in zip(columns, checked_leaves(source, k, examples), strict=True):
            column[start : start + size] = x
    for (path, _), column in zip(paths, columns, strict=True):
        check_values(column[: within.sum()], path_name(path), starts, ids)
    return jax.tree.unflatten(treedef, columns)


def read_clients(source: Source, ids: np.ndarray) -> Sequence[PyTree]:
    """What the source reads of these clients; nothing is asked for of none.

    Raises:
      ValueError: if they are not as many.
    """
    clients = source.read(ids) if len(ids) else ()
    if len(clients) != len(ids):
        raise ValueError(
            f"source must read as many clients as it is asked for, {len(ids)}; it reads "
            f"{len(clients)}"
        )
    return clients


def checked_leaves(source: Source, client_id: int, examples: PyTree) -> list[np.ndarray]:
    """The arrays [n_k, ...] that a source reads of one client, in the order of its spec.

    Raises:
      ValueError: for what is not of the spec, or of other numbers than it says.
    """
    paths, treedef_of_spec = jax.tree_util.tree_flatten_with_path(source.spec)
    treedef: Any = treedef_of_spec
    leaves, structure = jax.tree.flatten(examples)
    if structure != treedef:
        raise ValueError(
            f"source must read examples of its spec, {treedef}; of client {client_id} it reads "
            f"{structure}"
        )
    size, arrays = int(source.num_examples[client_id]), list[np.ndarray]()
    for (path, leaf), x in zip(paths, leaves, strict=True):
        array = as_array(x, f"{path_name(path)} of client {client_id}")
        if array.shape != (size, *leaf.shape) or array.dtype != leaf.dtype:
            raise ValueError(
                f"source must read {leaf.dtype}{[size, *leaf.shape]} for {path_name(path)} of "
                f"client {client_id}; it reads {array.dtype}{list(array.shape)}"
            )
        arrays.append(array)
    return arrays


def _aligned_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that begin where XLA's arrays on a CPU do, so that they become one without a copy.

    To copy 94 MB took 48 ms of CPU, as long as to read them.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)
