"""Codecs: what of a client's update travels, and what the server makes of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.registry import UP_TO_1, Option, declare
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import Array, PyTree


class Codec(NamedTuple):
    """How an update is sent. Its functions are written for one client.

    Attributes:
      init: update -> residual, what a client holds back before it has sent anything; it depends on
        the shapes and dtypes of `update`, not on its numbers.
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


@partial(jax.tree_util.register_dataclass, data_fields=["values", "indices"], meta_fields=["shape"])
@dataclass(frozen=True, repr=False)
class Entries:
    """Some entries of an array, all others being 0.

    Attributes:
      values: Float[k].
      indices: Int32[k], where they are in the flattened array, each once.
      shape: of the array, static: server and client know it, and it does not travel.
    """

    values: Array
    indices: Array
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        return fields_of(self)


@declare(
    "the entries of largest magnitude",
    Option("share", "of the entries of each array", range=UP_TO_1),
)
def top_k(share: float) -> Codec:
    """A codec that sends the k entries of largest magnitude of each leaf, and holds back the rest.

        p = update + residual,   wire = p at its k largest |p|,   residual <- p elsewhere

    A leaf of d entries sends `k = ceil(share d)` of them, at least one, so that each parameter
    array moves however small it is beside the others. An entry is its value and its index, of 4
    bytes: in float32 `8 k` bytes a leaf. Of equal magnitudes the first ones are sent. A NaN counts
    as the largest.

    The residual is zero unless errors are fed back, with which it is the memory of Stich et al.
    2018 (arXiv 1809.07599); the decoded updates and the residual then add up to all updates.

    Args:
      share: in (0, 1], a Python number, since it decides shapes. It is read as the decimal number
        that it prints as: 0.07 of 100 entries are 7.

    Raises:
      ValueError: for a share out of range, or traced.

    >>> import jax.numpy as jnp
    >>> codec, update = top_k(0.5), jnp.array([1.0, -3.0, 0.5, 2.0])
    >>> wire, residual = codec.encode(update, codec.init(update), None)
    >>> codec.decode(wire).tolist(), residual.tolist()
    ([0.0, -3.0, 0.0, 2.0], [1.0, 0.0, 0.5, 0.0])
    """
    is_number = isinstance(share, (int, float, np.integer, np.floating))
    if not is_number or isinstance(share, bool) or not 0 < share <= 1:
        raise ValueError(
            f"share must be a Python number in (0, 1], since it decides shapes; got {share!r}"
        )
    exact_share = Fraction(str(share))

    def largest(x: Array) -> Entries:
        flat = x.reshape(-1)
        number = min(flat.size, max(1, math.ceil(exact_share * flat.size)))
        indices = jax.lax.top_k(jnp.abs(flat), number)[1]
        return Entries(flat[indices], indices, x.shape)

    def without(x: Array, sent: Entries) -> Array:
        # Set to zero and not subtracted, since an infinity that was sent would leave a NaN.
        return x.reshape(-1).at[sent.indices].set(0, unique_indices=True).reshape(x.shape)

    def encode(update: PyTree, residual: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        owed = jax.tree.map(jnp.add, update, residual)
        wire = jax.tree.map(largest, owed)
        return wire, jax.tree.map(without, owed, wire)

    return Codec(init=_zeros, encode=encode, decode=_dense)


def _zeros(update: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, update)


def _dense(wire: PyTree) -> PyTree:
    """The arrays whose entries these are."""

    def of_entries(sent: Any) -> Array:
        zeros = jnp.zeros(math.prod(sent.shape), sent.values.dtype)
        return zeros.at[sent.indices].set(sent.values, unique_indices=True).reshape(sent.shape)

    return jax.tree.map(of_entries, wire, is_leaf=lambda x: isinstance(x, Entries))
