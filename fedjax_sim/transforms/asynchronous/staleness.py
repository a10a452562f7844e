"""How much an update counts whose model is some steps old: s(0) = 1, and never more.

Xie et al. 2019 (arXiv 1903.03934), section 5.2; Nguyen et al. 2022 (arXiv 2106.06639) take the
polynomial of exponent 1/2. They are functions of the staleness, Float[...], the number of steps
that the server has taken since the client was sent its model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from fedjax_sim.core.checks import check_number, check_takes
from fedjax_sim.core.types import Array

Staleness = Callable[[Array], Array]


def constant() -> Staleness:
    """`s = 1`: an update counts alike, however old its model is."""
    return jnp.ones_like


def polynomial(exponent: ArrayLike = 0.5) -> Staleness:
    """`s(x) = (1 + x)^-exponent`; exponent: Float[] >= 0, may be traced.

    Raises:
      ValueError: for an exponent out of range.

    >>> polynomial(0.5)(jnp.array([0.0, 3.0])).tolist()
    [1.0, 0.5]
    """
    check_number("exponent", exponent, lambda x: x >= 0, "at least 0")
    return lambda x: (1 + x) ** -jnp.asarray(exponent, x.dtype)


def hinge(a: ArrayLike = 10.0, b: ArrayLike = 4.0) -> Staleness:
    """`s(x) = 1` up to b, and `1 / (a (x - b) + 1)` above; a, b: Float[] >= 0, may be traced.

    Raises:
      ValueError: for a number out of range.

    >>> hinge(a=0.5, b=4.0)(jnp.array([0.0, 4.0, 6.0])).tolist()
    [1.0, 1.0, 0.5]
    """
    for name, value in (("a", a), ("b", b)):
        check_number(name, value, lambda x: x >= 0, "at least 0")

    def factor(x: Array) -> Array:
        slope, beyond = jnp.asarray(a, x.dtype), x - jnp.asarray(b, x.dtype)
        return 1 / (slope * jnp.maximum(beyond, 0) + 1)

    return factor


def as_staleness(value: Any) -> Staleness:
    """A function of the staleness; a number is the exponent of `polynomial`.

    Raises:
      ValueError: for a number out of range, or a function of other arguments.
    """
    if not callable(value):
        check_number("staleness", value, lambda x: x >= 0, "at least 0")
        return polynomial(value)
    if value in (constant, hinge, polynomial):
        name = f"fs.asynchronous.{value.__name__}"
        raise ValueError(
            f"staleness must be a function of the staleness; got {name} itself: call it, {name}()"
        )
    check_takes("staleness", value, "staleness")
    function: Staleness = value
    return function
