"""The entries of largest magnitude: Stich et al. 2018, "Sparsified SGD with Memory"
(arXiv 1809.07599).
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.registry import UP_TO_1, Option, declare
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.trees import zeros_like
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.transforms.compression.codec import Codec


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
    "the entries of largest magnitude (Stich et al. 2018)",
    Option("share", "share of the entries of each array that is sent", range=UP_TO_1),
)
def top_k(share: float) -> Codec:
    """A codec that sends the k entries of largest magnitude of each leaf, and holds back the rest.

        p = update + residual,   wire = p at its k largest |p|,   residual <- p elsewhere

    A leaf of d entries sends `k = ceil(share d)` of them, at least one, so that each parameter
    array moves however small it is beside the others. An entry is its value and its index, of 4
    bytes: in float32 `8 k` bytes a leaf. Of equal magnitudes the first ones are sent. A NaN counts
    as the largest.

    The residual is zero unless errors are fed back, with which it is the memory of Stich et al.;
    the decoded updates and the residual then add up to all updates.

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
    exact_share = check_share(share)

    def largest(x: Array) -> Entries:
        flat = x.reshape(-1)
        indices = jax.lax.top_k(jnp.abs(flat), num_sent(exact_share, flat.size))[1]
        return Entries(flat[indices], indices, x.shape)

    def without(x: Array, sent: Entries) -> Array:
        # Set to zero and not subtracted, since an infinity that was sent would leave a NaN.
        return x.reshape(-1).at[sent.indices].set(0, unique_indices=True).reshape(x.shape)

    def encode(update: PyTree, residual: PyTree, key: Array) -> tuple[PyTree, PyTree]:
        owed = jax.tree.map(jnp.add, update, residual)
        wire = jax.tree.map(largest, owed)
        return wire, jax.tree.map(without, owed, wire)

    return Codec(init=zeros_like, encode=encode, decode=_dense)


def check_share(share: Any) -> Fraction:
    """The share as the decimal number that it prints as; refuses what is none in (0, 1].

    Raises:
      ValueError: saying what was given.
    """
    is_number = isinstance(share, (int, float, np.integer, np.floating))
    if not is_number or isinstance(share, bool) or not 0 < share <= 1:
        raise ValueError(
            f"share must be a Python number in (0, 1], since it decides shapes; got {share!r}"
        )
    return Fraction(str(share))


def num_sent(share: Fraction, size: int) -> int:
    """How many of an array's entries travel: at least one of those that there are."""
    return min(size, max(1, math.ceil(share * size)))


def _dense(wire: PyTree) -> PyTree:
    """The arrays whose entries these are."""

    def of_entries(sent: Any) -> Array:
        zeros = jnp.zeros(math.prod(sent.shape), sent.values.dtype)
        return zeros.at[sent.indices].set(sent.values, unique_indices=True).reshape(sent.shape)

    return jax.tree.map(of_entries, wire, is_leaf=lambda x: isinstance(x, Entries))
