"""What rules that see all updates share: their coefficients, and distances between updates."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fedjax_sim.core.checks import check_number, is_concrete
from fedjax_sim.core.types import (
    AggregationRule,
    Array,
    Coefficients,
    Cohort,
    Combine,
    PyTree,
    accumulator,
)


def check_whole(name: str, value: Any, least: int) -> Any:
    """A number of clients or steps; refuses a value that is no whole number of at least `least`.

    A traced one is taken as it is.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    if not is_concrete(value):
        return value
    array = np.asarray(value)
    if array.shape != () or not np.issubdtype(array.dtype, np.integer) or array < least:
        raise ValueError(f"{name} must be a whole number, at least {least}; got {value!r}")
    return int(array)


def check_radius(radius: ArrayLike) -> None:
    """Refuses a radius that is not positive; infinity is one, and a traced one is taken as it is.

    Raises:
      ValueError: with what was given.
    """
    check_number("radius", radius, lambda x: x > 0, "positive or infinite", or_infinite=True)


def combining(combine: Combine, *, by_weight: bool = False) -> AggregationRule:
    """The rule whose every round is what `combine` makes of the updates.

    Args:
      by_weight: a_k are the clients' weights, and their fixed shares those of all; otherwise
        clients count alike, with a share of 1 / K.
    """

    def rule(cohort: Cohort, client_weights: Array, all_client_weights: Array) -> Coefficients:
        if by_weight:
            return Coefficients(client_weights, None, combine=combine)
        return alike(client_weights, all_client_weights, combine)

    return rule


def alike(client_weights: Array, all_client_weights: Array, combine: Combine) -> Coefficients:
    """Weights of 1 and shares of 1 / K."""
    ones = jnp.ones_like(client_weights)
    shares = ones / all_client_weights.shape[0]
    return Coefficients(ones, None, shares=shares, combine=combine)


class Bound(NamedTuple):
    """How many must report: more than `times f + more`, or a round is empty.

    Attributes:
      f: Int[], how many updates may be anything; may be traced.
    """

    name: str
    f: Any
    times: int
    more: int

    def check(self, slots: int) -> None:
        """Refuses a cohort of so few slots that no round can have an answer.

        Raises:
          ValueError: with m, f and the smallest m.
        """
        if is_concrete(self.f) and slots <= self._largest_refused:
            more = f" + {self.more}" if self.more else ""
            raise ValueError(
                f"{self.name} needs a cohort of m > {self.times} f{more} clients; got m = {slots} "
                f"with f = {self.f}, for which m must be at least {self._largest_refused + 1}"
            )

    def suffices(self, number: Array) -> Array:
        """Bool[], whether so many that report are enough."""
        return number > self._largest_refused

    @property
    def _largest_refused(self) -> Any:
        return self.times * self.f + self.more


def guarded(bound: Bound, combine: Combine) -> Combine:
    """`combine` where enough updates count, and zeros where they do not."""

    def of_enough(updates: PyTree, weights: Array, counted: Array, key: Array) -> PyTree:
        enough = bound.suffices(jnp.sum(counted, dtype=jnp.int32))
        update = combine(updates, weights, counted, key)
        return jax.tree.map(lambda x: jnp.where(enough, x, 0), update)

    return of_enough


def num_reporting(cohort: Cohort) -> Array:
    """Int[], the slots that complete a step."""
    if cohort.reports is None:
        return jnp.int32(cohort.client_ids.shape[0])
    return jnp.sum(cohort.reports, dtype=jnp.int32)


def wide(updates: PyTree) -> PyTree:
    """The updates in float32 or better."""
    return jax.tree.map(lambda x: x.astype(accumulator(x.dtype)), updates)


def squared_distances_to(point: PyTree, updates: PyTree) -> Array:
    """Float[m], `|x_i - v|^2` over all leaves together; infinite where it is no number.

    Each is the sum of squared differences, and not made of inner products, whose difference has no
    digit left where updates are large beside what separates them. So it is infinite for an update
    with a NaN or an infinity, and for one whose squares exceed the range of the type.
    """
    dtype = jnp.result_type(float)

    def of_leaf(x: Array, v: Array) -> Array:
        difference = (x - v[None]).reshape(x.shape[0], -1)
        return jnp.sum(jnp.square(difference), axis=1).astype(dtype)

    parts = [
        of_leaf(x, v) for x, v in zip(jax.tree.leaves(updates), jax.tree.leaves(point), strict=True)
    ]
    total = sum(parts, jnp.zeros_like(parts[0]))
    return jnp.where(jnp.isnan(total), jnp.inf, total)


def squared_distances(updates: PyTree) -> Array:
    """Float[m, m], `|x_i - x_j|^2`, one row after the other.

    It reads the updates m times. On a CPU that takes as long as the product of the stack with its
    transpose (0.6 to 0.8 s of 50 updates of 200,000 numbers on two cores).
    """
    return jax.lax.map(partial(squared_distances_to, updates=updates), updates)


def squared_norms(updates: PyTree) -> Array:
    """Float[m], `|x_i|^2`; infinite where it is no number."""
    return squared_distances_to(jax.tree.map(lambda x: jnp.zeros_like(x[0]), updates), updates)


def ranks(scores: Array, ids: Array) -> Array:
    """Int[m], the place of each score from the smallest up; of equal ones by the client's id.

    So a rank depends on no slot.
    """
    order = jnp.lexsort((ids, scores))
    places = jnp.arange(ids.shape[0], dtype=jnp.int32)
    return jnp.zeros_like(places).at[order].set(places)
