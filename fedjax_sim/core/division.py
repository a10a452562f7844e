"""Division of integers that are not negative.

For Python's `//` and `%` a graph has some nine operations, which look after signs, and XLA compiles
several kernels of them wherever they stand. Of numbers that are not negative the operation of the
machine is enough. It is for what a compiled round computes; what was traced with Python's before
runs were saved stays so in the plain form (`core.plain`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim.core.plain import is_plain
from fedjax_sim.core.types import Array


def quotient(number: Array, divisor: Array | int) -> Array:
    """`floor(number / divisor)`. Int[...] of two that broadcast, number >= 0, divisor >= 1.

    >>> import jax.numpy as jnp
    >>> quotient(jnp.arange(5), 2).tolist(), quotient(7, 2)
    ([0, 0, 1, 1, 2], 3)
    """
    if _is_pythons(number, divisor):
        return number // divisor
    return lax.div(*_alike(number, divisor))


def remainder(number: Array, divisor: Array | int) -> Array:
    """What `quotient` leaves over."""
    if _is_pythons(number, divisor):
        return number % divisor
    return lax.rem(*_alike(number, divisor))


def num_groups(number: Array, size: Array | int) -> Array:
    """`ceil(number / size)`, the groups of at most so many in which a number fits."""
    if _is_pythons(number, size):
        return -(-number // size)
    number, size = _alike(number, size)
    return lax.div(number, size) + (lax.rem(number, size) > 0).astype(number.dtype)


def _is_pythons(*numbers: Any) -> bool:
    """Whether Python's operators divide: of static numbers, and in the plain form."""
    return is_plain() or not any(isinstance(x, jax.Array) for x in numbers)


def _alike(*numbers: Any) -> list[Array]:
    kind = jnp.result_type(*numbers)
    return jnp.broadcast_arrays(*(jnp.asarray(x, kind) for x in numbers))
