"""A split described by numbers."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.core.checks import check_count
from fedjax_sim.partition.dealing import check_ids, check_labels


class Description(NamedTuple):
    """A split of N examples over K clients. Means over clients leave out those without examples."""

    num_clients: int  # K
    num_examples: int  # N
    sizes: np.ndarray  # Int[K], n_k
    smallest: int
    median: float
    mean: float  # N / K
    largest: int
    variation: float  # coefficient of variation: the sizes' standard deviation over their mean
    empty: int  # clients without examples
    classes: np.ndarray | None = None  # Int[C], the labels that there are; None without labels
    counts: np.ndarray | None = None  # Int[K, C], examples of each client in each class
    classes_per_client: float | None = None  # mean over clients
    total_variation: float | None = None  # mean over clients, see `describe`


def describe(client_ids: Any, labels: Any = None, num_clients: int | None = None) -> Description:
    """The sizes of a split and, with labels, how far clients' classes are from those of all.

    The distance of client k is the total variation between its label distribution p_k and that
    of all examples p, the share of its examples that would have to change their label:

        TV_k = 1/2 sum_c |p_k(c) - p(c)|

    It is 0 if the client's classes are distributed as those of all, and 1 - p(c) if it has class c
    alone. `total_variation` is its mean over the clients with examples, each client counted once.
    It is above 0 by chance alone for clients of few examples, under an IID split too.

    Args:
      client_ids: Int[N].
      labels: Int[N], or None.
      num_clients: K; None for the largest id plus one.

    Raises:
      ValueError: if ids or labels are not integers of one length, or an id is not below K.

    >>> description = describe([0, 0, 1, 1], [0, 0, 0, 1])
    >>> description.counts.tolist(), description.total_variation
    ([[2, 0], [1, 1]], 0.25)
    """
    if num_clients is not None:
        check_count("num_clients", num_clients)
    ids = check_ids(client_ids, num_clients)
    clients = int(ids.max()) + 1 if num_clients is None else num_clients
    sizes = np.bincount(ids, minlength=clients)
    description = Description(
        num_clients=clients,
        num_examples=len(ids),
        sizes=sizes,
        smallest=int(sizes.min()),
        median=float(np.median(sizes)),
        mean=float(sizes.mean()),
        largest=int(sizes.max()),
        variation=float(sizes.std() / sizes.mean()),
        empty=int((sizes == 0).sum()),
    )
    if labels is None:
        return description
    labels = check_labels(labels)
    if len(labels) != len(ids):
        raise ValueError(f"labels must be as many as the {len(ids)} client_ids; got {len(labels)}")
    classes, columns = np.unique(labels, return_inverse=True)
    counts = np.zeros((clients, len(classes)), int)
    np.add.at(counts, (ids, columns), 1)
    has_examples = sizes > 0
    shares = counts[has_examples] / sizes[has_examples, None]
    apart = np.abs(shares - counts.sum(axis=0) / len(ids)).sum(axis=1) / 2
    return description._replace(
        classes=classes,
        counts=counts,
        classes_per_client=float((counts[has_examples] > 0).sum(axis=1).mean()),
        total_variation=float(apart.mean()),
    )
