"""The budget of a setting's privacy: its noise for an epsilon, and what each round has spent."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core.registry import Declaration
from fedjax_sim.core.sampling_law import Poisson
from fedjax_sim.results import Run
from fedjax_sim.sampling import Sampler
from fedjax_sim.sampling import everyone as everyone_comes
from fedjax_sim.sampling.availability import always_come
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.transforms.privacy import accounting

NOISE, EPSILON = "noise_multiplier", "epsilon"
_MORE_NOISE = 1e-3  # a share, some of epsilon's own tolerance


class Spent(NamedTuple):
    """What a run has spent of each client's privacy.

    Attributes:
      delta: of (epsilon, delta)-differential privacy.
      epsilon: Float64[rounds done]; NaN after a round that was not evaluated.
    """

    delta: float
    epsilon: np.ndarray


def with_noise(
    values: Mapping[str, Any], privacy: Declaration, sampler: Sampler, delta: float, clients: int
) -> dict[str, Any]:
    """The values with the noise multiplier that an `epsilon` among them asks for, in its place.

    Raises:
      ValueError: for a sampler without an accountant's event, if both are given, or neither.
      ImportError: without the accountant.
    """
    asked = _asked(privacy, sampler)
    accounting.check_installed()
    accounting.law_of(asked, clients)
    if EPSILON not in values:
        if NOISE not in values:
            raise ValueError(f"{NOISE} must be given to {privacy.name}, or epsilon in its place")
        return dict(values)
    if NOISE in values:
        raise ValueError(
            f"epsilon must be given in the place of {NOISE}, and not beside it; got "
            f"{values[EPSILON]:g} and {values[NOISE]:g}"
        )
    law = accounting.law_of(asked, clients)
    q, epsilon = float(np.asarray(law.probability)), values[EPSILON]
    z = _noise_within(q, law.capacity, epsilon, values["rounds"], delta, clients)
    return {name: x for name, x in values.items() if name != EPSILON} | {NOISE: z}


# Kept, because a sweep resolves each configuration several times, and an accountant takes seconds.
@lru_cache(maxsize=256)
def _noise_within(
    q: float, capacity: int | None, epsilon: float, rounds: int, delta: float, clients: int
) -> float:
    """The least noise multiplier with which the column of the results does not exceed epsilon."""
    law = Poisson(q, capacity)
    z = accounting.calibrated(law, epsilon, rounds, delta, clients)
    # The column rounds up, by coarser steps than the calibration's.
    while accounting.history(law, z, [rounds], delta, clients)[0] > epsilon:
        z *= 1 + _MORE_NOISE
    return z


def check_all_can_come(
    options: Mapping[str, Any], privacy: Declaration | None, availability: Declaration | None
) -> None:
    """Refuses clients that cannot be reached in some rounds where the server noises.

    Args:
      options: of the choices, by name.

    Raises:
      ValueError: naming both, and what is allowed.
    """
    if privacy is None or availability is None or not privacy.takes("expected_cohort"):
        return
    # Which label a client has does not change whether it comes in every round.
    trace = availability.call(options, labels=[0])
    if not always_come(trace):
        raise ValueError(
            f"availability must not be {availability.name} beside privacy {privacy.name}: its "
            "budget is of clients that come with one probability in every round, and not only "
            "where they can be reached; local needs no cohort"
        )


def spent(setting: ResolvedSetting, sampler: Sampler, evaluated: np.ndarray) -> Spent | None:
    """What the rounds of a run have spent; None of a run without privacy, or without its noise.

    Args:
      evaluated: Bool[rounds done]; what was spent is computed after these rounds.
    """
    privacy = setting.choices.privacy
    if privacy is None or float(setting.options[NOISE]) == 0:
        return None
    law, delta = _asked(privacy, sampler).law, setting.extras["delta"]
    assert isinstance(law, Poisson)  # the setting was resolved
    rounds = np.flatnonzero(evaluated) + 1
    epsilon = np.full(len(evaluated), np.nan)
    z = float(setting.options[NOISE])
    epsilon[rounds - 1] = accounting.history(law, z, rounds.tolist(), delta, setting.clients)
    return Spent(delta, epsilon)


def with_column(run: Run, spent: Spent | None) -> Run:
    """The run with what it has spent as its column `epsilon`."""
    return run if spent is None else run._replace(rounds={**run.rounds, EPSILON: spent.epsilon})


def _asked(privacy: Declaration, sampler: Sampler) -> Sampler:
    """The sampler by whose law rounds are accounted for.

    A client that noises its own update is seen to take part, so that no sampler amplifies; its
    budget is that of a client that reports in every round.
    """
    return sampler if privacy.takes("expected_cohort") else everyone_comes()
