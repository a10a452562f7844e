"""Counts beyond 32 bits, in the graph: four digits of base 2^16, the lowest first.

JAX has 64-bit integers only under x64. A digit leaves room in its UInt32: 2^15 of them can be added
before anything must be carried, so a sum over devices is a plain sum, followed by `carried`.
"""

import jax.numpy as jnp

from fedjax_sim.core.checks import INT32_MAX
from fedjax_sim.core.types import Array

_TERMS = 2**15


def exact(count: Array) -> Array:
    """UInt32[..., 4] of Int[...] or UInt32[...], not negative."""
    low = count.astype(jnp.uint32)
    zero = jnp.zeros_like(low)
    return jnp.stack([low & 0xFFFF, low >> 16, zero, zero], axis=-1)


def constant(count: int) -> Array:
    """UInt32[4] of a Python integer."""
    return jnp.array([count >> (16 * i) & 0xFFFF for i in range(4)], jnp.uint32)


def carried(digits: Array) -> Array:
    """The same count with each digit below 2^16; they may be below 2^32 - 2^16."""
    kept_digits, carry = [], jnp.zeros_like(digits[..., 0])
    for i in range(4):
        digit = digits[..., i] + carry
        kept_digits.append(digit & 0xFFFF)
        carry = digit >> 16
    return jnp.stack(kept_digits, axis=-1)


def product(a: Array, b: Array) -> Array:
    """UInt32[..., 4] of the product of two Int[...], not negative."""
    (a0, a1), (b0, b1) = (
        (x & 0xFFFF, x >> 16) for x in (a.astype(jnp.uint32), b.astype(jnp.uint32))
    )
    low, high = a0 * b0, a1 * b1
    cross = a0 * b1, a1 * b0
    digits = [
        low & 0xFFFF,
        (low >> 16) + (cross[0] & 0xFFFF) + (cross[1] & 0xFFFF),
        (cross[0] >> 16) + (cross[1] >> 16) + (high & 0xFFFF),
        high >> 16,
    ]
    return carried(jnp.stack(digits, axis=-1))


def difference(a: Array, b: Array) -> Array:
    """UInt32[..., 4] of a - b, not negative."""
    digits = a + (jnp.uint32(0xFFFF) - b)
    return carried(digits.at[..., 0].add(1))


def total(digits: Array) -> Array:
    """UInt32[4], the sum of UInt32[m, 4]."""
    while digits.shape[0] > 1:
        padding = -digits.shape[0] % min(_TERMS, digits.shape[0])
        padded = jnp.pad(digits, ((0, padding), (0, 0)))
        pieces = padded.reshape(-1, min(_TERMS, digits.shape[0]), 4)
        digits = carried(jnp.sum(pieces, axis=1, dtype=jnp.uint32))
    return digits[0]


def capped(digits: Array) -> Array:
    """Int[...], the smaller of the count and 2^31 - 1."""
    beyond = (digits[..., 3] | digits[..., 2] | (digits[..., 1] >> 15)) != 0
    low = (digits[..., 0] | (digits[..., 1] << 16)).astype(jnp.int32)
    return jnp.where(beyond, INT32_MAX, low)
