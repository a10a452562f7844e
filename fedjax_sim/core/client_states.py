"""The clients' states in a round: those of all K, or those of some in fewer rows."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax

from fedjax_sim.core.types import Array, PyTree


@partial(jax.tree_util.register_dataclass, data_fields=["states", "row_of_client"], meta_fields=[])
@dataclass(frozen=True)
class HeldStates:
    """The states of the clients that some rounds give the model to; the others are elsewhere.

    In the place of `FederatedState.clients`, a round reads and writes the rows of its cohort.

    Attributes:
      states: leaves [W, ...].
      row_of_client: Int[K], a client's row; W of clients that are not held.
    """

    states: PyTree
    row_of_client: Array


def states_of(clients: PyTree, client_ids: Array) -> PyTree:
    """The states of these clients, leaves [..., ...] with the axes of `client_ids` first."""
    if isinstance(clients, HeldStates):
        clients, client_ids = clients.states, clients.row_of_client[client_ids]
    return jax.tree.map(lambda x: x[client_ids], clients)


def with_states(clients: PyTree, client_ids: Array, states: PyTree) -> PyTree:
    """All states, with those of some clients replaced.

    Args:
      client_ids: Int[m]; K in slots of which nothing is written.
      states: leaves [m, ...].
    """
    if isinstance(clients, HeldStates):
        (rows, *_) = (x.shape[0] for x in jax.tree.leaves(clients.states))
        target = clients.row_of_client.at[client_ids].get(mode="fill", fill_value=rows)
        return replace(clients, states=with_states(clients.states, target, states))
    return jax.tree.map(lambda old, new: old.at[client_ids].set(new, mode="drop"), clients, states)


def numbers_of_clients(clients: PyTree) -> Iterator[int]:
    """Of how many clients each leaf is."""
    if isinstance(clients, HeldStates):
        clients = clients.row_of_client
    return (x.shape[0] for x in jax.tree.leaves(clients))


def with_held(tree: PyTree, held: Any) -> PyTree:
    """A tree with another value in the place of the `HeldStates` that it has."""
    return jax.tree.map(lambda x: held if is_held(x) else x, tree, is_leaf=is_held)


def held_in(tree: PyTree) -> HeldStates:
    """The `HeldStates` of a tree that has one."""
    (held,) = (x for x in jax.tree.leaves(tree, is_leaf=is_held) if is_held(x))
    assert isinstance(held, HeldStates)
    return held


def is_held(x: Any) -> bool:
    """Whether it is a `HeldStates`."""
    return isinstance(x, HeldStates)
