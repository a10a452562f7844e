"""The randomised Hadamard rotation, of vectors of any length."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.types import Array

_LARGEST_FACTOR = 6  # log2 of the largest matrix that is multiplied by: 64 x 64


def rotated(x: Array, key: Array) -> Array:
    """A vector of d numbers turned at random, so that none of them is much larger than the others.

        d = 2^p:  R x = H D x / sqrt(d)

    with H the Hadamard matrix and D random signs (Suresh et al. 2017, arXiv 1611.00429). They pad
    other lengths with zeros up to the next power of two, and all of those numbers travel. Here
    `2^p < d` numbers are turned in front, and then the last 2^p, of which some are the same. That
    is orthogonal, too, and d numbers travel.

    Args:
      x: Float[d], d >= 1, of 32 bits or more.
      key: for the signs.
    """
    power = 1 << (x.size.bit_length() - 1)
    y = _in_front(x * _signs(jax.random.fold_in(key, 0), x), power)
    if power == x.size:
        return y
    return _behind(y * _signs(jax.random.fold_in(key, 1), y), power)


def turned_back(y: Array, key: Array) -> Array:
    """The vector that `rotated` turned to y by the same key."""
    power = 1 << (y.size.bit_length() - 1)
    if power < y.size:
        # H / sqrt(d) is its own inverse.
        y = _behind(y, power) * _signs(jax.random.fold_in(key, 1), y)
    return _in_front(y, power) * _signs(jax.random.fold_in(key, 0), y)


def _in_front(x: Array, power: int) -> Array:
    return jnp.concatenate([_hadamard(x[:power]), x[power:]])


def _behind(x: Array, power: int) -> Array:
    start = x.size - power
    return jnp.concatenate([x[:start], _hadamard(x[start:])])


def _signs(key: Array, like: Array) -> Array:
    """Float[d] of 1 and -1, 32 of them from each word that is drawn."""
    words = jax.random.bits(key, (-(-like.size // 32),), jnp.uint32)
    bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)[None]) & jnp.uint32(1)
    return 1 - 2 * bits.reshape(-1)[: like.size].astype(like.dtype)


def _hadamard(x: Array) -> Array:
    """H x / sqrt(d) of d = 2^p numbers, by the factors of H, which is their Kronecker product."""
    exponent = x.size.bit_length() - 1
    if not exponent:
        return x
    number = -(-exponent // _LARGEST_FACTOR)
    exponents = [exponent // number + (place < exponent % number) for place in range(number)]
    y = x.reshape([1 << part for part in exponents])
    for axis, part in enumerate(exponents):
        matrix = jnp.asarray(_matrix(part), x.dtype)
        y = jnp.tensordot(matrix, y, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
        y = jnp.moveaxis(y, 0, axis)
    return y.reshape(-1) / math.sqrt(x.size)


def _matrix(exponent: int) -> np.ndarray:
    """H of 2^exponent rows: its entry i, j is -1 where i & j has an odd number of bits."""
    matrix = np.ones((1, 1))
    for _ in range(exponent):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
