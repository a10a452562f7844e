"""Algorithms and samplers that no baseline is of."""

from fedjax_sim.core.types import FederatedAlgorithm
from fedjax_sim.sampling import Sampler


def check_plain(algorithm: FederatedAlgorithm) -> None:
    """Refuses an algorithm that says how models are sent or whose they are, where none is sent.

    Raises:
      ValueError: saying which to give.
    """
    if algorithm.wire is not None or algorithm.message_wire is not None:
        raise ValueError(
            "experiment.algorithm must not be compressed, nor private, since nothing is sent "
            "here; give the algorithm that was wrapped"
        )
    if algorithm.asynchrony is not None:
        raise ValueError(
            "experiment.algorithm must not be asynchronous, since nobody waits here; give the "
            "algorithm that was given to fs.asynchronous"
        )
    if algorithm.personal is not None:
        raise ValueError(
            "experiment.algorithm must have one model for all clients, since a baseline's is the "
            "whole of it; got one with personal models: give fs.fedavg, or what was given to "
            "fs.partial"
        )


def check_blind(sampler: Sampler) -> None:
    """Refuses a sampler that looks at the model, which is no federated run's here.

    Raises:
      ValueError: saying why.
    """
    if sampler.sees_params:
        raise ValueError(
            "experiment.sampler must draw without the model, as fs.sampling.uniform, so that a "
            "baseline has the cohorts, and so the budget, of the federated run; got one that is "
            "given the model of each round"
        )
