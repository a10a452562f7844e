"""Random sparsification, of entries that a shared seed draws: Konecny et al. 2016, "Federated
Learning: Strategies for Improving Communication Efficiency" (arXiv 1610.05492).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from fedjax_sim.core.randomness import permutation_seeds, permute
from fedjax_sim.core.registry import UP_TO_1, Option, declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.types import Array
from fedjax_sim.transforms.compression.codec import Codec, array_by_array
from fedjax_sim.transforms.compression.top_k import check_share, num_sent


@one_line
class Drawn(NamedTuple):
    """Entries of an array, Float[k], and where they are, Int32[k].

    Only the values travel: the indices are what the seed draws on both sides, computed once here.
    """

    values: Array
    indices: Array


@declare(
    "entries drawn at random, of which the values travel and a seed (Konecny et al. 2016)",
    Option("share", "share of the entries of each array that is sent", range=UP_TO_1),
    Option("unbiased", "multiply by d / k, but not for error feedback", default=True, kind=bool),
)
def random_k(share: float, unbiased: bool = True) -> Codec:
    """A codec that sends k entries of each leaf, drawn evenly without replacement.

        decoded = (d / k) x at the entries drawn, 0 elsewhere

    A leaf of d entries sends the values of `k = ceil(share d)` of them, at least one. Which, both
    sides draw from a seed of 8 bytes that travels once for all leaves, and no index does: in
    float32 `4 k` bytes a leaf. The mean of what is decoded is x, and its squared error `d / k - 1`
    times |x|^2.

    Args:
      share: in (0, 1], a Python number, since it decides shapes; read as in `top_k`.
      unbiased: whether values are multiplied by d / k. Errors are fed back without it alone:
        with it, what is held back would be multiplied by 1 - d / k each time that it is sent.

    Raises:
      ValueError: for a share out of range, or traced.

    >>> import jax
    >>> codec, update = random_k(0.5), jnp.ones(4)
    >>> wire, _ = codec.encode(update, codec.init(update), jax.random.key(0))
    >>> sorted(codec.decode(wire).tolist())
    [0.0, 0.0, 2.0, 2.0]
    """
    exact_share = check_share(share)
    if not isinstance(unbiased, bool):
        raise ValueError(f"unbiased must be True or False; got {unbiased!r}")

    def encode(x: Array, key: Array) -> Drawn:
        places = jnp.arange(num_sent(exact_share, x.size), dtype=jnp.int32)
        indices = permute(permutation_seeds(key), places, x.size)
        return Drawn(x[indices], indices)

    def decode(sent: Drawn, size: int, key: Array | None) -> Array:
        values = sent.values * (size / len(sent.values)) if unbiased else sent.values
        zeros = jnp.zeros(size, values.dtype)
        return zeros.at[sent.indices].set(values, unique_indices=True)

    def bits(size: int, dtype: Any) -> int:
        return num_sent(exact_share, size) * 8 * jnp.dtype(dtype).itemsize

    return array_by_array(encode, decode, bits, seeded=True, has_memory=not unbiased)
