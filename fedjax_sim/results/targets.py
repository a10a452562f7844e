"""The round in which a score reaches its target."""

import numpy as np


def rounds_to_target(
    scores: np.ndarray, target: float, rounds: np.ndarray | None = None
) -> float | None:
    """Rounds until the score first reaches the target; None if it never does.

    The curve is made monotone by the best value so far and interpolated linearly, as in
    McMahan et al. 2017.

    Args:
      scores: [n].
      target: the score to reach.
      rounds: Int[n], after which each was measured; None for 1, 2, ..., n.

    >>> rounds_to_target(np.array([0.5, 0.4, 0.7]), 0.6)
    2.5
    >>> rounds_to_target(np.array([0.5, 0.4, 0.7]), 0.6, np.array([10, 20, 30]))
    25.0
    """
    at = np.arange(1, len(scores) + 1) if rounds is None else rounds
    best = np.maximum.accumulate(np.where(np.isfinite(scores), scores, -np.inf))
    # Compared as float32, because accuracies are: as a float64, 0.7 is above the nearest float32,
    # which a score of 0.7 is.
    reached = np.flatnonzero(best.astype(np.float32) >= np.float32(target))
    if not reached.size:
        return None
    i = int(reached[0])
    if i == 0 or not np.isfinite(best[i - 1]):
        return float(at[i])
    share = min(1.0, (target - best[i - 1]) / (best[i] - best[i - 1]))
    return float(at[i - 1] + share * (at[i] - at[i - 1]))
