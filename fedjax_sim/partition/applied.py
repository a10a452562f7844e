"""The split of some examples, applied to others: the same clients with the same shares."""

from typing import Any

import numpy as np

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.types import Array
from fedjax_sim.partition.dealing import check_ids, check_labels, generator


def apply_to(
    key: Array,
    client_ids: Any,
    num_examples: int,
    *,
    labels: Any | None = None,
    other_labels: Any | None = None,
) -> np.ndarray:
    """Deals other examples, as those of a test set, over the clients of a split.

    Client k gets the same share of the N' other examples as it has of the N that are split:

        n'_k = N' n_k / N          without labels
        n'_kc = N'_c n_kc / N_c    with labels, of each class c

    rounded up or down at random, so that each example goes to one client and n' is right in
    expectation. A client's test set is then as skewed as its training set, and about as large in
    proportion; a small one may have none. Any split can be applied so, as of labels or of sizes.
    (Natural clients have their own test examples: `Dataset.test_client_ids`. Shifted features are
    shifted for the others by the same key and these ids.)

    Args:
      key: one typed key.
      client_ids: Int[N], the split.
      num_examples: N', the others.
      labels: Int[N], of the examples that are split; None for shares of all classes together.
      other_labels: Int[N'], of the others.

    Returns:
      Int[N'], the client of each of the others; `FederatedData.from_arrays` takes the K of the
      split beside it, `num_clients`, since the last client may have none.

    Raises:
      ValueError: if lengths differ, one of the labels is missing, or the others have a class that
        the split has not.

    >>> import jax
    >>> labels, other_labels = np.repeat([0, 1], 100), np.repeat([0, 1], 10)
    >>> client_ids = np.repeat([0, 1], [80, 120])  # client 0 has 80 of class 0, client 1 the rest
    >>> ids = apply_to(
    ...     jax.random.key(0), client_ids, 20, labels=labels, other_labels=other_labels
    ... )
    >>> np.bincount(ids[:10]).tolist(), np.bincount(ids[10:]).tolist()
    ([8, 2], [0, 10])
    """
    ids = check_ids(client_ids)
    check_count("num_examples", num_examples)
    if (labels is None) != (other_labels is None):
        missing = "labels" if labels is None else "other_labels"
        raise ValueError(
            f"labels and other_labels must both be given, or neither; got no {missing}"
        )
    split_classes = np.zeros(len(ids), int) if labels is None else check_labels(labels)
    other_classes = np.zeros(num_examples, int) if labels is None else check_labels(other_labels)
    for name, classes, size in (
        ("labels", split_classes, len(ids)),
        ("other_labels", other_classes, num_examples),
    ):
        if len(classes) != size:
            raise ValueError(
                f"{name} must be one for each of the {size} examples; got {len(classes)}"
            )
    unknown = np.setdiff1d(other_classes, split_classes)
    if len(unknown):
        raise ValueError(
            f"other_labels must be of classes that labels has; got {unknown[0]}, which no client "
            "has an example of"
        )
    rng, num_clients = generator(key), int(ids.max()) + 1
    dealt = np.empty(num_examples, np.int32)
    for c in np.unique(other_classes):
        rows = rng.permutation(np.flatnonzero(other_classes == c))
        shares = np.bincount(ids[split_classes == c], minlength=num_clients)
        dealt[rows] = np.repeat(np.arange(num_clients), _rounded(rng, shares, len(rows)))
    return dealt


def _rounded(rng: np.random.Generator, shares: np.ndarray, total: int) -> np.ndarray:
    """Int[K] with the sum `total`: `total shares / sum(shares)`, up or down, right in expectation.

    This is systematic sampling: the exact numbers are laid end to end in a random order, starting
    at a random point in [0, 1), and each client's count is the whole numbers that its piece covers.
    It is computed in integers, which do not round.
    """
    order = rng.permutation(len(shares))
    whole = int(shares.sum())
    ends = int(rng.integers(whole)) + total * np.cumsum(shares[order].astype(np.int64))
    counts = np.empty(len(shares), int)
    counts[order] = np.diff(ends // whole, prepend=0)
    return counts
