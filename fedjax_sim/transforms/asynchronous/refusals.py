"""Algorithms whose rounds cannot be asynchronous."""

from typing import Any

from fedjax_sim.core.algorithm import as_algorithm
from fedjax_sim.core.asynchrony import Asynchrony
from fedjax_sim.core.types import FederatedAlgorithm


def check_can_be_asynchronous(algorithm: Any, asynchrony: Asynchrony) -> None:
    """Refuses an algorithm that needs its clients at the same time.

    Raises:
      ValueError: with the reason.
    """
    algorithm = as_algorithm(algorithm)
    if algorithm.asynchrony is not None:
        raise ValueError("algorithm must not be asynchronous already")
    if asynchrony.mixes_models and algorithm.pooled_gradient is not None:
        raise ValueError(
            "algorithm must send the difference of two models to fedasync, which mixes models; got "
            "one whose clients send a gradient: give fs.fedavg of E = 1 and B = infinity"
        )
    check_exchange(algorithm)


def check_buffer(buffer: int, concurrency: int) -> None:
    """Refuses a buffer of more arrivals than clients are in training.

    Raises:
      ValueError: with both numbers.
    """
    if buffer > concurrency:
        raise ValueError(
            f"buffer must be at most concurrency, since so many clients are in training; got "
            f"buffer = {buffer} and concurrency = {concurrency}"
        )


def checked_around(algorithm: FederatedAlgorithm) -> FederatedAlgorithm:
    """The algorithm, unless it is asynchronous and what was wrapped around it cannot be.

    Raises:
      ValueError: as `check_exchange`.
    """
    if algorithm.asynchrony is not None:
        check_exchange(algorithm)
    return algorithm


def check_exchange(algorithm: FederatedAlgorithm) -> None:
    """Refuses what is asynchronous and needs a cohort of its own in every round.

    Raises:
      ValueError: with the reason.
    """
    if algorithm.earlier:
        raise ValueError(
            "algorithm must have one exchange in a round to be asynchronous, because clients that "
            "come at different times have no first exchange in common; got one of "
            f"{len(algorithm.exchanges)}"
        )
    if algorithm.acts_when_empty:
        raise ValueError(
            "algorithm must not be one that acts in every round, as of fs.privacy.central, to be "
            "asynchronous: its budget is of cohorts drawn at random, and who arrives first is "
            "decided by who is fast. fs.privacy.local needs no cohort"
        )
    if algorithm.aggregation is not None:
        raise ValueError(
            "algorithm must take the rule as it is to be asynchronous; this one makes something "
            "else of it, as FedDF, whose clients send models, which staleness would scale"
        )
