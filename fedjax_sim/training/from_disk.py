"""Clients' own models measured where their states, or their examples, are on a disk."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.client_states import HeldStates
from fedjax_sim.core.types import Array, FederatedState, Metrics, PyTree
from fedjax_sim.data import ClientStates, FederatedData, Source
from fedjax_sim.training.evaluation import Evaluation
from fedjax_sim.training.fine_tuning import FineTuned
from fedjax_sim.training.own_models import (
    Measures,
    check_measured,
    check_same_clients,
    checked_ids,
    means,
)

_CLIENTS = 256  # whose states and examples are in memory at a time


def evaluate_from_disk(
    measures: Measures,
    state: FederatedState,
    data: FederatedData | Source,
    test: FederatedData | Source | None,
    clients: Any | None,
) -> Evaluation | FineTuned:
    """As `fs.evaluate_clients`, a few hundred clients at a time, in one compiled function.

    Raises:
      ValueError: as `fs.evaluate_clients`.
    """
    name = "data" if test is None else "test"
    test = data if test is None else test
    check_same_clients(data, test)
    states, number = state.clients, data.num_clients
    if isinstance(states, ClientStates) and not measures.unseen and len(states) != number:
        raise ValueError(
            f"state must come from a run on this federation of {number} clients; it holds states "
            f"of {len(states)}"
        )
    ids = np.asarray(checked_ids(clients, number))
    size = min(_CLIENTS, len(ids))
    # The last group is filled with the last client, and what is measured of that is cut off.
    groups = np.pad(ids, (0, -len(ids) % size), mode="edge").reshape(-1, size)
    capacities = {id(x): _capacity(x, groups) for x in (data, test) if isinstance(x, Source)}

    def window(x: FederatedData | Source, group: np.ndarray) -> FederatedData:
        if not isinstance(x, Source):
            return x
        return FederatedData.window(x, np.unique(group), capacities[id(x)])

    def held(group: np.ndarray) -> PyTree:
        if measures.unseen or not isinstance(states, ClientStates):
            return () if measures.unseen else states
        own_ids = np.unique(group)
        rows = np.full(number, size, np.int32)
        rows[own_ids] = np.arange(len(own_ids))
        read = jax.tree.map(jnp.asarray, states.read(own_ids, size))
        return HeldStates(read, jnp.asarray(rows))

    def state_of(server: PyTree, clients: PyTree, round: Array) -> FederatedState:
        return FederatedState(server, clients, round, state.get_params)

    def compiled(own: Measures) -> Any:
        return jax.jit(lambda parts, *rest: own.sums(state_of(*parts), *rest))

    sums: list[list[Metrics]] = []
    measure: Any = None
    for group in groups:
        train_part, test_part = window(data, group), window(test, group)
        arguments = state.server, held(group), state.round
        if measure is None:
            fine_tune = check_measured(
                measures.metric_fn,
                measures.algorithm,
                state_of(*arguments),
                train_part,
                test_part,
                name=name,
                fine_tune=measures.fine_tune,
                unseen=measures.unseen,
                is_read=isinstance(data, Source),
            )
            measure = compiled(measures._replace(fine_tune=fine_tune))
        part = measure(arguments, train_part, test_part, jnp.asarray(group, jnp.int32))
        sums.append(jax.tree.map(np.asarray, part))
    whole = jax.tree.map(lambda *xs: jnp.asarray(np.concatenate(xs)[: len(ids)]), *sums)
    evaluations = [means(of_models) for of_models in whole]
    return evaluations[0] if measures.fine_tune is None else FineTuned(*evaluations)


def _capacity(source: Source, groups: np.ndarray) -> int:
    """The most examples that the clients of a group have, and one at least."""
    sizes = np.asarray(source.num_examples)
    return max(1, *(int(sizes[np.unique(group)].sum()) for group in groups))
