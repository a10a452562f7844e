"""Arithmetic of pytrees; choosing and adding them under a mask.

A mask is applied always with `where`, never by multiplying: NaN times zero is NaN.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fedjax_sim.core.types import Array, PyTree, accumulator


def zeros_like(tree: PyTree) -> PyTree:
    """Zeros of the structure, shapes and dtypes of a tree."""
    return jax.tree.map(jnp.zeros_like, tree)


def difference(x: PyTree, y: PyTree) -> PyTree:
    """`x - y`, of two trees of the same dtypes."""
    return jax.tree.map(jnp.subtract, x, y)


def plus(x: PyTree, change: PyTree) -> PyTree:
    """`x + change`, in the dtypes of x."""
    return jax.tree.map(lambda x, u: x + u.astype(x.dtype), x, change)


def cast(tree: PyTree, like: PyTree) -> PyTree:
    """The tree in the dtypes of another one of its structure."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def widened(*arrays: Array) -> tuple[Array, ...]:
    """Arrays in float32 or better."""
    return tuple(x.astype(accumulator(x.dtype)) for x in arrays)


def axpy(scale: ArrayLike, x: PyTree, y: PyTree) -> PyTree:
    """`scale x + y`, in the dtypes of y; scale: Float[], may be traced.

    Computed in float32 or better: float16 has no number for a scale above 65504.
    """

    def add(x: Array, y: Array) -> Array:
        wide = accumulator(y.dtype)
        return (y.astype(wide) + jnp.asarray(scale, wide) * x.astype(wide)).astype(y.dtype)

    return jax.tree.map(add, x, y)


def scaled(scale: ArrayLike, tree: PyTree) -> PyTree:
    """`scale x`, in the dtypes of x; scale: Float[], may be traced."""
    return jax.tree.map(lambda x: jnp.asarray(scale, x.dtype) * x, tree)


def moving_average(keep: ArrayLike, old: PyTree, new: PyTree) -> PyTree:
    """`keep old + (1 - keep) new`, in the dtypes of old; keep: Float[], may be traced.

    Computed in float32 or better: in bfloat16 a keep of 0.999 is 1.
    """

    def average(x: Array, y: Array) -> Array:
        wide = accumulator(x.dtype)
        share = jnp.asarray(keep, wide)
        return (share * x.astype(wide) + (1 - share) * y.astype(wide)).astype(x.dtype)

    return jax.tree.map(average, old, new)


def where(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    """Leaf by leaf, the new value where a condition (scalar or [m]) holds."""

    def choose(x: Array, y: Array) -> Array:
        shape = condition.shape + (1,) * (jnp.ndim(x) - condition.ndim)
        return jnp.where(condition.reshape(shape), x, y)

    return jax.tree.map(choose, new, old)


def power_of_two(weights: Array) -> Array:
    """Float[], the power of two that brings the largest of the weights' sizes into [1/2, 1).

    It is 1 where they are all 0, and no derivative goes through it.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(weights)))
    max_exponent = (
        jnp.finfo(weights.dtype).maxexp - 2
    )  # so that the power itself is no subnormal number
    exponent = jnp.clip(jnp.frexp(largest)[1], -max_exponent, max_exponent)
    return jnp.ldexp(jnp.ones_like(largest), -exponent)


def all_finite(tree: PyTree) -> Array:
    """Bool[]: no floating leaf holds a NaN or an infinity."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves] or [jnp.array(True)]).all()


def squared_norm(tree: PyTree) -> Array:
    """Float[], the sum of the squares of all leaves, in float32 or better."""
    squares = [jnp.sum(jnp.square(x.astype(accumulator(x.dtype)))) for x in jax.tree.leaves(tree)]
    wide = jnp.result_type(float)
    return sum((s.astype(wide) for s in squares), jnp.zeros((), wide))


def global_norm(tree: PyTree) -> Array:
    """Float[], the Euclidean norm of all leaves together, in float32 or better."""
    total = squared_norm(tree)
    # The root's slope at 0 is infinite, and times a cotangent of zero it is NaN.
    return jnp.where(total > 0, jnp.sqrt(jnp.where(total > 0, total, 1)), total)


def accumulators(tree: PyTree) -> PyTree:
    """Zeros to add the leaves' weighted values to, in float32 or better.

    Raises:
      ValueError: for leaves that cannot be averaged.
    """

    def zeros(x: Any) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                "ClientOutput.update and .total must have floating leaves, since they are "
                f"averaged; got {x.dtype}"
            )
        return jnp.zeros(x.shape, accumulator(x.dtype))

    return jax.tree.map(zeros, tree)


def weighted(weight: Array, counted: Array, tree: PyTree) -> PyTree:
    """`weight x` where `counted`, in float32 or better: a term of a weighted sum.

    What has weight 0 is left out, so that a NaN in it does no harm.
    """
    counted = counted & (weight != 0)

    def term(x: Array) -> Array:
        dtype = accumulator(x.dtype)
        return jnp.where(counted, weight.astype(dtype) * x.astype(dtype), 0)

    return jax.tree.map(term, tree)


def weighted_sum(weights: Array, counted: Array, tree: PyTree) -> PyTree:
    """`sum_k weights_k x_k` over the leading axis where `counted`, in float32 or better.

    What has weight 0 is left out, so that a NaN in it does no harm.
    """
    counted = counted & (weights != 0)

    def total(zeros: Array, x: Array) -> Array:
        masked = where(counted, x.astype(zeros.dtype), jnp.zeros_like(x, zeros.dtype))
        a = jnp.where(counted, weights, 0).astype(zeros.dtype)
        return jnp.tensordot(a, masked, axes=1, precision=jax.lax.Precision.HIGHEST)

    return jax.tree.map(total, accumulators(tree), tree)


def sum_where(counted: Array, tree: PyTree) -> PyTree:
    """Sums over the leading axis where `counted`, in float32 or better."""

    def total(x: Array) -> Array:
        x = x.astype(accumulator(x.dtype))
        return jnp.sum(where(counted, x, jnp.zeros_like(x)), axis=0)

    return jax.tree.map(total, tree)


def shapes_with(tree: PyTree, *leading: int) -> PyTree:
    """The shapes of leaves [N, ...] with other axes in the place of the first one.

    >>> shapes_with({"x": jnp.ones((6, 2))})  # of a row
    {'x': ShapeDtypeStruct(shape=(2,), dtype=float32)}
    """
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*leading, *x.shape[1:]), x.dtype), tree)


def num_bytes(tree: PyTree) -> int:
    """Bytes of the leaves, arrays or their shapes, of any dtype."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def sent_with(wire: PyTree | int, tree: PyTree) -> PyTree | int:
    """What travels where a tree goes beside a wire: shapes, or bits if the wire is a number.

    >>> sent_with(np.int64(3), jnp.ones(2))
    67
    """
    if isinstance(wire, (int, np.integer)) and not isinstance(wire, bool):
        return int(wire) + 8 * num_bytes(tree)
    return wire, tree


def first_of_each(ids: Array, mask: Array) -> Array:
    """Bool[m]: of the slots with `mask`, the first that holds each id."""
    slots = ids.shape[0]
    if slots <= 64:  # fewer comparisons than a sort costs
        earlier = jnp.tri(slots, k=-1, dtype=bool)
        is_repeated = (ids[:, None] == ids[None, :]) & mask[None, :] & earlier
        return mask & ~jnp.any(is_repeated, axis=1)
    keys = jnp.where(mask, ids, jnp.iinfo(jnp.int32).max)
    order = jnp.argsort(keys, stable=True)
    ordered = keys[order]
    first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    return jnp.zeros(ids.shape, bool).at[order].set(first) & mask
