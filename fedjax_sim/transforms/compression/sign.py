"""Signs with a scale: Karimireddy et al. 2019, "Error Feedback Fixes SignSGD and other Gradient
Compression Schemes" (arXiv 1901.09847).
"""

from typing import NamedTuple

import jax.numpy as jnp

from fedjax_sim.core.registry import declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.types import Array
from fedjax_sim.transforms.compression.codec import Codec, array_by_array, bits_of_float, widened


@one_line
class Signs(NamedTuple):
    """The signs of d numbers, Bool[d], True of what is not negative, and the size of all."""

    positive: Array
    scale: Array  # Float[]

    def numbers(self) -> Array:
        """Float[d]."""
        return jnp.where(self.positive, self.scale, -self.scale)


@declare("signs, and the mean size of a leaf's entries (Karimireddy et al. 2019)")
def sign() -> Codec:
    """A codec that sends the sign of each entry, and the mean size of a leaf's entries.

        decoded = (|x|_1 / d) sign(x)

    Of each leaf of d entries d bits travel and a scale of 32 bits (64 in float64). The sign of 0 is
    1, for it has one bit. It is biased, so that its errors are to be fed back
    (`error_feedback=True`). A leaf that holds a NaN or an infinity is decoded to those.

    >>> import jax
    >>> codec, update = sign(), jnp.array([1.0, -3.0, 0.5, 1.5])
    >>> wire, residual = codec.encode(update, codec.init(update), jax.random.key(0))
    >>> codec.decode(wire).tolist(), residual.tolist(), codec.bits(update)
    ([1.5, -1.5, 1.5, 1.5], [-0.5, -1.5, -1.0, 0.0], 36)
    """

    def encode(x: Array, key: Array) -> Signs:
        return Signs(x >= 0, jnp.mean(jnp.abs(widened(x))))

    def decode(sent: Signs, size: int, key: Array | None) -> Array:
        return sent.numbers()

    return array_by_array(encode, decode, lambda size, dtype: size + bits_of_float(dtype))
