"""Samplers: who takes part in a round, inside the graph.

A sampler folds the round into the key itself, so that with one base key

    cohort = sampler.sample(key, state.round, data)
    state, metrics = round_fn(key, state, data, cohort)

is the body of `fs.run`. It gives each client's inclusion probability pi_k, the
probability of being picked (with replacement: the expected number of draws), which the
`unbiased` rule divides by.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.checks import check_count, check_takes, is_concrete
from fedjax_sim.core.randomness import COHORT, check_key, permutation_seeds, permute, stream
from fedjax_sim.core.registry import declare
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import Array, Cohort
from fedjax_sim.data import FederatedData


class Sampler(NamedTuple):
    """How cohorts are drawn. Make your own with `custom`.

    Attributes:
      size: m, the cohort's slots; None for K.
      with_replacement: may a client occur twice in a cohort?
      sample: (key, round, data) -> Cohort; folds the round into the key.
    """

    size: int | None
    with_replacement: bool
    sample: Callable[[Array, Array | int, FederatedData], Cohort]

    def __repr__(self) -> str:
        return fields_of(self)


def custom(
    size: int | None,
    draw: Callable[[Array, FederatedData], Cohort],
    with_replacement: bool = False,
) -> Sampler:
    """A sampler from a function `draw(key, data) -> Cohort`, given a fresh key each round.

    Args:
      size: m, the slots of the cohorts it draws; None for K.
      draw: traced once, so its random numbers must come from `key`.
      with_replacement: may it draw a client twice?

    Raises:
      ValueError: if size < 1, or draw cannot be called so; on sampling, if what it returns is no
        cohort of that size.

    Half of ten selected clients drop out:

    >>> import jax, jax.numpy as jnp
    >>> def draw(key, data):
    ...     cohort = uniform(10).sample(key, 0, data)
    ...     return cohort._replace(reports=jax.random.bernoulli(key, 0.5, (10,)))
    >>> sampler = custom(10, draw)
    """
    if size is not None:
        size = check_count("size", size, ", or None for K")
    check_takes("draw", draw, "key", "data")

    def sample(key: Array, round: Array | int, data: FederatedData) -> Cohort:
        check_key(key)
        cohort = draw(stream(key, COHORT, round), data)
        if not isinstance(cohort, Cohort):
            raise ValueError(f"draw must return an fs.Cohort; got {type(cohort).__name__}")
        slots = data.num_clients if size is None else size
        if jnp.shape(cohort.client_ids) != (slots,):
            raise ValueError(
                f"draw must return a cohort of {slots} slots; got client_ids of shape "
                f"{jnp.shape(cohort.client_ids)}"
            )
        return cohort

    sample.__qualname__ = getattr(draw, "__qualname__", "")  # what a refused resume calls it
    return Sampler(size, with_replacement, sample)


@declare("m different clients, all cohorts alike probable", is_default=True)
def uniform(m: int) -> Sampler:
    """m of the K clients, each set equally likely; pi_k = m/K. Costs O(m), not O(K).

    Raises:
      ValueError: if m < 1, and on sampling if m > K.
    """
    m = check_count("m", m)

    def draw(key: Array, data: FederatedData) -> Cohort:
        num_clients = _check_fits(m, data)
        slots = jnp.arange(m, dtype=jnp.int32)
        ids = permute(permutation_seeds(key), slots, num_clients)
        return Cohort(ids, jnp.ones(m, bool), inclusion=jnp.full(m, m / num_clients))

    return custom(m, draw)


@declare("every client with the same probability on its own")
def bernoulli(q: float | Array, capacity: int | None = None) -> Sampler:
    """Every client takes part with probability q on its own; pi_k = q.

    A cohort can be empty. It has K slots with a mask, or `capacity` slots, into which
    the same cohort is packed.

    Args:
      q: Float[], in (0, 1]; may be traced if `capacity` is None.
      capacity: slots of the cohort; None for K.

    Raises:
      ValueError: if q is not in (0, 1], if capacity < 1, and on sampling if more than
        `capacity` clients would come with a probability above 1e-9 a round.
    """
    concrete = is_concrete(q)
    if concrete and not 0 < float(q) <= 1:
        raise ValueError(f"q must be in (0, 1]; got {q}")
    if capacity is not None:
        capacity = check_count("capacity", capacity)
        if not concrete:
            raise ValueError("q must be a number where capacity is given; got a traced array")

    def draw(key: Array, data: FederatedData) -> Cohort:
        num_clients = data.num_clients
        if capacity is not None:
            _check_overflow(float(q), capacity, num_clients)
        draws = jax.random.uniform(key, (num_clients,))
        mask = draws < jnp.asarray(q, draws.dtype)
        ids = jnp.arange(num_clients, dtype=jnp.int32)
        if capacity is not None:
            (ids,) = jnp.nonzero(mask, size=capacity, fill_value=0)
            ids, mask = ids.astype(jnp.int32), jnp.arange(capacity) < jnp.sum(mask)
        inclusion = jnp.broadcast_to(jnp.asarray(q, draws.dtype), ids.shape)
        return Cohort(ids, mask, inclusion=inclusion)

    return custom(capacity, draw)


@declare("m different clients, by their weight")
def weighted(m: int) -> Sampler:
    """m distinct clients with pi_k proportional to their weight, capped at 1.

    Systematic sampling over a fresh random order: `pi_k = min(1, c p_k)` with c such
    that they sum to m (m p_k where no client is large). Costs O(K log m). If fewer than m
    clients have a positive weight, those all take part and the other slots are masked.
    Its sums are of 32 bits: with very many clients (10^5 and more) pi_k is approximate.

    Raises:
      ValueError: if m < 1, and on sampling if m > K.
    """
    m = check_count("m", m)

    def draw(key: Array, data: FederatedData) -> Cohort:
        num_clients = _check_fits(m, data)
        inclusion = _capped_proportional(data.client_weights, m)
        seeds = permutation_seeds(key)
        order = permute(seeds, jnp.arange(num_clients, dtype=jnp.int32), num_clients)
        upper = jnp.cumsum(inclusion[order])
        points = jnp.arange(m, dtype=upper.dtype)
        points = points + jax.random.uniform(stream(key, 1), dtype=upper.dtype)
        points = points * (upper[-1] / jnp.round(upper[-1]))  # undoes the rounding of the sums
        # No interval is longer than 1, so points share one only where rounding makes them.
        index = jnp.searchsorted(upper, points, side="right")
        ids = order[jnp.minimum(index, num_clients - 1)]
        fresh = jnp.concatenate([jnp.ones(1, bool), index[1:] != index[:-1]])
        mask = fresh & (index < num_clients) & (inclusion[ids] > 0)
        return Cohort(ids, mask, inclusion=inclusion[ids])

    return custom(m, draw)


@declare("m draws by weight, in which a client may come twice")
def with_replacement(m: int) -> Sampler:
    """m independent draws with probability p_k; pi_k = m p_k, the expected draws.

    Scheme I of Li et al. 2020 (arXiv 1907.02189). A client drawn twice is one w_k
    counted twice. Refused for algorithms that keep client state. Its sums are of 32
    bits: with very many clients (10^5 and more) pi_k is approximate.

    Raises:
      ValueError: if m < 1.
    """
    m = check_count("m", m)

    def draw(key: Array, data: FederatedData) -> Cohort:
        upper = jnp.cumsum(data.client_weights)
        points = jax.random.uniform(key, (m,), dtype=upper.dtype) * upper[-1]
        # Rounding may put a point on the last sum: the last client with a weight takes it.
        last = jnp.searchsorted(upper, upper[-1], side="left")
        ids = jnp.minimum(jnp.searchsorted(upper, points, side="right"), last).astype(jnp.int32)
        inclusion = m * data.client_weights[ids] / upper[-1]
        return Cohort(ids, jnp.ones(m, bool), inclusion=inclusion)

    return custom(m, draw, with_replacement=True)


@declare("all clients in every round")
def everyone() -> Sampler:
    """All K clients in every round; pi_k = 1."""

    def draw(key: Array, data: FederatedData) -> Cohort:
        num_clients = data.num_clients
        all_ones = jnp.ones(num_clients)
        return Cohort(
            jnp.arange(num_clients, dtype=jnp.int32),
            jnp.ones(num_clients, bool),
            inclusion=all_ones,
        )

    return custom(None, draw)


def _check_fits(m: int, data: FederatedData) -> int:
    if m > data.num_clients:
        raise ValueError(f"m must be at most K = {data.num_clients} clients; got {m}")
    return data.num_clients


def _check_overflow(q: float, capacity: int, num_clients: int) -> None:
    """Chernoff's bound on more than `capacity` successes of K with probability q each."""
    if capacity >= num_clients:
        return
    share = (capacity + 1) / num_clients
    if share > q:
        kl = share * math.log(share / q)
        kl += (1 - share) * math.log((1 - share) / (1 - q)) if share < 1 else 0.0
        if math.exp(-num_clients * kl) <= 1e-9:
            return
    raise ValueError(
        f"capacity must hold every cohort of K = {num_clients} clients at q = {q} but for a "
        f"chance of 1e-9 a round; got {capacity}, which may be exceeded more often"
    )


def _capped_proportional(weights: Array, m: int) -> Array:
    """min(1, c w_k) with c such that the sum is m, or that every positive w_k has 1."""
    # Fewer than m are capped, so the m largest are looked at: sorting all takes ten times longer.
    largest, places = jax.lax.top_k(weights, m)
    others_sum = jnp.sum(weights.at[places].set(0))
    remaining = jnp.cumsum(largest[::-1])[::-1] + others_sum  # the sum of w from this one down
    # What is left to share out if all larger ones have 1.
    left = (m - jnp.arange(m)).astype(weights.dtype)
    capped = jnp.argmax(left * largest <= remaining)  # the first that need not be capped
    scale = jnp.where(remaining[capped] > 0, left[capped] / remaining[capped], jnp.inf)
    return jnp.where(weights > 0, jnp.minimum(1, scale * weights), 0)


def as_arrays(cohort: Cohort, num_clients: int, stateful: bool) -> tuple[Cohort, Array, Array]:
    """The cohort as arrays, its mask and its reports, all filled in, after refusing what cannot be.

    Types and shapes are checked always, values where they are known: inside a trace, ids
    out of range are padding and `work` is clipped to [0, 1].

    Raises:
      ValueError: naming the field, what was given and what is allowed.
    """
    if not isinstance(cohort, Cohort):
        raise ValueError(f"cohort must be an fs.Cohort; got {type(cohort).__name__}")
    given_ids = cohort.client_ids
    cohort = cohort._replace(client_ids=_in_32_bits(given_ids, num_clients))
    fields = [None if x is None else jnp.asarray(x) for x in cohort]
    if fields[0] is None or fields[0].ndim != 1 or fields[0].shape[0] == 0:
        raise ValueError(
            "cohort.client_ids must have shape (m,) with m >= 1; got "
            f"{None if fields[0] is None else fields[0].shape}"
        )
    ids = fields[0]
    kinds = (jnp.integer, jnp.bool_, jnp.bool_, jnp.number, jnp.number)
    for name, kind, value in zip(cohort._fields, kinds, fields, strict=True):
        if value is None:
            continue
        if value.shape != ids.shape:
            raise ValueError(
                f"cohort.{name} must have shape {ids.shape}, as client_ids; got {value.shape}"
            )
        if not jnp.issubdtype(value.dtype, kind):
            says = {jnp.integer: "integers", jnp.bool_: "booleans", jnp.number: "numbers"}[kind]
            raise ValueError(f"cohort.{name} must be {says}; got {value.dtype}")
    arrays = Cohort(ids.astype(jnp.int32), *fields[1:])
    mask = jnp.ones(ids.shape, bool) if arrays.mask is None else arrays.mask
    reports = mask if arrays.reports is None else mask & arrays.reports
    arrays = arrays._replace(mask=mask, reports=reports)
    if all(x is None or is_concrete(x) for x in arrays):
        _check_values(arrays._replace(client_ids=given_ids), num_clients, stateful)
    return arrays, mask, reports


def _in_32_bits(ids: Any, num_clients: int) -> Any:
    """The ids, where those that a cast would wrap round, perhaps to a client's, are -1."""
    is_known = all(is_concrete(x) for x in jax.tree.leaves(ids))
    arrays: Any = np if is_known else jnp
    wide = arrays.asarray(ids) if ids is not None else None
    if wide is None or wide.dtype not in (np.int64, np.uint64):
        return ids
    return arrays.where((wide >= 0) & (wide < num_clients), wide, -1).astype(np.int32)


def _check_values(cohort: Cohort, num_clients: int, stateful: bool) -> None:
    mask = np.asarray(cohort.mask)
    ids = np.asarray(cohort.client_ids)[mask]
    if ids.size and not (ids.min() >= 0 and ids.max() < num_clients):
        wrong = ids[(ids < 0) | (ids >= num_clients)][0]
        raise ValueError(f"cohort.client_ids must lie in [0, {num_clients}); got {wrong}")
    if stateful and len(np.unique(ids)) != len(ids):
        values, counts = np.unique(ids, return_counts=True)
        raise ValueError(
            "cohort.client_ids must not repeat a client where the algorithm keeps client state; "
            f"got client {values[counts > 1][0]} {counts.max()} times"
        )
    if cohort.inclusion is not None:
        inclusion = np.asarray(cohort.inclusion)[mask]
        if not (np.isfinite(inclusion).all() and (inclusion > 0).all()):
            raise ValueError(f"cohort.inclusion must be positive; got {inclusion.min()}")
    if cohort.work is not None:
        work = np.asarray(cohort.work)[mask]
        if not ((work >= 0) & (work <= 1)).all():
            raise ValueError(
                f"cohort.work must lie in [0, 1]; got values from {work.min()} to {work.max()}"
            )
