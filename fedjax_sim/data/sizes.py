"""The sizes that full batches are padded to."""

from itertools import combinations

import numpy as np

_LEAST_PADDED = 16  # examples; below that, a step's cost is that of the model and not of examples
_MOST_PADDED = 4


def padded_sizes(num_examples: np.ndarray) -> tuple[int, ...]:
    """The sizes that full batches are padded to: the fewest whose cost is near that of four.

    Candidates are the largest client of each power of two below the largest of all. Each size is
    compiled, so there are four at most, and the fewest that are within a quarter of the best four.
    """
    sizes = num_examples[num_examples > 0]
    largest = int(sizes.max())
    at_least = np.maximum(sizes, min(_LEAST_PADDED, largest))
    _, classes, counts = np.unique(
        np.floor(np.log2(largest / at_least)), return_inverse=True, return_counts=True
    )
    ends = np.zeros(len(counts), np.int64)
    np.maximum.at(ends, classes, sizes)

    ends = np.maximum(ends, min(_LEAST_PADDED, largest))

    def cost(chosen: np.ndarray) -> float:
        padded = chosen[np.searchsorted(chosen, ends)]
        examples = counts @ padded / (counts @ ends)  # of cohorts with the largest clients
        return float(examples + counts @ (padded / ends) / counts.sum())  # and without them

    best = []
    for number in range(min(_MOST_PADDED, len(ends))):
        choices = [np.sort([*few, largest]) for few in combinations(ends[1:].tolist(), number)]
        best.append(min(choices, key=cost))
    enough = next(chosen for chosen in best if cost(chosen) <= 1.25 * cost(best[-1]))
    return tuple(enough.tolist())
