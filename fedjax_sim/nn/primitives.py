"""What the layers' own primitives share."""

from functools import partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from fedjax_sim.core.types import Array
from fedjax_sim.core.varying import vary_alike

# A function of arrays as a primitive's lowering.
lower = partial(mlir.lower_fun, multiple_results=False)


def precision_of(precision: Any) -> Any:
    """What JAX would take a precision for where it is traced; it can be hashed."""
    if precision is None:
        # JAX adds its options to its configuration when it is imported, where no type sees them.
        return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return tuple(precision) if isinstance(precision, list) else precision


def bind(primitive: Primitive, a: Array, b: Array, **params: Any) -> Array:
    """The primitive of both operands, inside `shard_map` too."""
    return primitive.bind(*vary_alike(a, b), **params)
