"""What an aggregation rule says of a round."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from fedjax_sim.core.reprs import one_line

PyTree = Any

# (updates [m, ...], weights a_k [m], counted [m], key) -> update; see `Coefficients.combine`.
Combine = Callable[[PyTree, Array, Array, Array], PyTree]


@one_line
class Coefficients(NamedTuple):
    """What an aggregation rule says of a round.

    The new model is `w + sum_k a_k d_k / denominator` over the clients that report, or
    `w + combine(d, a, counted, key)` of a rule that must see all of them at once. A rule may
    return the pair `(weights, denominator)` alone.

    Attributes:
      weights: Float[m], a_k.
      denominator: Float[]; None for the sum of a_k over those that report.
      shares: Float[m], the fixed p_k for `total`; None for weight over all weights.
      num_receivers: Int[], who is sent the model; None for the cohort's distinct clients.
      combine: None, or (updates, weights, counted, key) -> update. Leaves of `updates` are
        [m, ...], zeros where `counted`, Bool[m], is False; `weights` are the a_k; `key` differs by
        run and round. It returns one update, leaves [...], which is not divided by the denominator.
        It costs the memory of m updates, and a round of none that counts is empty as ever.
      by_weight: Bool[], True for the sum of a_k in place of `denominator`, of a rule that is one of
        several by a traced number (`aggregation.chosen`); None: `denominator` says it.
    """

    weights: Array
    denominator: Array | None
    shares: Array | None = None
    num_receivers: Array | None = None
    combine: Combine | None = None
    by_weight: Array | None = None

    def divisor(self, weight_sum: Array, unit: ArrayLike = 1) -> Array:
        """Float[], what the sum of a_k d_k is divided by, in units of 1 / `unit`.

        Args:
          weight_sum: Float[], the sum of a_k over those that count, in the same units.
        """
        if self.denominator is None:
            return weight_sum
        fixed = self.denominator * unit
        return fixed if self.by_weight is None else jnp.where(self.by_weight, weight_sum, fixed)
