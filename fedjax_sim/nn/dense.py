"""A matrix product for flax's dense layers whose gradient by a narrow kernel is fast."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fedjax_sim.base import Array

# XLA's CPU compiler computes x^T d element by element where the result has few columns, and
# folds (d^T x)^T into it. Wider results it hands to a library.
_NARROW = 16

# The transpose of the last two axes; `late`, on a CPU, where no product can swallow it.
_flip = Primitive("flip")


def _swap(x: Array, *, late: bool) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _swap_late(x: Array, *, late: bool) -> Array:
    return jnp.swapaxes(lax.optimization_barrier(x) if late else x, -1, -2)


def _abstract(x: Any, *, late: bool) -> Any:
    return x.update(shape=(*x.shape[:-2], x.shape[-1], x.shape[-2]))


def _batch(args: Any, dims: Any, *, late: bool) -> tuple[Array, int]:
    return _flip.bind(jnp.moveaxis(args[0], dims[0], 0), late=late), 0


_flip.def_impl(_swap)
_flip.def_abstract_eval(_abstract)
mlir.register_lowering(_flip, mlir.lower_fun(_swap, multiple_results=False))
mlir.register_lowering(_flip, mlir.lower_fun(_swap_late, multiple_results=False), platform="cpu")
ad.deflinear2(_flip, lambda ct, x, *, late: [_flip.bind(ct, late=not late)])
batching.primitive_batchers[_flip] = _batch


def dot_general(
    lhs: Array,
    rhs: Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    **kwargs: Any,
) -> Array:
    """A product, as `jax.lax.dot_general`, for dense layers with few units on a CPU.

    `y = x W`. For flax's layers: `linen.Dense(..., dot_general=dot_general)`, and so in
    nnx. Values, arguments and derivatives (either mode, any order) are those of `jax.lax`.
    Where W is a matrix with at most 16 columns, its gradient `x^T d` is computed as
    `(d^T x)^T`, which XLA's CPU compiler has a fast kernel for.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> layer = nn.Dense(10, dot_general=dot_general)
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 784)))[0].shape
    (2, 10)
    """
    kwargs |= {"precision": precision, "preferred_element_type": preferred_element_type}
    (contracted, rhs_contracted), batch = dimension_numbers
    plain = tuple(rhs_contracted) == (0,) and not any(map(len, batch))
    if plain and rhs.ndim == 2 and rhs.shape[1] <= _NARROW:
        rhs = _flip.bind(rhs, late=False)
        dimension_numbers = (contracted, (1,)), batch
    return lax.dot_general(lhs, rhs, dimension_numbers, **kwargs)
