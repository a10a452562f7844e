"""Uniform stochastic quantisation: Suresh et al. 2017, "Distributed Mean Estimation with Limited
Communication" (arXiv 1611.00429).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.registry import Option, Range, declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.types import Array
from fedjax_sim.transforms.compression.codec import Codec, array_by_array, bits_of_float, widened
from fedjax_sim.transforms.compression.hadamard import rotated as turned
from fedjax_sim.transforms.compression.hadamard import turned_back

_MOST_BITS = 16
_BITS = Range(f"in 1..{_MOST_BITS}", lambda bits: 1 <= bits <= _MOST_BITS)


@one_line
class Levels(NamedTuple):
    """Numbers on a scale: `lowest + level * step`, with level UInt[d] of b bits each."""

    level: Array
    lowest: Array
    step: Array


@declare(
    "levels between a leaf's lowest and highest entry, rounded at random (Suresh et al. 2017)",
    Option("bits", "bits of each entry", default=8, kind=int, range=_BITS, metavar="B"),
    Option("rotated", "quantise after a random rotation", default=False, kind=bool),
)
def quantise(bits: int, rotated: bool = False) -> Codec:
    """A codec that rounds each entry at random to one of 2^b levels, so that its mean is the entry.

        step = (max x - min x) / (2^b - 1),   level = floor((x - min x) / step + u),  u ~ U[0, 1)
        decoded = min x + level step

    Of each leaf of d entries b d bits travel, and its lowest entry and step, of 32 bits each (64
    in float64). The error of an entry is below a step, and its variance at most step^2 / 4.

    With `rotated`, a leaf is turned at random before and back after (a randomised Hadamard
    transform), which makes max x - min x smaller where few entries are large; one seed of 8 bytes
    travels beside. A leaf that holds a NaN or an infinity is decoded to NaNs.

    Errors that are fed back grow where a step is larger than the entries are: b = 1 and 2 are for
    updates without error feedback. Alistarh et al. 2017 (arXiv 1610.02132) scale by the norm.

    Args:
      bits: b in 1..16, a Python integer, since it decides what travels.
      rotated: whether leaves are turned.

    Raises:
      ValueError: for bits out of range, or traced.

    >>> codec, update = quantise(2), jnp.array([0.0, 3.0, 1.0])
    >>> wire, _ = codec.encode(update, codec.init(update), jax.random.key(0))
    >>> codec.decode(wire).tolist(), codec.bits(update)
    ([0.0, 3.0, 1.0], 70)
    """
    whole = isinstance(bits, (int, np.integer)) and not isinstance(bits, bool)
    if not whole or not 1 <= bits <= _MOST_BITS:
        raise ValueError(
            f"bits must be a whole number in 1..{_MOST_BITS}, since it decides what travels; got "
            f"{bits!r}"
        )
    if not isinstance(rotated, bool):
        raise ValueError(f"rotated must be True or False; got {rotated!r}")
    bits = int(bits)
    highest_level = 2**bits - 1

    def encode(x: Array, key: Array) -> Levels:
        x = widened(x)
        x = turned(x, key) if rotated else x
        lowest = jnp.min(x)
        step = (jnp.max(x) - lowest) / highest_level
        u = jax.random.uniform(jax.random.fold_in(key, 2), x.shape, x.dtype)
        level = jnp.floor((x - lowest) / jnp.where(step > 0, step, 1) + u)
        # Rounding may lead above the highest level.
        level = jnp.clip(level, 0, highest_level)
        return Levels(level.astype(jnp.uint8 if bits <= 8 else jnp.uint16), lowest, step)

    def decode(sent: Levels, size: int, key: Array | None) -> Array:
        x = sent.lowest + sent.level.astype(sent.step.dtype) * sent.step
        return x if key is None else turned_back(x, key)

    return array_by_array(
        encode, decode, lambda size, dtype: bits * size + 2 * bits_of_float(dtype), seeded=rotated
    )
