"""Sums of very many terms without loss of digits.

A float32 to which terms are added in turn loses digits: a million times 0.1 gives 100,960, and
2^24 + 1 is 2^24. XLA sums an array in a tree, which loses nothing. So two kinds of sums need care:
one that is carried through a loop, and one for each of many stretches of an array.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import Array, PyTree, accumulator

# Terms that may be added in turn before compensation is worth its cost: 1000 roundings of 2^-24
# each, at worst 6e-5 of the sum.
FEW = 1000
# The same for metrics, whose digits users read: at worst 4e-6. Small rounds are not compensated
# because that would take a tenth of their compile time.
FEW_REPORTED = 64

_GROUP = 32  # so many neighbours are summed to a node of the next level of a tree
# Nodes that are added up side by side at most, and the stretches at once where there are more.
_NODES, _STRETCHES = 2**23, 2**14


class Sum(NamedTuple):
    """A sum that is carried through a loop, with the part that its last rounding has lost.

    Attributes:
      total: leaves in float32 or better: the sum, rounded once.
      lost: of the same shapes, what is to be added with the next term; () if nothing is kept.
    """

    total: PyTree
    lost: PyTree


def zero_sum(tree: PyTree, terms: int | None = None, few: int = FEW, *, whole: bool = False) -> Sum:
    """Zeros to add pytrees to that look like `tree` (shapes suffice).

    Args:
      terms: how many are added at most, static; None for many.
      few: so many are added plainly.
      whole: whole numbers are summed as such, and may wrap; else as floating ones.
    """

    def zero(x: Array) -> Array:
        keeps_dtype = whole and not jnp.issubdtype(x.dtype, jnp.inexact)
        return jnp.zeros(x.shape, x.dtype if keeps_dtype else accumulator(x.dtype))

    plainly = terms is not None and terms <= few
    return Sum(jax.tree.map(zero, tree), () if plainly else jax.tree.map(zero, tree))


def add_to(sums: Sum, tree: PyTree, condition: Array | None = None) -> Sum:
    """The sum and one more term, by Kahan's compensated summation.

    Off by at most 2^-23 of the sum of the terms' sizes, however many they are.

    Args:
      condition: Bool[], whether the term counts; a NaN in one that does not does no harm.
    """

    def term(total: Array, x: Array) -> Array:
        x = jnp.asarray(x, total.dtype)
        return x if condition is None else jnp.where(condition, x, jnp.zeros_like(x))

    terms = jax.tree.map(term, sums.total, tree)
    if not jax.tree.leaves(sums.lost):
        return Sum(jax.tree.map(jnp.add, sums.total, terms), sums.lost)
    terms = jax.tree.map(jnp.add, terms, sums.lost)
    total = jax.tree.map(jnp.add, sums.total, terms)

    def still_lost(before: Array, x: Array, after: Array) -> Array:
        if not jnp.issubdtype(after.dtype, jnp.inexact):
            return jnp.zeros_like(after)
        # The part of the term that rounding lost; of an infinite sum it would be NaN.
        return jnp.where(jnp.isfinite(after), x - (after - before), 0)

    return Sum(total, jax.tree.map(still_lost, sums.total, terms, total))


def of_stretches(values: Array, starts: Array, sizes: Array, longest: int) -> Array:
    """The sum of each stretch `values[start : start + size]`, in a tree.

    Neighbours are added up in groups of 32, those in groups of 32 again, and so on. A stretch is
    the whole groups within it, and on each level fewer than 32 nodes before the first whole group
    and fewer than 32 behind the last one. A NaN is in the sums of its own stretches alone.

    Args:
      values: Float[N].
      starts: Int[K].
      sizes: Int[K], not above `longest`.
      longest: static.

    Returns:
      Float[K].

    >>> of_stretches(jnp.arange(100.0), jnp.array([3, 50]), jnp.array([2, 50]), 50).tolist()
    [7.0, 3725.0]
    """
    levels, max_nodes = [values], longest
    while max_nodes >= 2 * _GROUP:
        padding = -levels[-1].shape[0] % _GROUP
        levels.append(jnp.sum(jnp.pad(levels[-1], (0, padding)).reshape(-1, _GROUP), axis=1))
        max_nodes //= _GROUP

    def sums(stretches: tuple[Array, Array]) -> Array:
        return _sums_of_nodes(levels, *stretches, max_nodes)

    number, ends = starts.shape[0], starts + sizes
    if number * max(max_nodes, _GROUP - 1 if len(levels) > 1 else 1) <= _NODES:
        return sums((starts, ends))
    padding = -number % _STRETCHES
    parts = [jnp.pad(x, (0, padding)).reshape(-1, _STRETCHES) for x in (starts, ends)]
    return jax.lax.map(sums, (parts[0], parts[1])).reshape(-1)[:number]


def _sums_of_nodes(levels: list[Array], left: Array, right: Array, max_nodes: int) -> Array:
    """Float[K], the sums from `left` to before `right`, of at most `max_nodes` last-level nodes."""
    total = jnp.zeros(left.shape, levels[0].dtype)

    def nodes(level: Array, first: Array, end: Array, number: int) -> Array:
        """The sum of the level's nodes from `first` to before `end`, at most `number` of them."""
        places = first[:, None] + jnp.arange(number, dtype=first.dtype)[None, :]
        values = level.at[places].get(mode="clip")
        return jnp.sum(jnp.where(places < end[:, None], values, 0), axis=1)

    for level in levels[:-1]:
        first = jnp.minimum(-(-left // _GROUP) * _GROUP, right)
        last = jnp.maximum(right // _GROUP * _GROUP, first)
        before, behind = (
            nodes(level, left, first, _GROUP - 1),
            nodes(level, last, right, _GROUP - 1),
        )
        total = total + (before + behind)
        left, right = first // _GROUP, last // _GROUP
    return total + nodes(levels[-1], left, right, max_nodes)
