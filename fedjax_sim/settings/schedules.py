"""A schedule's rates by round, on the host, to refuse those that fall to 0 too early."""

import math
from bisect import bisect_left
from collections.abc import Callable

import numpy as np


def share(schedule: str, round: int, *, span: int, end: float = 0.0, factor: float = 1.0) -> float:
    """The share of its first value that a rate has in a round, counted from 0.

    Args:
      span: rounds to the end of cosine and linear, rounds for one factor of the others.
      end: the share that cosine and linear leave.
      factor: of exponential and step.

    >>> [share("linear", round, span=2, end=0.5) for round in range(4)]
    [1.0, 0.75, 0.5, 0.5]
    """
    progress = round / span
    if schedule in ("exponential", "step"):
        return factor ** (math.floor(progress) if schedule == "step" else progress)
    if schedule not in ("cosine", "linear"):
        return 1.0
    # From the span on the share is `end` exactly, because (1 + cos(pi)) / 2 may be rounded.
    left = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return end + (1 - end) * left if progress < 1 else end


def first_without_training(rate: Callable[[int], float], rounds: int) -> int | None:
    """The first round, counted from 1, whose rate float32 takes for 0; None if there is none.

    Args:
      rate: of a round, counted from 0; it never rises.

    >>> first_without_training(lambda round: 1e-20**round, 4)
    3
    """
    # XLA flushes numbers below the smallest normal float32 to 0.
    tiny = float(np.finfo(np.float32).tiny)
    first = bisect_left(range(rounds), True, key=lambda round: rate(round) < tiny)
    return None if first == rounds else first + 1
