"""The samplers of clients; each draws a cohort inside the graph."""

import math
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc
from jax.typing import ArrayLike

from fedjax_sim.core.checks import check_count, is_concrete
from fedjax_sim.core.randomness import permutation_seeds, permute, stream
from fedjax_sim.core.registry import UP_TO_1, declare
from fedjax_sim.core.sampling_law import Dependent, Poisson
from fedjax_sim.core.types import Array, Cohort
from fedjax_sim.data import FederatedData
from fedjax_sim.sampling.sampler import Sampler, custom


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

    def among(
        key: Array, data: FederatedData, is_available: Array, probability: ArrayLike | None
    ) -> Cohort:
        num_clients = _check_fits(m, data)
        order = permute(
            permutation_seeds(key), jnp.arange(num_clients, dtype=jnp.int32), num_clients
        )
        (places,) = jnp.nonzero(is_available[order], size=m, fill_value=0)
        mask = jnp.arange(m) < jnp.sum(is_available)
        inclusion = None
        if probability is not None:
            inclusion = jnp.full(m, _expected_at_most(m, num_clients, probability) / num_clients)
        return Cohort(order[places], mask, inclusion=inclusion)

    law = Dependent("whoever comes takes the place of another in m")
    return custom(m, draw, law=law, among=among)


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
    UP_TO_1.check("q", q)
    if capacity is not None:
        capacity = check_count("capacity", capacity)
        if not is_concrete(q):
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

    return custom(capacity, draw, law=Poisson(q, capacity))


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
        # No interval is longer than 1, so two points are in one interval only by rounding.
        index = jnp.searchsorted(upper, points, side="right")
        ids = order[jnp.minimum(index, num_clients - 1)]
        fresh = jnp.concatenate([jnp.ones(1, bool), index[1:] != index[:-1]])
        mask = fresh & (index < num_clients) & (inclusion[ids] > 0)
        return Cohort(ids, mask, inclusion=inclusion[ids])

    law = Dependent("clients come by their weights, which others' change")
    return custom(m, draw, law=law, among=_by_weight_among(draw))


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
        # A point may be rounded to the last sum; it is then the last client's with a weight.
        last = jnp.searchsorted(upper, upper[-1], side="left")
        ids = jnp.minimum(jnp.searchsorted(upper, points, side="right"), last).astype(jnp.int32)
        inclusion = m * data.client_weights[ids] / upper[-1]
        return Cohort(ids, jnp.ones(m, bool), inclusion=inclusion)

    law = Dependent("a client may come several times in a round")
    return custom(m, draw, with_replacement=True, law=law, among=_by_weight_among(draw))


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

    return custom(None, draw, law=Poisson(1.0))


def _by_weight_among(draw: Callable[[Array, FederatedData], Cohort]) -> Callable[..., Cohort]:
    """A draw by weight in which those who are not available have none."""

    def among(
        key: Array, data: FederatedData, is_available: Array, probability: ArrayLike | None
    ) -> Cohort:
        weights = jnp.where(is_available, data.client_weights, 0)
        return draw(key, replace(data, client_weights=weights))._replace(inclusion=None)

    return among


def _expected_at_most(m: int, number: int, probability: ArrayLike) -> Array:
    """`E[min(m, A)]`, Float[], with A ~ Binomial(number, probability)."""
    j = jnp.arange(1, m + 1, dtype=jnp.result_type(float))
    # P(A >= j), of which the sum over j from 1 to m is that mean.
    tails = betainc(j, number + 1 - j, jnp.asarray(probability, j.dtype))
    return jnp.sum(tails)


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
    # Fewer than m are capped, so only the m largest are sorted, which is ten times as fast.
    largest, places = jax.lax.top_k(weights, m)
    others_sum = jnp.sum(weights.at[places].set(0))
    remaining = jnp.cumsum(largest[::-1])[::-1] + others_sum  # the sum of w from this one down
    # The sum that remains for this one and smaller ones if all larger ones have 1.
    left = (m - jnp.arange(m)).astype(weights.dtype)
    capped = jnp.argmax(left * largest <= remaining)  # the first that need not be capped
    scale = jnp.where(remaining[capped] > 0, left[capped] / remaining[capped], jnp.inf)
    return jnp.where(weights > 0, jnp.minimum(1, scale * weights), 0)
