"""Cohorts of clients that are available, and cohorts with a deadline."""

from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from fedjax_sim.core.checks import check_number, is_concrete
from fedjax_sim.core.randomness import check_key
from fedjax_sim.core.sampling_law import Dependent
from fedjax_sim.core.types import Array, Cohort, Params
from fedjax_sim.data import FederatedData
from fedjax_sim.sampling.sampler import Sampler
from fedjax_sim.sampling.traces import Trace, recorded


def available(sampler: Sampler, trace: Trace | Any) -> Sampler:
    """The same sampler among the clients that are available in a round.

    `uniform`, `weighted`, `with_replacement` and `power_of_choice` draw their m of those that are
    available; with fewer of them, those all come and the other slots are masked. Of any other
    sampler, as `bernoulli`, `everyone` or one of `custom`, those drawn who are not available are
    masked.

    Inclusion probabilities, over cohorts and availability, are known where each client is
    available with one probability p on its own (`traces.bernoulli`): `p pi_k` of a sampler that is
    masked, and `E[min(m, A)] / K` of `uniform`, with A ~ Binomial(K, p). Otherwise a cohort has
    none, because a client that cannot be reached has a chance of 0 in some rounds, and the
    `unbiased` rule refuses it. Nor has it an event of a privacy accountant.

    Args:
      sampler: from `fs.sampling`; drawn from the run's key as it is without a trace.
      trace: of `fs.sampling.traces`, or Bool[T, K], a row a round, which begins again after T.

    Raises:
      ValueError: for what is no sampler or no trace; on sampling for a trace of another number of
        clients.

    >>> import fedjax_sim as fs, jax, numpy as np
    >>> data = fs.FederatedData.from_clients([np.ones(2)] * 3)
    >>> sampler = fs.sampling.available(fs.sampling.uniform(2), np.array([[True, False, False]]))
    >>> cohort = sampler.sample(jax.random.key(0), 0, data)
    >>> int(cohort.client_ids[0]), cohort.mask.tolist()
    (0, [True, False])
    """
    _check_is_sampler(sampler)
    if not isinstance(trace, Trace):
        if callable(trace) or not hasattr(trace, "__len__"):
            raise ValueError(
                "trace must be one of fs.sampling.traces, as fs.sampling.traces.bernoulli(0.5), or "
                f"booleans [T, K]; got {getattr(trace, '__name__', repr(trace))}"
            )
        trace = recorded(trace)
    probability: Any = trace.probability
    if always_come(trace):
        return sampler

    def drawn(
        key: Array,
        round: Array | int,
        data: FederatedData,
        is_available: Array,
        probability: ArrayLike | None,
        *params: Params,
    ) -> Cohort:
        if sampler.among is not None:
            cohort = sampler.among(key, round, data, is_available, probability, *params)
        else:
            cohort = sampler.sample(key, round, data, *params)
            inclusion = None
            if probability is not None and cohort.inclusion is not None:
                inclusion = jnp.asarray(cohort.inclusion)
                inclusion = inclusion * jnp.asarray(probability, inclusion.dtype)
            cohort = cohort._replace(inclusion=inclusion)
        mask = is_available.at[cohort.client_ids].get(mode="fill", fill_value=False)
        return cohort._replace(mask=mask if cohort.mask is None else cohort.mask & mask)

    def sample(key: Array, round: Array | int, data: FederatedData, *params: Params) -> Cohort:
        check_key(key)
        is_available = trace.is_available(key, round, data)
        return drawn(key, round, data, is_available, probability, *params)

    def among(
        key: Array,
        round: Array | int,
        data: FederatedData,
        is_available: Array,
        _: ArrayLike | None,
        *params: Params,
    ) -> Cohort:
        is_available &= trace.is_available(key, round, data)
        return drawn(key, round, data, is_available, None, *params)

    sample.__qualname__ = "available"
    return sampler._replace(
        sample=sample,
        among=among,
        law=Dependent("a client comes only where it is available"),
    )


def deadline(sampler: Sampler, seconds: ArrayLike, late: str = "drop") -> Sampler:
    """The same sampler, of whose clients the server waits for none longer than a deadline.

    Who is late is decided in the round, whose clock knows how long each client takes with its
    steps and bytes: `fs.make_round(..., clock=)`, `fs.Experiment(clock=)`. The round then takes
    `min(seconds, slowest)`, and all of it where a client is late or drops out.

    Args:
      sampler: from `fs.sampling`.
      seconds: Float[], simulated, positive; may be traced.
      late: "drop" takes nothing of a client that is late; "partial" takes the whole local steps
        that it has done in time, as of a straggler (`Cohort.work`).

    Raises:
      ValueError: for what is no sampler, seconds that are not positive, or another `late`; from
        the round, without a clock.

    >>> import fedjax_sim as fs
    >>> sampler = fs.sampling.deadline(fs.sampling.uniform(10), 30.0, late="partial")
    """
    _check_is_sampler(sampler)
    check_number("seconds", seconds, lambda x: x > 0, "positive")
    if late not in ("drop", "partial"):
        raise ValueError(f'late must be "drop" or "partial"; got {late!r}')

    def with_deadline(cohort: Cohort) -> Cohort:
        dtype, slots = jnp.result_type(float), cohort.client_ids.shape
        limits = jnp.full(slots, jnp.asarray(seconds, dtype))
        return cohort._replace(
            deadline=limits, partial=jnp.ones(slots, bool) if late == "partial" else None
        )

    def sample(key: Array, round: Array | int, data: FederatedData, *params: Params) -> Cohort:
        return with_deadline(sampler.sample(key, round, data, *params))

    def among(key: Array, round: Array | int, data: FederatedData, *arguments: Any) -> Cohort:
        assert sampler.among is not None
        return with_deadline(sampler.among(key, round, data, *arguments))

    sample.__qualname__ = "deadline"
    return sampler._replace(sample=sample, among=None if sampler.among is None else among)


def always_come(trace: Trace) -> bool:
    """Whether it is known that every client is available in every round."""
    probability: Any = trace.probability
    return probability is not None and is_concrete(probability) and float(probability) == 1


def _check_is_sampler(sampler: Any) -> None:
    if not isinstance(sampler, Sampler):
        raise ValueError(
            "sampler must be one of fs.sampling, as fs.sampling.uniform(m); got "
            f"{getattr(sampler, '__name__', repr(sampler))}"
        )
