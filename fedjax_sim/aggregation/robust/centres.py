"""Rules that weigh or clip updates by their distance: from a centre, or from the model itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fedjax_sim.aggregation.robust.stacks import (
    check_radius,
    check_whole,
    combining,
    squared_distances_to,
    squared_norms,
    wide,
)
from fedjax_sim.core.checks import check_number
from fedjax_sim.core.registry import AT_LEAST_1, POSITIVE, Option, declare
from fedjax_sim.core.trees import weighted_sum
from fedjax_sim.core.types import AggregationRule, Array, PyTree

_RADIUS = Option("radius", "the longest move of a client", range=POSITIVE, traced=True)


@declare(
    "the point of the smallest weighted sum of distances to the updates (RFA)",
    Option(
        "median_steps",
        "steps of Weiszfeld's algorithm",
        default=8,
        kind=int,
        range=AT_LEAST_1,
        parameter="steps",
    ),
)
def geometric_median(steps: Any, smoothing: ArrayLike = 1e-6) -> AggregationRule:
    """The geometric median of the updates by the smoothed Weiszfeld algorithm (RFA).

    It minimises `sum_k a_k |v - d_k|` by `v <- sum_k b_k d_k / sum_k b_k` with
    `b_k = a_k / max(smoothing, |v - d_k|)`, a_k = n_k: clients are weighted, as in the paper. v
    begins at the weighted mean, and each step divides what an outlier of a share rho does to it by
    about (1 - rho) / rho; so `steps` should be more the larger an attack may be. Less than half of
    the weight may be of clients that send anything.

    An update that is not finite, or whose squared norm is not, is infinitely far and has no weight;
    where no other is left the average is NaN.

    Pillutla et al. 2019, "Robust Aggregation for Federated Learning" (arXiv 1912.13445),
    Algorithm 2.

    Args:
      steps: Int[] >= 1, T of the paper; may be traced.
      smoothing: Float[] > 0, nu of the paper, in the unit of a distance; may be traced.

    Raises:
      ValueError: for values out of range.

    >>> updates = jnp.array([0.0, 1.0, 1.0, 1.0, 90.0])
    >>> answer = geometric_median(20)(None, jnp.ones(5), jnp.ones(5))
    >>> round(float(answer.combine(updates, answer.weights, jnp.ones(5, bool), None)), 3)
    1.0
    """
    steps = check_whole("steps", steps, 1)
    check_number("smoothing", smoothing, lambda x: x > 0, "positive")

    def combine(updates: PyTree, weights: Array, counted: Array, key: Array) -> PyTree:
        updates = wide(updates)
        counted = counted & jnp.isfinite(squared_norms(updates))

        def mean(weights: Array) -> PyTree:
            weights = jnp.where(counted, weights, 0)
            return weighted_sum(weights / jnp.sum(weights), counted, updates)

        def step(_: Array, v: PyTree) -> PyTree:
            distances = jnp.sqrt(squared_distances_to(v, updates))
            smooth = jnp.maximum(distances, jnp.asarray(smoothing, distances.dtype))
            return mean(weights.astype(smooth.dtype) / smooth)

        first = mean(weights.astype(jnp.result_type(float)))
        return _where_any(counted & (weights > 0), jax.lax.fori_loop(0, steps, step, first))

    return combining(combine, by_weight=True)


@declare(
    "the mean of the updates, each clipped at a radius around a centre that moves",
    _RADIUS,
    Option(
        "clip_steps",
        "steps of the centre",
        default=1,
        kind=int,
        range=AT_LEAST_1,
        parameter="steps",
    ),
)
def centered_clipping(radius: ArrayLike, steps: Any = 1) -> AggregationRule:
    """The mean of clipped updates: `v <- v + (1/n) sum_k (d_k - v) min(1, radius / |d_k - v|)`.

    That is done `steps` times. v begins at 0, which is the model w_t: the paper begins at the
    average of the round before, which a rule does not know, and which for the displacements of a
    federated round is no nearer. So each step moves the model by at most `radius`, whatever is
    sent. Clients count alike; a client's fixed share is 1/K. An update that is not finite, or whose
    squared distance is not, moves v by nothing, and is one of the n. An infinite radius is the
    plain mean.

    Karimireddy et al. 2020, "Learning from History for Byzantine Robust Optimization" (arXiv
    2012.10333), for tau and l.

    Args:
      radius: Float[] > 0, or infinite; may be traced.
      steps: Int[] >= 1; may be traced.

    Raises:
      ValueError: for values out of range.

    >>> updates = jnp.array([1.0, 2.0, 1e6])
    >>> answer = centered_clipping(3.0)(None, jnp.ones(3), jnp.ones(3))
    >>> float(answer.combine(updates, jnp.ones(3), jnp.ones(3, bool), None))
    2.0
    """
    check_radius(radius)
    steps = check_whole("steps", steps, 1)

    def combine(updates: PyTree, weights: Array, counted: Array, key: Array) -> PyTree:
        updates = wide(updates)
        number = jnp.maximum(jnp.sum(counted, dtype=jnp.int32), 1)

        def step(_: Array, v: PyTree) -> PyTree:
            scales = _clipping(squared_distances_to(v, updates), radius)
            apart = jax.tree.map(lambda x, v: x - v[None], updates, v)
            moves = weighted_sum(scales, counted, apart)
            return jax.tree.map(lambda v, move: v + move / number.astype(v.dtype), v, moves)

        zeros = jax.tree.map(lambda x: jnp.zeros_like(x[0]), updates)
        return jax.lax.fori_loop(0, steps, step, zeros)

    return combining(combine)


@declare("the mean by examples of the updates, each clipped at a radius", _RADIUS)
def norm_bounded(radius: ArrayLike) -> AggregationRule:
    """The weighted mean of updates that are at most `radius` long.

    `w_{t+1} = w_t + sum_k (n_k / n_V) d_k min(1, radius / |d_k|)`: clients are weighted by their
    examples, as in the mean `selected`, which it is for an infinite radius. An update that is not
    finite, or whose squared norm is not, moves the model by nothing, and keeps its weight in n_V.

    Sun et al. 2019, "Can You Really Backdoor Federated Learning?" (arXiv 1911.07963), for M.

    Args:
      radius: Float[] > 0, or infinite; may be traced.

    Raises:
      ValueError: for a radius out of range.

    >>> updates = jnp.array([1.0, 2.0, 1e6])
    >>> answer = norm_bounded(3.0)(None, jnp.ones(3), jnp.ones(3))
    >>> float(answer.combine(updates, jnp.ones(3), jnp.ones(3, bool), None))
    2.0
    """
    check_radius(radius)

    def combine(updates: PyTree, weights: Array, counted: Array, key: Array) -> PyTree:
        updates = wide(updates)
        scales = _clipping(squared_norms(updates), radius)
        weights = jnp.where(counted, weights, 0).astype(scales.dtype)
        total = jnp.sum(weights)
        shares = weights / jnp.where(total == 0, 1, total)
        return weighted_sum(shares * scales, counted, updates)

    return combining(combine, by_weight=True)


def _clipping(squared_lengths: Array, radius: ArrayLike) -> Array:
    """Float[m], `min(1, radius / length)`; 0 of an infinite length."""
    lengths = jnp.sqrt(squared_lengths)
    limit = jnp.asarray(radius, lengths.dtype)
    scales = jnp.where(lengths > limit, limit / jnp.where(lengths > limit, lengths, 1), 1)
    return jnp.where(jnp.isfinite(lengths), scales, 0)


def _where_any(counted: Array, tree: PyTree) -> PyTree:
    """The tree; NaN where nothing counts."""
    return jax.tree.map(lambda x: jnp.where(jnp.any(counted), x, jnp.nan), tree)
