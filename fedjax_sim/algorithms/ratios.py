"""Servers that multiply or divide averages: ARCHITECTURE, "Ratios of averages"."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.types import Array, PyTree


@one_line
class WithShare(NamedTuple):
    """What a client sends, and a 1 beside it."""

    value: PyTree
    share: Array  # Float[]; its average is the scale that the rule has given to the value


def with_share(value: PyTree) -> WithShare:
    """The value, and a 1 that is sent along."""
    return WithShare(value, jnp.ones((), jnp.result_type(float)))


def ratio(average: PyTree, divisor: Array) -> PyTree:
    """Two averages of what clients send: `average / divisor`, leaf by leaf, and 0 where that is 0.

    A rule scales every average over the clients that report, as by n_V / n under `all_clients`. A
    product of two averages has the scale twice, a ratio not at all, and `all_clients` would no
    longer be `w + (n_V / n) (selected - w)`. The average of a 1 that each client sends along is the
    scale: a product is divided by it once, a ratio multiplied.
    """
    is_nonzero = divisor != 0
    safe = jnp.where(is_nonzero, divisor, 1)
    return jax.tree.map(lambda x: jnp.where(is_nonzero, x / safe.astype(x.dtype), 0), average)
