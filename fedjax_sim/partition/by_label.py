"""Splits by label: shards, c classes a client, Dirichlet shares."""

from typing import Any

import numpy as np

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.registry import AT_LEAST_1, POSITIVE, Option, declare
from fedjax_sim.core.types import Array
from fedjax_sim.partition.dealing import (
    MIN_EXAMPLES,
    check_clients,
    check_concentration,
    check_labels,
    check_minimum,
    deal,
    generator,
)


@declare(
    "sorted by label and cut into shards, s of them to a client (McMahan et al. 2017)",
    Option("shards_per_client", "shards of a client", 2, kind=int, range=AT_LEAST_1, metavar="S"),
)
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
    labels = check_labels(labels)
    check_count("shards_per_client", shards_per_client)
    check_clients(num_clients, len(labels))
    count = num_clients * shards_per_client
    if count > len(labels):
        raise ValueError(
            f"shards_per_client must make at most as many shards as the {len(labels)} examples; "
            f"got {shards_per_client} for each of {num_clients} clients, {count} shards"
        )
    rng = generator(key)
    # Examples of one label are in random order, because the data may have them writer by writer.
    shuffled = rng.permutation(len(labels))
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(ordered, count)
    dealt = rng.permutation(count).reshape(num_clients, shards_per_client)
    return deal([np.concatenate([pieces[i] for i in mine]) for mine in dealt])


@declare(
    "examples of exactly c classes a client (Li et al. 2022)",
    Option("classes_per_client", "classes of a client", 2, kind=int, range=AT_LEAST_1, metavar="N"),
)
def labels(key: Array, labels: Any, num_clients: int, classes_per_client: int = 2) -> np.ndarray:
    """Label skew: every client has examples of exactly c classes.

    Classes are dealt c at a time, always those that the fewest clients have (at random among
    equals), so that a class is held by floor or ceil of K c / C of the clients. Its examples are
    then split evenly over these. Li et al. 2022 (arXiv 2102.02079), "#C = c".

    Args:
      key: one typed key.
      labels: Int[N], of C different values.
      num_clients: K, with K c >= C, so that every class has a client.
      classes_per_client: c, at most C.

    Returns:
      Int[N], the client of each example.

    Raises:
      ValueError: if labels are not integers [N], c > C, K c < C, or a class has fewer examples
        than clients that hold it.

    >>> import jax
    >>> ids = labels(jax.random.key(0), np.arange(60) % 6, num_clients=9, classes_per_client=2)
    >>> [len(np.unique(np.arange(60)[ids == k] % 6)) for k in range(9)]
    [2, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    labels = check_labels(labels)
    check_count("classes_per_client", classes_per_client)
    check_clients(num_clients, len(labels))
    classes, columns = np.unique(labels, return_inverse=True)
    if classes_per_client > len(classes):
        raise ValueError(
            f"classes_per_client must be at most the {len(classes)} classes of the labels; got "
            f"{classes_per_client}"
        )
    if num_clients * classes_per_client < len(classes):
        raise ValueError(
            f"classes_per_client must give each of the {len(classes)} classes a client; got "
            f"{classes_per_client} for each of {num_clients} clients"
        )
    rng = generator(key)
    holders: list[list[int]] = [[] for _ in classes]
    for k in range(num_clients):
        shuffled = rng.permutation(len(classes))
        num_holders = np.array([len(holders[c]) for c in shuffled])
        for c in shuffled[np.argsort(num_holders, kind="stable")[:classes_per_client]]:
            holders[c].append(k)
    client_ids = np.empty(len(labels), np.int32)
    for c, clients in enumerate(holders):
        rows = rng.permutation(np.flatnonzero(columns == c))
        if len(rows) < len(clients):
            raise ValueError(
                f"classes_per_client = {classes_per_client} gives class {classes[c]} to "
                f"{len(clients)} of the {num_clients} clients, and it has {len(rows)} examples; "
                "take fewer clients or classes_per_client"
            )
        for k, piece in zip(clients, np.array_split(rows, len(clients)), strict=True):
            client_ids[piece] = k
    return client_ids


@declare(
    "each class by Dirichlet proportions (Yurochkin et al. 2019)",
    Option("alpha", "the smaller, the more skewed", 0.3, range=POSITIVE),
    MIN_EXAMPLES,
)
def dirichlet(
    key: Array,
    labels: Any,
    num_clients: int,
    alpha: float,
    min_examples: int = 1,
    equal_sizes: bool = False,
) -> np.ndarray:
    """Label skew: each class is split over the clients by Dirichlet(alpha) proportions.

    For each class c, q_c ~ Dirichlet(alpha, ..., alpha) over the K clients, and client k
    gets about q_c[k] of its examples, so sizes differ too. Small alpha is more skewed.
    Yurochkin et al. 2019 (arXiv 1905.12022), after Hsu et al. 2019 (arXiv 1909.06335).

    With `equal_sizes` it is Hsu's own: sizes differ by at most one, and client k draws its
    examples by q_k ~ Dirichlet(alpha p), p the C classes' shares of all examples, from those
    that are left. There alpha is a sum over classes: 1 is as skewed as about 1 / C in the other
    form. Clients draw in order, so the last take what is left.

    Args:
      key: one typed key.
      labels: Int[N].
      num_clients: K, with K * min_examples <= N.
      alpha: > 0.
      min_examples: redrawn until every client has as many, 100 times at most.
      equal_sizes: Hsu's form, in which only K <= N limits `min_examples`.

    Returns:
      Int[N], the client of each example.

    Raises:
      ValueError: if alpha <= 0, labels are not integers [N], or no draw gives every
        client `min_examples`.
    """
    labels = check_labels(labels)
    check_concentration("alpha", alpha)
    check_clients(num_clients, len(labels))
    check_minimum(min_examples, num_clients, len(labels))
    rng = generator(key)
    if equal_sizes:
        return deal(_hsu(rng, labels, num_clients, float(alpha)))
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
            return deal(whole)
    raise ValueError(
        f"min_examples = {min_examples} was not met in {tries} draws of alpha = {alpha} over "
        f"{num_clients} clients of {len(labels)} examples; take a larger alpha, fewer clients "
        "or a smaller min_examples"
    )


def _hsu(
    rng: np.random.Generator, labels: np.ndarray, num_clients: int, alpha: float
) -> list[np.ndarray]:
    classes, counts = np.unique(labels, return_counts=True)
    rows = [rng.permutation(np.flatnonzero(labels == c)) for c in classes]
    left, prior = counts.copy(), counts / len(labels)
    parts = []
    for size in map(len, np.array_split(labels, num_clients)):
        q = rng.dirichlet(alpha * prior)
        mine: list[np.ndarray] = []
        # Each turn fills the client or uses up a class: C turns at most.
        while size:
            weights = np.where(left > 0, q, 0)
            if weights.sum() == 0:  # no class that q gives weight to has examples left
                weights = left.astype(float)
            drawn = np.minimum(rng.multinomial(size, weights / weights.sum()), left)
            for c in np.flatnonzero(drawn):
                mine.append(rows[c][left[c] - drawn[c] : left[c]])
            left -= drawn
            size -= int(drawn.sum())
        parts.append(np.concatenate(mine))
    return parts
