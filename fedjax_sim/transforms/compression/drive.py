"""DRIVE: Vargaftik et al. 2021, "DRIVE: One-bit Distributed Mean Estimation" (arXiv 2105.08339)."""

import jax.numpy as jnp

from fedjax_sim.core.registry import declare
from fedjax_sim.core.types import Array
from fedjax_sim.transforms.compression.codec import Codec, array_by_array, bits_of_float, widened
from fedjax_sim.transforms.compression.hadamard import rotated, turned_back
from fedjax_sim.transforms.compression.sign import Signs


@declare("signs after a random rotation, and a scale (Vargaftik et al. 2021)")
def drive() -> Codec:
    """A codec that turns a leaf at random and sends the signs of its entries, and a scale.

        y = R x,   decoded = R^-1 (S sign(y)),   S = |x|_2^2 / |y|_1

    with the paper's scale for means of several clients. Under a rotation drawn evenly the decoded
    is unbiased, and its squared error is pi / 2 - 1 of |x|_2^2 for many entries; R is the
    randomised Hadamard transform, which comes near, as in the paper. Of each leaf of d
    entries d bits travel and a scale of 32 bits (64 in float64), and one seed of 8 bytes. A leaf
    that holds a NaN or an infinity is decoded to NaNs.

    >>> import jax
    >>> codec, update = drive(), jnp.array([3.0, 0.0, 0.0, 0.0])
    >>> wire, _ = codec.encode(update, codec.init(update), jax.random.key(0))
    >>> jnp.abs(codec.decode(wire)).tolist(), codec.bits(update)
    ([3.0, 0.0, 0.0, 0.0], 100)
    """

    def encode(x: Array, key: Array) -> Signs:
        y = rotated(widened(x), key)
        # The length of x is that of y.
        total = jnp.sum(jnp.abs(y))
        return Signs(y >= 0, jnp.sum(y * y) / jnp.where(total == 0, 1, total))

    def decode(sent: Signs, size: int, key: Array | None) -> Array:
        assert key is not None
        return turned_back(sent.numbers(), key)

    return array_by_array(
        encode, decode, lambda size, dtype: size + bits_of_float(dtype), seeded=True
    )
