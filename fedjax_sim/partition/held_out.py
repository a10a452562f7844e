"""Examples that each client holds back, as a validation or a test set."""

from typing import Any

import numpy as np

from fedjax_sim.core.checks import check_number
from fedjax_sim.core.types import Array
from fedjax_sim.partition.dealing import check_ids, generator


def holdout(key: Array, client_ids: Any, share: float) -> np.ndarray:
    """A share of each client's examples, drawn at random; every client keeps at least one.

    Client k holds back `share * n_k`, rounded so that all together hold back `share * N` (largest
    remainders first, among equal ones at random). The examples that are held back and those that
    are kept are then distributed over clients alike.

    Args:
      key: one typed key; the same key holds back the same examples.
      client_ids: Int[N], of a split.
      share: in (0, 1).

    Returns:
      Bool[N], whether the example is held back.

    Raises:
      ValueError: for a share out of range, or so small that nothing is held back.

    >>> import jax
    >>> client_ids = np.repeat([0, 1, 2], [20, 10, 1])
    >>> held_back = holdout(jax.random.key(0), client_ids, 0.2)
    >>> np.bincount(client_ids[held_back], minlength=3).tolist()
    [4, 2, 0]
    """
    check_number("share", share, lambda x: 0 < x < 1, "in (0, 1)")
    ids = check_ids(client_ids)
    rng = generator(key)
    sizes = np.bincount(ids)
    exact = share * sizes
    limits = np.maximum(sizes - 1, 0)
    counts = np.minimum(np.floor(exact).astype(int), limits)
    left = max(0, round(share * len(ids)) - int(counts.sum()))
    order = np.lexsort((rng.random(len(sizes)), counts - exact))
    counts[order[counts[order] < limits[order]][:left]] += 1
    if not counts.any():
        raise ValueError(
            f"share must hold back at least one example of a client with two or more; got {share} "
            f"of {len(ids)} examples, at most {sizes.max()} a client"
        )
    by_client = np.lexsort((rng.random(len(ids)), ids))
    starts = np.cumsum(sizes) - sizes
    place = np.arange(len(ids)) - np.repeat(starts, sizes)  # among its client's, in random order
    is_held_back = np.empty(len(ids), bool)
    is_held_back[by_client] = place < np.repeat(counts, sizes)
    return is_held_back
