"""Inside `shard_map`, values carry the axes over which they differ between devices."""

from typing import Any

import jax
from jax import lax

from fedjax_sim.core.types import Array


def vary_alike(*arrays: Array) -> tuple[Array, ...]:
    """The arrays, each marked as varying over every axis that one of them varies over.

    Primitives of JAX's own do this to their operands; those of this package, and the carry
    of a scan, have to ask for it. Outside `shard_map` nothing is done.
    """
    axes = frozenset[str]().union(*map(_varying, arrays))
    return tuple(_vary(x, tuple(axes - _varying(x))) for x in arrays)


def _varying(x: Array) -> frozenset[str]:
    # JAX renamed it behind the oldest version that the package supports.
    kind: Any = jax.typeof(x)
    return frozenset(kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying)


def _vary(x: Array, axes: tuple[str, ...]) -> Array:
    return lax.pcast(x, axes, to="varying") if axes else x
