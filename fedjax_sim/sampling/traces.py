"""Traces of availability: which clients can be reached in a round, for `fs.sampling.available`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fedjax_sim.core.checks import check_count, check_number, has_values
from fedjax_sim.core.randomness import AVAILABILITY, stream
from fedjax_sim.core.registry import AT_LEAST_1, UP_TO_1, Option, declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.types import Array
from fedjax_sim.data import FederatedData

_SHARE = Option(
    "availability_share",
    "of a period in which a client can be reached; bernoulli: its probability in each round",
    default=0.5,
    range=UP_TO_1,
    parameter="share",
)
_PERIOD = Option(
    "availability_period",
    "rounds after which it begins again",
    default=24,
    kind=int,
    range=AT_LEAST_1,
    parameter="period",
)


@one_line
class Trace(NamedTuple):
    """Which clients are available, round by round.

    Attributes:
      is_available: (key, round, data) -> Bool[K]; folds the round into the key, if it draws.
      probability: Float[], in every round each client is available with this probability on its
        own; None where that is not so, and inclusion probabilities are then not known.
    """

    is_available: Callable[[Array, Array | int, FederatedData], Array]
    probability: ArrayLike | None = None


@declare("every client in every round")
def always() -> Trace:
    """Every client in every round: sampling stays as it is."""
    return Trace(lambda key, round, data: jnp.ones(data.num_clients, bool), 1.0)


@declare("every client with the same probability, on its own and in every round anew", _SHARE)
def bernoulli(share: ArrayLike = 0.5) -> Trace:
    """Each client is available with probability `share`, on its own and in every round anew.

    Args:
      share: Float[], in (0, 1]; may be traced.

    Raises:
      ValueError: if it is not in (0, 1].
    """
    check_number("share", share, lambda x: 0 < x <= 1, "in (0, 1]")

    def is_available(key: Array, round: Array | int, data: FederatedData) -> Array:
        draws = jax.random.uniform(stream(key, AVAILABILITY, round), (data.num_clients,))
        return draws < jnp.asarray(share, draws.dtype)

    return Trace(is_available, share)


@declare(
    "clients that come and go with a period, each a round behind the one before", _PERIOD, _SHARE
)
def periodic(period: int = 24, share: float = 0.5) -> Trace:
    """Client k is available in the rounds t with `(t - k) mod period < share * period`.

    Args:
      period: in rounds, at least 1.
      share: of a period, in (0, 1]; rounded to whole rounds.

    Raises:
      ValueError: for a period or a share out of range, or one of less than half a round.

    >>> data = FederatedData.from_clients([np.ones(1)] * 3)
    >>> periodic(3, 1 / 3).is_available(jax.random.key(0), 1, data).tolist()
    [False, True, False]
    """
    rounds_on = _rounds_on(period, share)

    def is_available(key: Array, round: Array | int, data: FederatedData) -> Array:
        return (round - jnp.arange(data.num_clients, dtype=jnp.int32)) % period < rounds_on

    return Trace(is_available)


@declare("clients whose most frequent label is the same come and go together", _PERIOD, _SHARE)
def by_label(labels: Any, period: int = 24, share: float = 0.5) -> Trace:
    """Clients of label c are available in the rounds t with
    `(t - floor(c period / C)) mod period < share * period`.

    So the labels that are trained on change with the time of the day, as where people sleep by
    night (Eichner et al. 2019, arXiv 1904.10120).

    Args:
      labels: Int[K], a label of each client from 0 on, as `majority_labels` counts it; C is the
        largest plus one.
      period, share: as in `periodic`.

    Raises:
      ValueError: for labels that are none, or a period or share out of range; on sampling if there
        are not K of them.

    >>> data = FederatedData.from_clients([np.ones(1)] * 3)
    >>> trace = by_label([0, 1, 0], period=4)
    >>> [trace.is_available(jax.random.key(0), t, data).tolist() for t in (0, 2)]
    [[True, False, True], [False, True, False]]
    """
    rounds_on = _rounds_on(period, share)
    classes = np.asarray(labels)
    if classes.ndim != 1 or not np.issubdtype(classes.dtype, np.integer) or not len(classes):
        raise ValueError(
            f"labels must be integers of shape (K,); got {classes.dtype} of shape {classes.shape}"
        )
    if classes.min() < 0:
        raise ValueError(f"labels must be at least 0; got {classes.min()}")
    starts = classes.astype(np.int64) * period // (int(classes.max()) + 1)

    def is_available(key: Array, round: Array | int, data: FederatedData) -> Array:
        _check_clients("labels", starts.shape, (data.num_clients,))
        return (round - jnp.asarray(starts, jnp.int32)) % period < rounds_on

    return Trace(is_available)


def recorded(available: Any) -> Trace:
    """A trace that was recorded: in round t that of row `t mod T`, so that it begins again.

    Args:
      available: Bool[T, K].

    Raises:
      ValueError: for what is no such array; on sampling if it is not of K clients.

    >>> data = FederatedData.from_clients([np.ones(1)] * 2)
    >>> trace = recorded([[True, False], [False, True]])
    >>> trace.is_available(jax.random.key(0), 3, data).tolist()
    [False, True]
    """
    rows = np.asarray(available) if not isinstance(available, jax.Array) else available
    if rows.ndim != 2 or rows.dtype != bool or not rows.shape[0]:
        raise ValueError(
            "trace must be booleans of shape [T, K], a row a round; got "
            f"{rows.dtype} of shape {list(rows.shape)}"
        )
    rows = jnp.asarray(rows)

    def is_available(key: Array, round: Array | int, data: FederatedData) -> Array:
        _check_clients("trace", rows.shape, (rows.shape[0], data.num_clients))
        return rows[jnp.asarray(round, jnp.int32) % rows.shape[0]]

    return Trace(is_available)


@declare(
    "a trace that was recorded, in a file",
    Option(
        "availability_file",
        "of NumPy: booleans of shape [rounds, clients], which begin again after the last",
        kind=str,
        parameter="path",
        metavar="FILE.npy",
    ),
    name="recorded",
)
def from_file(path: str | Path) -> Trace:
    """`recorded` of a file of NumPy's, as `np.save` writes it.

    Raises:
      ValueError: for a file that cannot be read, or has no such array.
    """
    try:
        available = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"availability_file {path} cannot be read: {error}") from None
    return recorded(available)


def majority_labels(data: FederatedData, name: str = "y") -> np.ndarray:
    """Int[K], the most frequent label of each client; the lowest of equals, 0 without examples.

    Args:
      name: of the labels among the examples.

    Raises:
      ValueError: for examples without whole numbers of that name, or that are not there.

    >>> data = FederatedData.from_clients([{"y": np.array([1, 2, 2])}, {"y": np.array([3])}])
    >>> majority_labels(data).tolist()
    [2, 3]
    """
    examples: Any = data.examples
    labels: Any = examples.get(name) if isinstance(examples, dict) else None
    if not has_values(labels) or labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"data must have labels, whole numbers [N] in memory that are called {name!r}"
        )
    values, offsets = np.asarray(labels), np.asarray(data.offsets)
    sizes = np.asarray(data.num_examples)
    parts = [values[start : start + n] for start, n in zip(offsets, sizes, strict=True)]
    return np.array([np.bincount(part).argmax() if len(part) else 0 for part in parts], np.int32)


def _rounds_on(period: int, share: float) -> int:
    """The rounds of a period in which a client is available."""
    check_count("period", period)
    check_number("share", share, lambda x: 0 < x <= 1, "in (0, 1]")
    rounds_on = math.floor(share * period + 0.5)
    if not rounds_on:
        raise ValueError(
            f"share must be half a round of the period at least, {0.5 / period:g}; got {share}"
        )
    return rounds_on


def _check_clients(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ValueError(
            f"{name} must have shape {list(expected)}, of K = {expected[-1]} clients; got "
            f"{list(shape)}"
        )
