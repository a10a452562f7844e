"""Parts that all splits use: a generator of random numbers, checks, and the ids they return."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.checks import check_count, check_number
from fedjax_sim.core.randomness import check_key
from fedjax_sim.core.registry import AT_LEAST_0, Option
from fedjax_sim.core.types import Array

# It has no default here, because results of older versions have no such value and still resume.
MIN_EXAMPLES = Option(
    "min_examples",
    "the fewest training examples of a client, 0 for any number, 1 unless it is given",
    kind=int,
    range=AT_LEAST_0,
    metavar="N",
)


def generator(key: Array, *path: int) -> np.random.Generator:
    """NumPy's generator of a key, or of a path below it: a purpose, at least 1, and a client."""
    check_key(key)
    return np.random.default_rng([*map(int, np.ravel(jax.random.key_data(key))), *path])


def deal(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Int[N], the client of each example, from K lists of rows."""
    client_ids = np.empty(sum(len(part) for part in parts), np.int32)
    for k, part in enumerate(parts):
        client_ids[part] = k
    return client_ids


def check_clients(num_clients: int, num_examples: int) -> None:
    """Refuses more clients than examples."""
    check_count("num_clients", num_clients)
    if num_clients > num_examples:
        raise ValueError(
            f"num_clients must be at most the {num_examples} examples; got {num_clients}"
        )


def check_minimum(min_examples: int, num_clients: int, num_examples: int) -> None:
    """Refuses a smallest size that there is not enough for; 0 allows clients without examples."""
    check_min_examples(min_examples)
    if num_clients * min_examples > num_examples:
        raise ValueError(
            f"min_examples must leave enough for {num_clients} clients of the {num_examples} "
            f"examples; got {min_examples}"
        )


def check_min_examples(min_examples: Any) -> None:
    """Refuses a value that cannot be the smallest size of a client.

    Raises:
      ValueError: saying what was given.
    """
    whole = isinstance(min_examples, (int, np.integer)) and not isinstance(min_examples, bool)
    if not whole or min_examples < 0:
        raise ValueError(f"min_examples must be a whole number, at least 0; got {min_examples!r}")


def check_concentration(name: str, value: Any, suffix: str = "") -> None:
    """Refuses a Dirichlet distribution's alpha that is not positive, or makes sums overflow."""
    check_number(name, value, lambda x: 0 < x <= 1e200, f"positive and at most 1e200{suffix}")


def check_labels(labels: Any) -> np.ndarray:
    """Returns the labels as Int[N], or refuses them."""
    if labels is None:
        raise ValueError("labels must be integers, one for each example; got None")
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
        raise ValueError(
            "labels must be integers, one for each example; got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return labels


def check_ids(client_ids: Any, num_clients: int | None = None) -> np.ndarray:
    """Returns the ids as Int[N] with values in [0, num_clients), or refuses them."""
    ids = np.asarray(client_ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or not len(ids):
        raise ValueError(
            "client_ids must be integers, the client of each example; got "
            f"{ids.dtype} of shape {ids.shape}"
        )
    wrong = ids[(ids < 0) | (num_clients is not None and ids >= num_clients)]
    if len(wrong):
        allowed = "at least 0" if num_clients is None else f"in [0, {num_clients})"
        raise ValueError(f"client_ids must be {allowed}; got {wrong[0]}")
    return ids
