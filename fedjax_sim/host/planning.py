"""Plans which clients' examples the coming rounds read, before they run.

That is possible because a cohort is a function of (key, round), and a round reads the examples of
its cohort alone.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.cohort import as_arrays
from fedjax_sim.core.independence import is_used
from fedjax_sim.core.types import Array, Cohort
from fedjax_sim.data import FederatedData
from fedjax_sim.sampling import Sampler

_SLOTS = 2**18  # slots, over all cohorts that one call draws, at most
_ROUNDS = 512  # rounds whose cohorts one call draws at most
_MOST_ROUNDS = 4096  # rounds of one window at most
_ASKS_FOR_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


class Planned(NamedTuple):
    """Some rounds of a run, and the clients that they read together.

    Attributes:
      first: the first round.
      end: the round after the last one.
      client_ids: Int[c], ascending, each once.
      num_examples: of all these clients.
    """

    first: int
    end: int
    client_ids: np.ndarray
    num_examples: int


class Cohorts:
    """The clients that take part in each round of a run."""

    def __init__(
        self, sampler: Sampler, key: Array, federation: FederatedData, num_rounds: int
    ) -> None:
        """Refuses a sampler that cannot draw before the examples are read.

        Args:
          federation: its sizes and weights are concrete; its examples may be shapes.

        Raises:
          ValueError: if a cohort depends on the examples; and what the sampler raises.
        """
        check_sampler(sampler, key, federation)
        self._num_rounds, self._num_clients = num_rounds, federation.num_clients
        self._sizes = np.asarray(federation.num_examples, np.int64)
        slots = federation.num_clients if sampler.size is None else sampler.size
        rounds = max(1, min(num_rounds, _ROUNDS, _SLOTS // slots))

        def ids(round: Array) -> Array:
            return taking_part(sampler.sample(key, round, staged(federation)), federation)

        # Cohorts are drawn one after the other, and not vmapped, as the rounds draw them.
        self._draw = jax.jit(lambda first: jax.lax.map(ids, first + jnp.arange(rounds)))
        self._first, self._known = 0, np.zeros((0, slots), np.int32)

    def largest_round(self) -> tuple[int, int]:
        """The round that reads most examples, of all R, and how many."""
        sizes = np.append(self._sizes, 0)  # K stands for nobody
        most_examples, largest = -1, 0
        for first, drawn in self._blocks(0):
            ids = np.sort(drawn, axis=1)
            is_repeated = np.zeros(ids.shape, bool)
            is_repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
            rows = np.where(is_repeated, 0, sizes[ids]).sum(axis=1)
            if rows.max() > most_examples:
                most_examples, largest = int(rows.max()), first + int(rows.argmax())
        return largest, most_examples

    def plan(self, first: int, capacity: int) -> Planned:
        """As many rounds from `first` on as read no more than `capacity` examples together.

        Args:
          capacity: at least what each round reads.
        """
        behind = self._first + len(self._known)
        if self._first <= first < behind:
            self._known = self._known[first - self._first :]
        else:
            _, self._known = next(self._blocks(first))
        self._first = first
        while True:
            within = self._known[:_MOST_ROUNDS]
            clients, round_of, rows = self._read_by(within)
            rounds = int(np.searchsorted(rows, capacity, side="right"))
            behind = first + len(self._known)
            if rounds < len(within) or rounds == _MOST_ROUNDS or behind >= self._num_rounds:
                break
            self._known = np.concatenate([self._known, next(self._blocks(behind))[1]])
        chosen = clients[round_of < rounds]
        return Planned(first, first + rounds, chosen, int(self._sizes[chosen].sum()))

    def _blocks(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """The first of some rounds and Int[rounds, m], who takes part, to the end of the run."""
        while first < self._num_rounds:
            drawn = np.asarray(self._draw(np.int32(first)))[: self._num_rounds - first]
            yield first, drawn
            first += len(drawn)

    def _read_by(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of rounds in a row: the clients, the first of the rounds that reads each, and
        Int[rounds], the examples that are read up to each round."""
        clients, places = np.unique(ids, return_index=True)
        clients, places = clients[clients < self._num_clients], places[clients < self._num_clients]
        round_of = places // ids.shape[1]
        rows = np.zeros(len(ids), np.int64)
        np.add.at(rows, round_of, self._sizes[clients])
        return clients, round_of, np.cumsum(rows)


def taking_part(cohort: Cohort, federation: FederatedData) -> Array:
    """Int[m], the clients of a cohort's slots that are given the model, and K in the others."""
    number = federation.num_clients
    cohort, mask, _ = as_arrays(cohort, number, stateful=False)
    ids = cohort.client_ids
    return jnp.where(mask & (ids >= 0) & (ids < number), ids, number)


def staged(federation: FederatedData) -> FederatedData:
    """The federation inside a trace, with zeros for examples of which there are shapes alone."""

    def zeros(x: Any) -> Any:
        shape_alone = isinstance(x, jax.ShapeDtypeStruct)
        return jnp.broadcast_to(jnp.zeros((), x.dtype), x.shape) if shape_alone else x

    return jax.tree.map(zeros, federation)


def check_sampler(sampler: Sampler, key: Array, federation: FederatedData) -> None:
    """Refuses a sampler whose cohorts depend on the examples.

    Raises:
      ValueError: with the reason; and what the sampler raises.
    """
    refused = (
        "sampler must draw from the key, the round, sizes and weights where data is a Source, "
        "because cohorts say which examples are read; "
    )

    def draw(examples: Any, offsets: Array, round: Array) -> Cohort:
        data = replace(federation, examples=examples, offsets=offsets)
        return sampler.sample(key, round, data)

    arguments = federation.examples, federation.offsets, jnp.int32(0)
    try:
        graph = jax.make_jaxpr(draw)(*arguments).jaxpr
    except _ASKS_FOR_VALUES as error:
        raise ValueError(f"{refused}it asks for values that are not there: {error}") from error
    if any(is_used(graph, x) for x in graph.invars[:-1]):
        raise ValueError(f"{refused}it looks at the examples, or where they lie")
