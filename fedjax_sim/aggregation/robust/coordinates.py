"""Rules that go coordinate by coordinate: the median and the trimmed mean.

Yin et al. 2018, "Byzantine-Robust Distributed Learning" (arXiv 1803.01498), Algorithm 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fedjax_sim.aggregation.robust.stacks import combining, wide
from fedjax_sim.core.checks import check_number
from fedjax_sim.core.registry import Option, Range, declare
from fedjax_sim.core.types import AggregationRule, Array, PyTree

BELOW_HALF = Range("in [0, 1/2)", lambda x: 0 <= x < 0.5)


@declare("the median of the updates, coordinate by coordinate")
def median() -> AggregationRule:
    """The coordinate-wise median of the clients that report: `w_{t+1} = w_t + med_{k in V} d_k`.

    Each coordinate of the model moves by the median of the clients' moves, of an even number the
    mean of the middle two; clients count alike, whatever their size. Of an update with several
    parts it is the median of each. A client's fixed share is 1/K. A NaN counts as plus infinity, so
    that it moves a median no further than any other number that a client may send.

    All updates are held at once: the memory of m models, and a sort of m numbers a coordinate.
    Yin et al. 2018 (arXiv 1803.01498), Algorithm 1, option I.

    Returns:
      A rule for `make_round`, whose `weights` are ones and whose `combine` is the median.

    >>> import fedjax_sim as fs, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([np.full(2, y) for y in (1.0, 2.0, 30.0)])
    >>> algorithm = fs.fedavg(lambda w, y, key: (y - w) ** 2 / 2, optax.sgd(1.0),
    ...                       fs.LocalTraining())
    >>> round_fn = fs.make_round(algorithm, fs.aggregation.median())
    >>> state = fs.init(algorithm, 0.0, data)
    >>> state, _ = round_fn(jax.random.key(0), state, data, fs.Cohort(jnp.arange(3)))
    >>> float(state.params)
    2.0
    """
    return combining(coordinate_median)


@declare(
    "the mean of what is left of each coordinate without its largest and smallest values",
    Option(
        "trim",
        "share of the values cut off at either end",
        default=0.2,
        range=BELOW_HALF,
        traced=True,
        parameter="share",
    ),
)
def trimmed_mean(share: ArrayLike) -> AggregationRule:
    """The coordinate-wise trimmed mean of the n clients that report.

    Of each coordinate's n values the `b = floor(share n)` largest and as many smallest are left
    out, and the rest averaged; clients count alike. Up to b of them may send anything, a NaN
    too, which counts as plus infinity. A share of 0 is the plain mean. A client's fixed share is
    1/K.

    Yin et al. 2018 (arXiv 1803.01498), Algorithm 1, option II, with `share` for beta.

    Args:
      share: Float[] in [0, 1/2), may be traced; where n share is a whole number but for rounding,
        b is that number.

    Raises:
      ValueError: for a share out of range.

    >>> updates = jnp.array([1.0, 2.0, 3.0, 90.0, jnp.nan])
    >>> of_five = trimmed_mean(0.4)(None, jnp.ones(5), jnp.ones(5))  # a rule, and its answer
    >>> float(of_five.combine(updates, jnp.ones(5), jnp.ones(5, bool), None))
    3.0
    """
    check_number("share", share, BELOW_HALF.allows, BELOW_HALF.says)

    def combine(updates: PyTree, weights: Array, counted: Array, key: Array) -> PyTree:
        number = jnp.sum(counted, dtype=jnp.int32)
        # 0.29 of 100 are 28.999998 in float32.
        exact = jnp.asarray(share, jnp.float32) * number.astype(jnp.float32) * (1 + 1e-6)
        cut = jnp.minimum(exact.astype(jnp.int32), jnp.maximum(number - 1, 0) // 2)

        def of_leaf(x: Array) -> Array:
            places = jnp.arange(x.shape[0]).reshape(-1, *[1] * (x.ndim - 1))
            is_left = (places >= cut) & (places < number - cut)
            total = jnp.sum(jnp.where(is_left, _ordered(x, counted), 0), axis=0)
            return total / jnp.maximum(number - 2 * cut, 1).astype(x.dtype)

        return jax.tree.map(of_leaf, wide(updates))

    return combining(combine)


def coordinate_median(updates: PyTree, weights: Array, counted: Array, key: Array) -> PyTree:
    """The median over the first axis where `counted`, of every coordinate of every leaf."""
    number = jnp.sum(counted, dtype=jnp.int32)
    middle = jnp.maximum(number - 1, 0) // 2, number // 2

    def of_leaf(x: Array) -> Array:
        ordered = _ordered(x, counted)
        lower, upper = (jax.lax.dynamic_index_in_dim(ordered, i, 0, False) for i in middle)
        return jnp.where(lower == upper, lower, (lower + upper) / 2)

    return jax.tree.map(of_leaf, wide(updates))


def _ordered(x: Array, counted: Array) -> Array:
    """Each coordinate's values in order, those that count first."""
    is_counted = counted.reshape(-1, *[1] * (x.ndim - 1))
    # Those that do not count are infinite here, and so are NaNs, so that both are sorted last.
    return jnp.sort(jnp.where(is_counted & ~jnp.isnan(x), x, jnp.inf), axis=0)
