"""Rules that choose updates by how near others are: Krum and Multi-Krum.

Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent"
(arXiv 1703.02757).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.aggregation.robust.stacks import (
    Bound,
    alike,
    check_whole,
    guarded,
    num_reporting,
    ranks,
    squared_distances,
    wide,
)
from fedjax_sim.core.registry import AT_LEAST_0, AT_LEAST_1, Option, declare
from fedjax_sim.core.trees import weighted_sum
from fedjax_sim.core.types import AggregationRule, Array, Coefficients, Cohort, PyTree

_F = Option("f", "clients of a round that may send anything", kind=int, range=AT_LEAST_0)


@declare("the update that is nearest to its neighbours", _F)
def krum(f: Any) -> AggregationRule:
    """The one update whose nearest neighbours are nearest, of the n clients that report.

    `w_{t+1} = w_t + d_i`, with i the client of the smallest score
    `s(i) = sum_{j in N_i} |d_i - d_j|^2`, N_i the n - f - 2 others nearest to it; of equal scores
    the client of the smallest id. Clients count alike; a client's fixed share is 1/K.

    It needs n > 2 f + 2. A cohort of fewer slots is refused before anything compiles; a round in
    which fewer report is an empty one: the model stays, and `RoundMetrics.empty` says so. (Where
    the round itself drops updates that are not finite, and so comes below, the update is 0.) An
    update that is not finite is infinitely far from all others and is not chosen; where more than f
    of them are, the average is NaN.

    Blanchard et al. 2017 (arXiv 1703.02757).

    Args:
      f: Int[] >= 0, how many may send anything; may be traced.

    Raises:
      ValueError: for an f that is no whole number of at least 0, or a cohort too small for it.

    >>> updates = jnp.array([1.0, 1.1, 1.2, 1.4, -50.0])
    >>> cohort = Cohort(jnp.arange(5))
    >>> answer = krum(1)(cohort, jnp.ones(5), jnp.ones(5))
    >>> round(float(answer.combine(updates, jnp.ones(5), jnp.ones(5, bool), None)), 3)
    1.1
    """
    return _krum("krum", check_whole("f", f, 0), 1)


@declare(
    "the mean of the updates that are nearest to their neighbours",
    _F,
    Option(
        "krum_keep",
        "updates that are averaged",
        kind=int,
        range=AT_LEAST_1,
        parameter="keep",
    ),
)
def multi_krum(f: Any, keep: Any) -> AggregationRule:
    """The mean of the `keep` updates of the smallest scores of `krum`; at most n - f of them.

    All else is as in `krum`, which is `keep` = 1. Blanchard et al. 2017 (arXiv 1703.02757), section
    4 ("Multi-Krum"), for m.

    Args:
      f: Int[] >= 0, how many may send anything; may be traced.
      keep: Int[] >= 1, how many are averaged; may be traced.

    Raises:
      ValueError: as `krum`.

    >>> updates = jnp.array([1.0, 1.1, 1.3, 1.6, -50.0])
    >>> answer = multi_krum(1, 2)(Cohort(jnp.arange(5)), jnp.ones(5), jnp.ones(5))
    >>> round(float(answer.combine(updates, jnp.ones(5), jnp.ones(5, bool), None)), 3)
    1.05
    """
    return _krum("multi_krum", check_whole("f", f, 0), check_whole("keep", keep, 1))


def _krum(name: str, f: Any, keep: Any) -> AggregationRule:
    bound = Bound(name, f, times=2, more=2)

    def rule(cohort: Cohort, client_weights: Array, all_client_weights: Array) -> Coefficients:
        bound.check(cohort.client_ids.shape[0])
        ids = cohort.client_ids

        def combine(updates: PyTree, weights: Array, counted: Array, key: Array) -> PyTree:
            return _nearest(updates, counted, ids, f, keep)

        answer = alike(client_weights, all_client_weights, guarded(bound, combine))
        enough = bound.suffices(num_reporting(cohort))
        return answer._replace(weights=jnp.where(enough, answer.weights, 0))

    return rule


def _nearest(updates: PyTree, counted: Array, ids: Array, f: Any, keep: Any) -> PyTree:
    """The mean of the `keep` updates of the smallest scores."""
    updates = wide(updates)
    slots, number = counted.shape[0], jnp.sum(counted, dtype=jnp.int32)
    others = counted[None, :] & ~jnp.eye(slots, dtype=bool)
    distances = jnp.where(others, squared_distances(updates), jnp.inf)
    is_neighbour = jnp.arange(slots) < number - f - 2
    scores = jnp.sum(jnp.where(is_neighbour[None], jnp.sort(distances, axis=1), 0), axis=1)
    # Slots that do not count are behind those whose score is infinite, because they are no clients.
    order = jnp.where(counted, ids, jnp.iinfo(ids.dtype).max)
    rank = ranks(jnp.where(counted, scores, jnp.inf), order)
    kept = jnp.clip(jnp.minimum(keep, number - f), 1)
    chosen = counted & (rank < kept)
    is_valid = jnp.all(jnp.isfinite(jnp.where(chosen, scores, 0)))
    total = weighted_sum(jnp.ones_like(scores), chosen, updates)
    return jax.tree.map(lambda x: jnp.where(is_valid, x / kept.astype(x.dtype), jnp.nan), total)
