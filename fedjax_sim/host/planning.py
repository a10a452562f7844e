"""Plans which clients' examples the coming rounds read, before they run.

That is possible because a cohort is a function of (key, round), and a round reads the examples of
its cohort alone.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.cohort import as_arrays
from fedjax_sim.core.graphs import is_used
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
      by_round: of each round, Int[c'], ascending, the clients that take part.
    """

    first: int
    end: int
    client_ids: np.ndarray
    num_examples: int
    by_round: list[np.ndarray]

    def clients_of(self, first: int, end: int) -> np.ndarray:
        """Int[c'], ascending, each once: those of the rounds from `first` to before `end`."""
        rounds = self.by_round[first - self.first : end - self.first]
        return np.unique(np.concatenate(rounds)) if rounds else self.client_ids[:0]


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
        self._num_rounds = num_rounds
        self._sizes = np.asarray(federation.num_examples, np.int64)
        slots = federation.num_clients if sampler.size is None else sampler.size
        rounds = max(1, min(num_rounds, _ROUNDS, _SLOTS // slots))

        def ids(round: Array) -> Array:
            return taking_part(sampler.sample(key, round, staged(federation)), federation)

        # Cohorts are drawn one after the other, and not vmapped, as the rounds draw them.
        self._draw = jax.jit(lambda first: jax.lax.map(ids, first + jnp.arange(rounds)))
        self._first, self._drawn = 0, list[np.ndarray]()

    def largest_round(self) -> tuple[int, int]:
        """The round that reads most examples, of all R, and how many."""
        rows = [int(self._sizes[self._clients(i)].sum()) for i in range(self._num_rounds)]
        return int(np.argmax(rows)), max(rows)

    def most_clients(self) -> int:
        """How many clients take part in the round with most of them, of all R."""
        return max(len(self._clients(i)) for i in range(self._num_rounds))

    def plan(self, first: int, capacity: int, most_clients: int | None = None) -> Planned:
        """As many rounds from `first` on as read no more than `capacity` examples together.

        Args:
          capacity: at least what each round reads.
          most_clients: that take part in these rounds, at least those of each; None for any number.
        """
        most = len(self._sizes) if most_clients is None else most_clients
        is_held, num_examples, num_clients = np.zeros(len(self._sizes), bool), 0, 0
        by_round = list[np.ndarray]()
        while first + len(by_round) < min(self._num_rounds, first + _MOST_ROUNDS):
            clients = self._clients(first + len(by_round))
            fresh = clients[~is_held[clients]]
            more = int(self._sizes[fresh].sum())
            if num_examples + more > capacity or num_clients + len(fresh) > most:
                break
            is_held[fresh] = True
            num_examples, num_clients = num_examples + more, num_clients + len(fresh)
            by_round.append(clients)
        ids = np.flatnonzero(is_held)
        return Planned(first, first + len(by_round), ids, num_examples, by_round)

    def _clients(self, round: int) -> np.ndarray:
        """Int[c], ascending, the clients that take part in a round, each once.

        Some rounds are drawn at a time, and kept until one is asked for that is not among them.
        """
        if not self._first <= round < self._first + len(self._drawn):
            drawn = map(np.unique, np.asarray(self._draw(np.int32(round))))
            # K stands for nobody, and is the last of a round's where it occurs.
            self._drawn = [ids[: np.searchsorted(ids, len(self._sizes))] for ids in drawn]
            self._first = round
        return self._drawn[round - self._first]


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

    if sampler.sees_params:
        raise ValueError(f"{refused}it asks for the model, which the rounds before make")

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
