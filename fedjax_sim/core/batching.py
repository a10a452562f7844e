"""A number that is the same for all elements of a batch, whatever is batched."""

from typing import Any

from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from fedjax_sim.core.types import Array

# Under `vmap` a branch on a batched number becomes a `select`, for which all branches are computed.
# The largest number of the batch is not batched, so a branch on it stays a branch.
_largest = Primitive("largest_of_batch")
_largest.def_impl(lambda x: x)
_largest.def_abstract_eval(lambda x: x)
mlir.register_lowering(_largest, lambda context, x: [x])


def _batched(arguments: tuple[Any, ...], axes: tuple[int, ...]) -> tuple[Any, Any]:
    return _largest.bind(arguments[0].max(axes[0])), None  # not batched


batching.primitive_batchers[_largest] = _batched


def largest_of_batch(x: Array) -> Array:
    """`x`; inside `vmap`, the largest of the whole batch's, which is no longer batched.

    Args:
      x: Int[], which has no derivative.

    >>> import jax, jax.numpy as jnp
    >>> jax.vmap(lambda x: x - largest_of_batch(x))(jnp.array([1, 5, 3])).tolist()
    [-4, 0, -2]
    """
    return _largest.bind(x)
