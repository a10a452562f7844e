"""The clients' training by a strategy, and what it must hand back."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.tasks import Executed, Options, Tasks
from fedjax_sim.core.types import PyTree
from fedjax_sim.execution.client import Engine
from fedjax_sim.execution.machine import check_updates_fit
from fedjax_sim.execution.strategy import Strategy


def execute(
    strategy: Strategy, engine: Engine, client_states: PyTree, tasks: Tasks, options: Options
) -> Executed:
    """Trains the clients; if all updates are kept, checks before that they fit in memory."""
    if not options.keep_updates:
        return strategy(engine, client_states, tasks, options)
    slots = tasks.client_ids.shape[0]
    check_updates_fit(engine, client_states, slots, strategy.mesh)
    executed = strategy(engine, client_states, tasks, options)
    sums, update_leaves = jax.tree.leaves(executed.update), jax.tree.leaves(executed.updates)
    structure: Any = jax.tree.structure(executed.update)
    structure_of_updates: Any = jax.tree.structure(executed.updates)
    if structure != structure_of_updates or [(slots, *x.shape) for x in sums] != [
        jnp.shape(x) for x in update_leaves
    ]:
        raise ValueError(
            "execution must return Executed.updates, leaves [m, ...] of the structure of update, "
            f"where options.keep_updates asks for them; got {structure_of_updates}"
        )
    return executed
