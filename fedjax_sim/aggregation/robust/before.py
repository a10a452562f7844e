"""What is done to the updates before a rule sees them: bucketing and mixing with neighbours."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.aggregation.robust.stacks import (
    Bound,
    check_whole,
    guarded,
    num_reporting,
    ranks,
    squared_distances,
    squared_norms,
    wide,
)
from fedjax_sim.core.checks import check_count, check_takes
from fedjax_sim.core.randomness import stream
from fedjax_sim.core.registry import AT_LEAST_0, AT_LEAST_1, Option, declare
from fedjax_sim.core.trees import where
from fedjax_sim.core.types import (
    AggregationRule,
    Array,
    Coefficients,
    Cohort,
    Combine,
    PyTree,
)

_INNER, _ORDER = 0, 1  # below the key of a round's rule


@declare(
    "means of a few updates drawn at random are what the rule sees",
    Option("bucket_size", "updates of a mean", kind=int, range=AT_LEAST_1, parameter="size"),
)
def bucketing(rule: AggregationRule, size: int) -> AggregationRule:
    """s-bucketing: the n clients that report are dealt at random, `size` to a bucket, and the rule
    is given the buckets' means in place of updates.

    There are ceil(n / size) buckets, of which the last may hold fewer; a mean is plain. Honest
    updates become alike, while a bucket that has an attacker is the attacker's: so a Krum behind it
    needs ceil(n / size) > 2 f + 2. The rule takes a bucket for a client of weight 1. A draw depends
    on the round and the clients' ids, and on no slot. A size of 1 changes nothing but the weights.

    Karimireddy et al. 2020, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing"
    (arXiv 2006.09365), Algorithm 1, with `size` for s.

    Args:
      rule: one that sees all updates, as `krum(f)`.
      size: whole number of at least 1.

    Raises:
      ValueError: for a size out of range, or a rule that only averages.

    >>> import fedjax_sim as fs
    >>> rule = bucketing(fs.aggregation.median(), 2)
    >>> answer = rule(Cohort(jnp.arange(6)), jnp.ones(6), jnp.ones(6))
    >>> updates = jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 90.0])
    >>> float(answer.combine(updates, jnp.ones(6), jnp.ones(6, bool), jax.random.key(0)))
    1.0
    """
    _check_inner(rule)
    size = check_count("size", size)

    def outer(cohort: Cohort, client_weights: Array, all_client_weights: Array) -> Coefficients:
        slots, ids = cohort.client_ids.shape[0], cohort.client_ids
        buckets = -(-slots // size)
        all_ones = jnp.ones_like(all_client_weights)

        def ask(number: Array) -> tuple[Coefficients, Combine, Array]:
            """The rule's answer about so many clients' buckets, and which of them there are."""
            places = jnp.arange(buckets, dtype=ids.dtype)
            exists = places * size < number
            ones = jnp.ones(buckets, client_weights.dtype)
            alone = Cohort(places, jnp.ones_like(exists), exists)
            return *_combining(rule, alone, ones, all_ones), exists

        def combine(updates: PyTree, weights: Array, counted: Array, key: Array) -> PyTree:
            answer, inner, exists = ask(jnp.sum(counted, dtype=jnp.int32))
            order = _shuffled(ids, counted, stream(key, _ORDER))
            padding = buckets * size - slots

            def dealt(x: Array) -> Array:
                x = jnp.pad(x[order], [(0, padding)] + [(0, 0)] * (x.ndim - 1))
                return x.reshape(buckets, size, *x.shape[1:])

            present = dealt(counted)
            number = jnp.maximum(jnp.sum(present, axis=1), 1)

            def mean(x: Array) -> Array:
                whole = dealt(x)
                mask = present.reshape(*present.shape, *[1] * (x.ndim - 1))
                total = jnp.sum(jnp.where(mask, whole, 0), axis=1)
                return total / number.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))

            means = jax.tree.map(mean, wide(updates))
            return inner(means, answer.weights, exists, stream(key, _INNER))

        answer, _, exists = ask(num_reporting(cohort))
        ones = jnp.ones_like(client_weights)
        is_used = jnp.any(exists & (answer.weights != 0))
        return Coefficients(
            jnp.where(is_used, ones, 0),
            None,
            shares=ones / all_client_weights.shape[0],
            combine=combine,
        )

    return outer


@declare(
    "every update is replaced by the mean of those nearest to it",
    Option(
        "mixing_f",
        "clients of a round that may send anything",
        kind=int,
        range=AT_LEAST_0,
        parameter="f",
    ),
)
def nearest_neighbour_mixing(rule: AggregationRule, f: Any) -> AggregationRule:
    """NNM: each of the n updates is replaced by the mean of the n - f nearest to it, itself
    included, and the rule is given those.

    The mean is plain, and of equal distances the client of the smallest id is nearer. With f = 0
    each is the plain mean of all. It needs n > 2 f: a cohort of fewer slots is refused before
    anything compiles, and a round in which fewer report is an empty one, as under `krum`. An update
    that is not finite is infinitely far from all others, and stays as it is.

    Allouah et al. 2023, "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity"
    (arXiv 2302.01772), Algorithm 2.

    Args:
      rule: one that sees all updates, as `krum(f)`.
      f: Int[] >= 0, how many may send anything; may be traced.

    Raises:
      ValueError: for an f that is no whole number of at least 0, a cohort too small for it, or a
        rule that only averages.

    >>> import fedjax_sim as fs
    >>> rule = nearest_neighbour_mixing(fs.aggregation.median(), 1)
    >>> answer = rule(Cohort(jnp.arange(3)), jnp.ones(3), jnp.ones(3))
    >>> updates = jnp.array([1.0, 2.0, 90.0])
    >>> float(answer.combine(updates, jnp.ones(3), jnp.ones(3, bool), None))
    1.5
    """
    _check_inner(rule)
    f = check_whole("f", f, 0)
    bound = Bound("nearest_neighbour_mixing", f, times=2, more=0)

    def outer(cohort: Cohort, client_weights: Array, all_client_weights: Array) -> Coefficients:
        bound.check(cohort.client_ids.shape[0])
        ids = cohort.client_ids
        answer, inner = _combining(rule, cohort, client_weights, all_client_weights)

        def combine(updates: PyTree, weights: Array, counted: Array, key: Array) -> PyTree:
            return inner(_mixed(updates, counted, ids, f), weights, counted, key)

        enough = bound.suffices(num_reporting(cohort))
        return answer._replace(
            weights=jnp.where(enough, answer.weights, 0), combine=guarded(bound, combine)
        )

    return outer


def _mixed(updates: PyTree, counted: Array, ids: Array, f: Any) -> PyTree:
    """For each update the mean of the n - f nearest that count; 0 of those that do not."""
    updates = wide(updates)
    number = jnp.sum(counted, dtype=jnp.int32)
    distances = jnp.where(counted[None, :], squared_distances(updates), jnp.inf)
    order = jnp.where(counted, ids, jnp.iinfo(ids.dtype).max)
    rank = jax.vmap(lambda row: ranks(row, order))(distances)
    nearest = counted[None, :] & (rank < number - f)
    is_finite = jnp.isfinite(squared_norms(updates))
    # A row that has a neighbour without a distance is NaN: more than f of them are not finite. So
    # is one that is not finite itself, whose neighbours would be the clients of the smallest ids.
    is_valid = is_finite & jnp.all(jnp.where(nearest, is_finite[None, :], True), axis=1)
    mixing = nearest.astype(distances.dtype) / jnp.maximum(number - f, 1).astype(distances.dtype)

    def mixed(x: Array) -> Array:
        finite = where(is_finite, x, jnp.zeros_like(x))
        product = jnp.tensordot(
            mixing.astype(x.dtype), finite, axes=1, precision=jax.lax.Precision.HIGHEST
        )
        value = where(is_valid, product, jnp.full_like(x, jnp.nan))
        return where(counted, value, jnp.zeros_like(x))

    return jax.tree.map(mixed, updates)


def _shuffled(ids: Array, counted: Array, key: Array) -> Array:
    """Int[m], the slots in a random order of the clients, those that count first."""

    def number(client_id: Array) -> Array:
        return jax.random.bits(stream(key, client_id), dtype=jnp.uint32)

    return jnp.lexsort((ids, jax.vmap(number)(ids), ~counted))


def _check_inner(rule: Any) -> None:
    if not callable(rule):
        raise ValueError(f"rule must be an aggregation rule, as krum(1); got {rule!r}")
    check_takes("rule", rule, "cohort", "client_weights", "all_client_weights")


def _combining(
    rule: AggregationRule, cohort: Cohort, client_weights: Array, all_client_weights: Array
) -> tuple[Coefficients, Combine]:
    """The answer of a rule that sees all updates, and its `combine`.

    Raises:
      ValueError: for a rule that only averages.
    """
    answer = Coefficients(*rule(cohort, client_weights, all_client_weights))
    if answer.combine is None:
        raise ValueError(
            "rule must be one that sees all updates, as krum(f) or median(); got one that averages "
            "them, which needs nothing before it"
        )
    return answer, answer.combine
