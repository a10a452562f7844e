"""The contract of a sampler."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.types import Cohort
from fedjax_sim.data import FederatedData
from fedjax_sim.sampling import Sampler
from fedjax_sim.testing.certificate import Certificate, same_bits
from fedjax_sim.testing.problem import linear_regression

_STANDARD_ERRORS = 5.0  # one of 64 clients is further off by chance in 1 of some 30,000 checks


def check_sampler(
    sampler: Sampler,
    data: FederatedData | None = None,
    *,
    rounds: int = 4096,
    verbose: bool = True,
) -> Certificate:
    """Checks a sampler against the contract: its cohorts, and its inclusion probabilities by count.

    Cohorts have its slots, ids in [0, K) and, without replacement, no client twice; the same key
    and round give the same bits, alone as under `vmap` and `jit`; rounds differ, unless all K
    are picked. Where a cohort has `inclusion`, each client's pi_k is compared with how often it is
    picked in so many rounds, by `|count - sum pi| <= 5 sqrt(sum pi (1 - pi))` (of draws with
    replacement, whose pi_k is an expected number, `sqrt(sum pi)`).

    Args:
      sampler: from `fs.sampling`, or one's own.
      data: None for that of `linear_regression()`.
      rounds: that are drawn.
      verbose: print each line as it is known.

    Returns:
      `Certificate`.

    Raises:
      ContractError: with the smallest case that fails.

    >>> import fedjax_sim as fs
    >>> certificate = fs.testing.check_sampler(fs.sampling.uniform(3), rounds=512)
    Sampler: 3 slots of 8 clients, ids in range, no client twice
    Sampler: same key, same bits, alone and under vmap and jit; rounds differ
    Sampler: each client is picked as often as its inclusion says, within 5 standard errors
    """
    data = linear_regression().data if data is None else data
    certificate = Certificate("Sampler", verbose)
    key, number = jax.random.key(0), data.num_clients
    slots = number if sampler.size is None else sampler.size

    def draw(round: Any) -> Cohort:
        cohort = sampler.sample(key, round, data)
        mask = jnp.ones(slots, bool) if cohort.mask is None else cohort.mask
        return cohort._replace(mask=mask)

    several = jax.jit(jax.vmap(draw))(jnp.arange(rounds, dtype=jnp.int32))
    ids, mask = np.asarray(several.client_ids), np.asarray(several.mask)
    if ids.shape != (rounds, slots):
        raise certificate.fails("m slots", f"{slots} of them", f"ids have shape {ids.shape[1:]}")
    for round in range(rounds):
        picked = ids[round][mask[round]]
        if ((picked < 0) | (picked >= number)).any():
            raise certificate.fails(f"ids in [0, {number})", f"round {round}", f"{picked}")
        if not sampler.with_replacement and len(set(picked.tolist())) != len(picked):
            raise certificate.fails("no client twice", f"round {round}", f"{picked}")
    repeated = "some twice" if sampler.with_replacement else "no client twice"
    certificate.holds(f"{slots} slots of {number} clients, ids in range, {repeated}")
    for round in range(3):
        alone, under_vmap = draw(round), jax.tree.map(lambda x, i=round: x[i], several)
        if not same_bits((alone.client_ids, alone.mask), (under_vmap.client_ids, under_vmap.mask)):
            raise certificate.fails("same key, same bits", f"round {round}", "vmap draws others")
    first = ids[0][mask[0]]
    if mask.sum() < rounds * number and all(
        np.array_equal(ids[i][mask[i]], first) for i in range(1, min(rounds, 64))
    ):
        raise certificate.fails("rounds differ", "rounds 0 to 63", f"all pick {first}")
    certificate.holds("same key, same bits, alone and under vmap and jit; rounds differ")
    if several.inclusion is not None:
        _check_inclusion(certificate, sampler, several, ids, mask, number)
    return certificate


def _check_inclusion(
    certificate: Certificate,
    sampler: Sampler,
    several: Cohort,
    ids: np.ndarray,
    mask: np.ndarray,
    number: int,
) -> None:
    """Counts how often each client is picked; a client's pi_k is read where it is picked."""
    rounds = len(ids)
    inclusion = np.asarray(several.inclusion, np.float64)
    counts, probability = np.zeros(number), np.full(number, np.nan)
    np.add.at(counts, ids[mask], 1)
    for k in range(number):
        values = inclusion[mask & (ids == k)]
        if not len(values):
            continue
        if np.ptp(values) > 1e-5 * values.max():
            raise certificate.fails(
                "inclusion is of the client",
                f"client {k}",
                f"from {values.min()} to {values.max()}",
            )
        probability[k] = values[0]
        expected = rounds * probability[k]
        spread = expected if sampler.with_replacement else expected * max(0, 1 - probability[k])
        if abs(counts[k] - expected) > _STANDARD_ERRORS * math.sqrt(spread) + 1e-4 * expected:
            raise certificate.fails(
                "a client is picked as often as its inclusion says",
                f"client {k}, {rounds} rounds",
                f"{counts[k]:.0f} times, and inclusion says {expected:.1f}",
            )
    certificate.holds(
        f"each client is picked as often as its inclusion says, within {_STANDARD_ERRORS:g} "
        "standard errors"
    )
