"""Clients' states on a disk: those of the rounds at hand are part of what a run carries."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from fedjax_sim.core.client_states import HeldStates, held_in, with_held
from fedjax_sim.core.evaluate import OfState
from fedjax_sim.core.randomness import is_key
from fedjax_sim.core.types import FederatedState, PyTree
from fedjax_sim.data import ClientStates
from fedjax_sim.execution.placing import placed
from fedjax_sim.host.checkpoints import flatten, unflatten
from fedjax_sim.host.planning import Planned
from fedjax_sim.results.folder import RunFolder
from fedjax_sim.training.experiment import Experiment

IN_MEMORY, ON_DISK = "memory", "disk"  # where `fs.simulate(client_states=)` may have them
_NAMES = ("client_ids", "rows", "checksums")


def check_states_are_in(place: object) -> None:
    """Refuses a place where clients' states cannot be.

    Raises:
      ValueError: naming the places that there are.
    """
    if place not in (IN_MEMORY, ON_DISK):
        raise ValueError(f'client_states must be "{IN_MEMORY}" or "{ON_DISK}"; got {place!r}')


def check_on_disk(experiment: Experiment, state: FederatedState) -> None:
    """Refuses an experiment whose clients' states cannot be on a disk.

    Args:
      state: its shapes.

    Raises:
      ValueError: with the reason.
    """
    where = f'client_states must be "{IN_MEMORY}"'
    leaves = jax.tree.leaves(state.clients)
    if not leaves:
        raise ValueError(f"{where} where the algorithm's clients keep nothing; got {ON_DISK!r}")
    if any(map(is_key, leaves)):
        raise ValueError(f"{where} where clients keep random keys; got {ON_DISK!r}")
    if isinstance(experiment.evaluate, OfState):
        raise ValueError(
            f"{where} where evaluate is of the state, because it measures all clients' states "
            f"within the program, and the program has those of a few rounds; got {ON_DISK!r} "
            "(fs.evaluate_clients reads them from the disk, after the run)"
        )


class StatesOnDisk:
    """Moves clients' states between the disk and what a run carries, as `drive` asks it to.

    A window's clients have a row each in the carry's `HeldStates`. When the next window begins,
    the states of those that took part are written, and those of its own clients are read.
    """

    def __init__(
        self,
        folder: RunFolder,
        state: FederatedState,
        num_clients: int,
        planned: Callable[[], Planned],
    ) -> None:
        """Reads and writes nothing yet.

        Args:
          folder: of the run.
          state: before round 0, `clients` are leaves [W, ...] of any clients.
          num_clients: K.
          planned: of the window at hand.
        """
        first = jax.tree.map(lambda x: np.asarray(x[0]), state.clients)
        self.on_disk = ClientStates(folder.client_states, num_clients, first)
        self._planned = planned
        self._here: Planned | None = None
        self._written = 0  # states are those after this round, on the disk

    @staticmethod
    def held(state: FederatedState, num_clients: int) -> HeldStates:
        """What is carried before the first window: of nobody."""
        (rows, *_) = (x.shape[0] for x in jax.tree.leaves(state.clients))
        return HeldStates(state.clients, jnp.full(num_clients, rows, jnp.int32))

    def begin(self, arrays: dict[str, np.ndarray] | None, carry: PyTree, round: int) -> PyTree:
        """Goes back to a checkpoint, or begins anew; the carry, as the checkpoint has it.

        Raises:
          ValueError: for rows that are not there.
          SaveError: if the file cannot be made.
        """
        self._written = round
        if arrays is None:
            self.on_disk.begin()
            return carry
        self.on_disk.restore({name: arrays[f"client_states.{name}"] for name in _NAMES})
        saved = unflatten("carry", with_held(carry, ()), arrays)
        held = held_in(carry)
        leaves, structure = jax.tree.flatten(carry, is_leaf=lambda x: x is held)
        others = iter(jax.tree.leaves(saved))
        return jax.tree.unflatten(structure, [x if x is held else next(others) for x in leaves])

    def renewed(self, carry: PyTree, round: int) -> PyTree:
        """The carry with the states of the window at hand, before `round` is done.

        Raises:
          SaveError: if those of the window before are not written.
          ValueError: for a row that is damaged.
        """
        planned = self._planned()
        if planned is self._here:
            return carry
        self._write(carry, round)
        held, ids = held_in(carry), planned.client_ids
        num_rows = next(int(x.shape[0]) for x in jax.tree.leaves(held.states))
        rows = np.full(len(self.on_disk), num_rows, np.int32)
        rows[ids] = np.arange(len(ids))
        new = HeldStates(self.on_disk.read(ids, num_rows), jnp.asarray(rows))
        self._here = planned

        def put(x: Any, like: Any) -> Any:
            sharding: Sharding = like.sharding
            return placed(jnp.array(x, copy=True), sharding)  # a copy, because it is donated

        return with_held(carry, jax.tree.map(put, new, held))

    def _write(self, carry: PyTree, round: int) -> None:
        """Writes the states of those that took part before `round` and are not written yet."""
        if self._here is None or self._written == round:
            return
        ids, states = self._here.client_ids, held_in(carry).states
        changed = self._here.clients_of(self._written, round)
        places = np.searchsorted(ids, changed)
        self.on_disk.write(changed, jax.tree.map(lambda x: np.asarray(x)[places], states))
        self._written = round

    def arrays(self, carry: PyTree, round: int) -> dict[str, np.ndarray]:
        """What a checkpoint has of a carry: of the clients, where their states are on the disk.

        Raises:
          SaveError: if they are not written.
        """
        self._write(carry, round)
        snapshot = self.on_disk.snapshot()
        own = {f"client_states.{name}": snapshot[name] for name in _NAMES}
        return flatten("carry", with_held(carry, ())) | own

    def clients(self, carry: PyTree, round: int) -> Any:
        """What a user gets: the states on the disk, or those held where the disk did not take
        them."""
        is_written = self._here is None or self._written == round
        self.on_disk.compare_each_read()
        return self.on_disk if is_written else held_in(carry)
