"""Algorithms that no baseline is of."""

from fedjax_sim.core.types import FederatedAlgorithm


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
    if algorithm.personal is not None:
        raise ValueError(
            "experiment.algorithm must have one model for all clients, since a baseline's is the "
            "whole of it; got one with personal models: give fs.fedavg, or what was given to "
            "fs.partial"
        )
