"""Splitting a data set over clients, on the host.

Every function returns `client_ids`, Int[N]: the client each example goes to, as
`FederatedData.from_arrays(examples, client_ids, num_clients)` takes it. They are seeded
by a typed key.
"""

from typing import Any

import jax
import numpy as np

from fedjax_sim.base import Array
from fedjax_sim.checks import check_count, check_number
from fedjax_sim.randomness import check_key


def iid(key: Array, num_examples: int, num_clients: int) -> np.ndarray:
    """A random split into K parts whose sizes differ by at most one.

    Args:
      key: one typed key.
      num_examples: N.
      num_clients: K, at most N.

    Returns:
      Int[N], the client of each example.

    Raises:
      ValueError: if K < 1 or K > N.

    >>> np.bincount(iid(jax.random.key(0), 10, 3)).tolist()
    [4, 3, 3]
    """
    check_count("num_examples", num_examples)
    _check_clients(num_clients, num_examples)
    rng = _generator(key)
    return _deal(np.array_split(rng.permutation(num_examples), num_clients))


def shards(key: Array, labels: Any, num_clients: int, shards_per_client: int = 2) -> np.ndarray:
    """McMahan's pathological split: sort by label, cut into shards, deal s to a client.

    McMahan et al. 2017 (arXiv 1602.05629): 200 shards of MNIST, two for each of 100
    clients. Shards differ by at most one example in size.

    Args:
      key: one typed key.
      labels: Int[N].
      num_clients: K.
      shards_per_client: s >= 1, with K s <= N.

    Returns:
      Int[N], the client of each example.

    Raises:
      ValueError: if labels are not integers [N], or there are more shards than examples.
    """
    labels = _check_labels(labels)
    check_count("shards_per_client", shards_per_client)
    _check_clients(num_clients, len(labels))
    count = num_clients * shards_per_client
    if count > len(labels):
        raise ValueError(
            f"shards_per_client must make at most as many shards as the {len(labels)} examples; "
            f"got {shards_per_client} for each of {num_clients} clients, {count} shards"
        )
    rng = _generator(key)
    # Examples of one label are in random order, so that a shard is not one writer's.
    shuffled = rng.permutation(len(labels))
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(ordered, count)
    dealt = rng.permutation(count).reshape(num_clients, shards_per_client)
    return _deal([np.concatenate([pieces[i] for i in mine]) for mine in dealt])


def dirichlet(
    key: Array, labels: Any, num_clients: int, alpha: float, min_examples: int = 1
) -> np.ndarray:
    """Label skew: each class is split over the clients by Dirichlet(alpha) proportions.

    For each class c, q_c ~ Dirichlet(alpha, ..., alpha) over the K clients, and client k
    gets about q_c[k] of its examples, so sizes differ too. Small alpha is more skewed.
    Yurochkin et al. 2019 (arXiv 1905.12022), after Hsu et al. 2019 (arXiv 1909.06335).

    Args:
      key: one typed key.
      labels: Int[N].
      num_clients: K, with K * min_examples <= N.
      alpha: > 0.
      min_examples: redrawn until every client has as many, 100 times at most.

    Returns:
      Int[N], the client of each example.

    Raises:
      ValueError: if alpha <= 0, labels are not integers [N], or no draw gives every
        client `min_examples`.
    """
    labels = _check_labels(labels)
    check_number("alpha", alpha, lambda x: x > 0, "positive")
    if not isinstance(min_examples, int) or min_examples < 0:
        raise ValueError(f"min_examples must be a whole number, at least 0; got {min_examples!r}")
    _check_clients(num_clients, len(labels))
    if num_clients * min_examples > len(labels):
        raise ValueError(
            f"min_examples must leave enough for {num_clients} clients of the {len(labels)} "
            f"examples; got {min_examples}"
        )
    rng = _generator(key)
    tries = 100
    for _ in range(tries):
        parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
        for c in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == c))
            shares = rng.dirichlet(np.full(num_clients, float(alpha)))
            cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(int)
            for part, piece in zip(parts, np.split(rows, cuts), strict=True):
                part.append(piece)
        whole = [np.concatenate(part) for part in parts]
        if min(len(part) for part in whole) >= min_examples:
            return _deal(whole)
    raise ValueError(
        f"min_examples = {min_examples} was not met in {tries} draws of alpha = {alpha} over "
        f"{num_clients} clients of {len(labels)} examples; take a larger alpha, fewer clients "
        "or a smaller min_examples"
    )


def _generator(key: Array) -> np.random.Generator:
    check_key(key)
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _deal(parts: list[np.ndarray]) -> np.ndarray:
    client_ids = np.empty(sum(len(part) for part in parts), np.int32)
    for k, part in enumerate(parts):
        client_ids[part] = k
    return client_ids


def _check_clients(num_clients: int, num_examples: int) -> None:
    check_count("num_clients", num_clients)
    if num_clients > num_examples:
        raise ValueError(
            f"num_clients must be at most the {num_examples} examples; got {num_clients}"
        )


def _check_labels(labels: Any) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
        raise ValueError(
            "labels must be integers, one for each example; got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return labels
