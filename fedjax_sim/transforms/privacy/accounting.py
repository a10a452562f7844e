"""The budget that a private run spends, by `dp-accounting`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from fedjax_sim.core.checks import check_count, is_concrete
from fedjax_sim.core.registry import AT_LEAST_0, POSITIVE, WITHIN_0_AND_1
from fedjax_sim.core.sampling_law import Dependent, Poisson

# Orders of Renyi's divergence. Below 2, fractional ones are dropped one by one with a warning.
_ORDERS = (*(2 + tenth / 10 for tenth in range(80)), *range(10, 64), 128, 256, 512, 1024)
_FINE, _COARSE = 1e-4, 1e-3  # steps of a discretised privacy loss; results are rounded up
_SHARE_OF_EPSILON = 1e-5  # a step may be this share of epsilon, lest arrays grow with it
_MOST_OF_EPSILON = 1e-2  # of a round; a step may be no more, lest it round a small epsilon up
_TOLERANCE = 1e-3  # how far below its epsilon a calibrated noise multiplier may end, as a share
# At most so many rounds of a history are composed for themselves, at 0.05 to 0.2 s each.
_MOST_COMPOSED = 64


def budget(
    sampler: Any,
    noise_multiplier: ArrayLike,
    num_rounds: int,
    delta: float,
    num_clients: int | None = None,
) -> float:
    """The epsilon of (epsilon, delta)-differential privacy that a run spends on each client.

    A round is a Gaussian mechanism on a Poisson sample of the clients, and the rounds compose. The
    accountant convolves privacy loss distributions (PLD) by `dp-accounting`, for clients that are
    added or removed, and rounds up. It is of `central` and of `adaptive_clipping`, and of the model
    after every one of the rounds; rounds and not local steps count.

    Args:
      sampler: that the run drew its cohorts by: `fs.sampling.bernoulli(q)`, with a capacity
        or without (truncated Poisson sampling), or `.everyone()`, where q = 1.
      noise_multiplier: z >= 0; 0 costs an infinite epsilon.
      num_rounds: R >= 1.
      delta: in (0, 1), well below one over the number of clients.
      num_clients: K, for a sampler with a capacity alone.

    Raises:
      ValueError: for a number out of range, and for a sampler that has no event in the accountant:
        cohorts of a fixed size, clients drawn by weight or several times, or a function of one's
        own whose `law` is not given. ImportError: without `dp-accounting`.

    >>> import fedjax_sim as fs
    >>> round(fs.privacy.budget(fs.sampling.bernoulli(0.1), 1.0, num_rounds=100, delta=1e-5), 2)
    7.05
    """
    law = law_of(sampler, num_clients)
    AT_LEAST_0.check("noise_multiplier", noise_multiplier)
    z = _number("noise_multiplier", noise_multiplier)
    WITHIN_0_AND_1.check("delta", delta)
    num_rounds = check_count("num_rounds", num_rounds)
    return _epsilons(law, z, [num_rounds], delta, num_clients, _FINE)[0]


def calibrate(
    sampler: Any,
    epsilon: float,
    num_rounds: int,
    delta: float,
    num_clients: int | None = None,
) -> float:
    """The smallest noise multiplier whose `budget` is at most epsilon, to 0.1 % of epsilon.

    Bracketed by Renyi differential privacy, which is quick and spends more, then by PLD.

    Args:
      sampler, num_rounds, delta, num_clients: as in `budget`.
      epsilon: > 0.

    Raises:
      ValueError, ImportError: as `budget`.

    >>> import fedjax_sim as fs
    >>> round(fs.privacy.calibrate(fs.sampling.everyone(), 13.21, num_rounds=100, delta=1e-5), 2)
    4.0
    """
    law = law_of(sampler, num_clients)
    POSITIVE.check("epsilon", epsilon)
    WITHIN_0_AND_1.check("delta", delta)
    num_rounds = check_count("num_rounds", num_rounds)
    return calibrated(law, epsilon, num_rounds, delta, num_clients)


def calibrated(
    law: Poisson, epsilon: float, num_rounds: int, delta: float, num_clients: int | None
) -> float:
    """`calibrate` of a law, with arguments that are checked."""

    def exceeds(z: float, interval: float) -> float:
        """log(epsilon of z / epsilon), which falls with z."""
        spent = _epsilons(law, z, [num_rounds], delta, num_clients, interval)[0]
        return math.log(max(spent, 1e-12) / epsilon)

    def exceeds_by_renyi(z: float) -> float:
        return math.log(max(_renyi(law, z, num_rounds, delta), 1e-12) / epsilon)

    start = _root(exceeds_by_renyi, 1.0, rtol=0.01)
    z = _root(lambda z: exceeds(z, _COARSE), start, rtol=1e-4)
    # Coarse steps round epsilon up, so that z is too large, if at all; Newton's steps mend it.
    slope = (exceeds(1.01 * z, _COARSE) - exceeds(z, _COARSE)) / math.log(1.01)
    for _ in range(5):
        excess = exceeds(z, _FINE)
        if -_TOLERANCE <= excess <= 0:
            break
        z *= math.exp(-(excess + _TOLERANCE / 2) / slope)
    return z


def history(
    law: Poisson,
    noise_multiplier: float,
    rounds: Sequence[int],
    delta: float,
    num_clients: int,
) -> list[float]:
    """The epsilon spent after each of these rounds, in ascending order: a column of results.

    By PLD as `budget`, in coarser steps, which round up. Of more than 64 rounds, 64 are composed,
    the last among them, and one between two has the epsilon of the next, which is more than its
    own.
    """
    places = np.unique(np.linspace(0, len(rounds) - 1, _MOST_COMPOSED).round().astype(int))
    if len(rounds) <= _MOST_COMPOSED:
        places = np.arange(len(rounds))
    chosen = [int(rounds[place]) for place in places]
    epsilons = _epsilons(law, noise_multiplier, chosen, delta, num_clients, _COARSE)
    return [epsilons[int(np.searchsorted(chosen, r))] for r in rounds]


def law_of(sampler: Any, num_clients: int | None) -> Poisson:
    """By which law the sampler draws.

    Raises:
      ValueError: if no accountant has an event of it, and for a missing number of clients.
    """
    if not hasattr(sampler, "sample") or not hasattr(sampler, "law"):
        raise ValueError(
            "sampler must be one of fs.sampling, as fs.sampling.bernoulli(q); "
            f"got {type(sampler).__name__}"
        )
    law = sampler.law
    if not isinstance(law, Poisson):
        why = law.why if isinstance(law, Dependent) else "how its clients are drawn is not known"
        raise ValueError(
            "sampler must draw each client on its own with one probability for a budget, as "
            f"fs.sampling.bernoulli(q) or .everyone(), because {why}"
        )
    if not is_concrete(law.probability):
        raise ValueError("sampler must have a number for q for a budget; got a traced array")
    if law.capacity is not None:
        if num_clients is None:
            raise ValueError("num_clients must be given for a sampler with a capacity; got None")
        check_count("num_clients", num_clients)
    return law


def _number(name: str, value: ArrayLike) -> float:
    if not is_concrete(value):
        raise ValueError(f"{name} must be a number for a budget; got a traced array")
    return float(np.asarray(value))


def _epsilons(
    law: Poisson,
    z: float,
    rounds: Sequence[int],
    delta: float,
    num_clients: int | None,
    interval: float,
) -> list[float]:
    """The epsilon after each number of rounds."""
    check_installed()
    if z == 0:
        return [math.inf] * len(rounds)
    # Of one round, so that a run that goes on keeps the epsilons of the rounds that it had.
    most = _MOST_OF_EPSILON * _renyi(law, z, 1, delta)
    share = _SHARE_OF_EPSILON * interval / _FINE
    step = max(min(interval, most), share * _renyi(law, z, max(rounds), delta))
    compose = _composer(law, z, num_clients, step)
    return [float(compose(r).get_epsilon_for_delta(delta)) for r in rounds]


def _composer(law: Poisson, z: float, num_clients: int | None, step: float) -> Callable[[int], Any]:
    """A number of rounds -> their privacy loss distribution, of steps of this length."""
    from dp_accounting.pld import privacy_loss_distribution as losses

    q = float(np.asarray(law.probability))
    if law.capacity is not None and num_clients is not None and law.capacity < num_clients:
        truncated = losses.from_truncated_subsampled_gaussian_mechanism(
            num_clients, q, law.capacity, z, value_discretization_interval=step
        )
        return lambda r: truncated.self_compose(r)
    if q == 1:  # R Gaussian mechanisms are one of less noise
        return lambda r: losses.from_gaussian_mechanism(
            z / math.sqrt(r), value_discretization_interval=step
        )
    of_round = losses.from_gaussian_mechanism(
        z, sampling_prob=q, value_discretization_interval=step
    )
    return lambda r: of_round.self_compose(r)


def _renyi(law: Poisson, z: float, num_rounds: int, delta: float) -> float:
    """Epsilon by Renyi differential privacy, above that of PLD; a capacity is not known to it."""
    check_installed()
    import dp_accounting
    from dp_accounting import rdp

    event: Any = dp_accounting.GaussianDpEvent(z)
    q = float(np.asarray(law.probability))
    if q < 1:
        event = dp_accounting.PoissonSampledDpEvent(q, event)
    accountant = rdp.RdpAccountant(_ORDERS)
    accountant.compose(event, num_rounds)
    return float(accountant.get_epsilon(delta))


def _root(function: Callable[[float], float], start: float, rtol: float) -> float:
    """Where a falling function of a positive number is 0, bracketed from `start`."""
    from scipy import optimize

    low = high = start
    at_start = function(start)
    if at_start > 0:
        while function(high := 1.25 * high) > 0:
            low = high
    else:
        while function(low := low / 1.25) < 0:
            high = low
    return math.exp(
        optimize.brentq(
            lambda log_z: function(math.exp(log_z)), math.log(low), math.log(high), xtol=rtol
        )
    )


def check_installed() -> None:
    """Raises ImportError with the line that installs the accountant."""
    try:
        import dp_accounting  # noqa: F401  # asked for only to see whether it is there
    except ImportError as error:
        raise ImportError(
            "a privacy budget needs dp-accounting: pip install fedjax-sim[dp]"
        ) from error
