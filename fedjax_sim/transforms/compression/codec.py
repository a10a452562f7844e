"""What a codec is, and how one of arrays becomes one of updates."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.reprs import fields_of, one_line
from fedjax_sim.core.trees import zeros_like
from fedjax_sim.core.types import Array, PyTree, accumulator

_SEED_BITS = 64  # of a key of threefry


class Codec(NamedTuple):
    """How an update, or a model, is sent. Its functions are written for one client.

    Attributes:
      init: update -> residual, what a client holds back before it has sent anything; it depends on
        the shapes and dtypes of `update`, not on its numbers. `no_memory` of a codec whose errors
        are not to be fed back.
      encode: (update, residual, key) -> (wire, residual), what travels, and what is held back now.
        `wire` is any pytree of arrays; `key` is for draws of the codec's own. The new residual has
        the structure, shapes and dtypes of the old.
      decode: wire -> update, of the structure, shapes and dtypes of the one that was encoded.
      bits: update -> the bits that travel, a whole number by its shapes alone, where they are not
        those of the wire's arrays, as below a byte a number; None where they are.
    """

    init: Callable[[PyTree], PyTree]
    encode: Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]]
    decode: Callable[[PyTree], PyTree]
    bits: Callable[[PyTree], int] | None = None

    def __repr__(self) -> str:
        return fields_of(self)


@partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=["shape", "dtype"])
@dataclass(frozen=True, repr=False)
class Sent:
    """What travels of one array.

    Attributes:
      parts: arrays; () of an array without entries.
      shape, dtype: of the array, static: server and client know them, and they do not travel.
    """

    parts: PyTree
    shape: tuple[int, ...]
    dtype: Any

    def __repr__(self) -> str:
        return fields_of(self)


@one_line
class Seeded(NamedTuple):
    """What travels where both sides draw the same numbers: the key for them, and the arrays'."""

    key: Array
    arrays: PyTree


def no_memory(update: PyTree) -> PyTree:
    """`init` of a codec whose errors are not to be fed back: nothing is held back."""
    return ()


def array_by_array(
    encode: Callable[[Array, Array], PyTree],
    decode: Callable[[PyTree, int, Array | None], Array],
    bits: Callable[[int, Any], int] | None = None,
    *,
    seeded: bool = False,
    has_memory: bool = True,
) -> Codec:
    """A codec of updates from one of arrays; what is held back is what decoding does not return.

    Args:
      encode: (x, key) -> the parts that travel of x, Float[d] with d >= 1.
      decode: (parts, d, key) -> Float[d]; the key is that of `encode` if seeded, or None.
      bits: (d, dtype of x) -> the bits that travel, without the seed; None for those of the parts.
      seeded: whether a key travels, one for all arrays.
      has_memory: whether errors may be fed back.
    """

    def keys(key: Array, arrays: list[Any]) -> list[Array]:
        return [jax.random.fold_in(key, number) for number in range(len(arrays))]

    def send(x: Array, key: Array) -> Sent:
        parts = encode(x.reshape(-1), key) if x.size else ()
        return Sent(parts, x.shape, x.dtype)

    def encode_all(update: PyTree, residual: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        owed = jax.tree.map(jnp.add, update, residual) if has_memory else update
        leaves, structure = jax.tree.flatten(owed)
        sent = jax.tree.unflatten(structure, list(map(send, leaves, keys(key, leaves))))
        wire = Seeded(key, sent) if seeded else sent
        if not has_memory:
            return wire, residual
        return wire, jax.tree.map(jnp.subtract, owed, decode_all(wire))

    def decode_all(wire: PyTree) -> PyTree:
        sent, key = (wire.arrays, wire.key) if seeded else (wire, None)
        leaves, structure = jax.tree.flatten(sent, is_leaf=lambda x: isinstance(x, Sent))

        def receive(x: Sent, key: Array | None) -> Array:
            size = math.prod(x.shape)
            flat = decode(x.parts, size, key) if size else jnp.zeros(0)
            return flat.astype(x.dtype).reshape(x.shape)

        own_keys = [None] * len(leaves) if key is None else keys(key, leaves)
        return jax.tree.unflatten(structure, list(map(receive, leaves, own_keys)))

    def count(update: PyTree) -> int:
        assert bits is not None
        several = [bits(x.size, x.dtype) for x in jax.tree.leaves(update) if x.size]
        return sum(several) + (_SEED_BITS if seeded else 0)

    return Codec(
        zeros_like if has_memory else no_memory,
        encode_all,
        decode_all,
        None if bits is None else count,
    )


def bits_of_float(dtype: Any) -> int:
    """Of a number that goes with an array: 32, or 64 with float64."""
    return 8 * jnp.dtype(accumulator(dtype)).itemsize


def widened(x: Array) -> Array:
    """The array in float32 or better, in which codecs compute."""
    return x.astype(accumulator(x.dtype))
