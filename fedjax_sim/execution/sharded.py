"""The cohort dealt over the devices of a mesh, of one process or of several."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from fedjax_sim.core.randomness import is_key
from fedjax_sim.core.registry import declare
from fedjax_sim.core.tasks import Executed, Options, Tasks
from fedjax_sim.core.trees import where
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.automatic import automatic
from fedjax_sim.execution.client import Engine
from fedjax_sim.execution.placing import check_mesh, client_axis
from fedjax_sim.execution.pooled import takes_pooled
from fedjax_sim.execution.strategy import Strategy, as_strategy


@declare("the cohort dealt over the devices of a mesh")
def sharded(mesh: Mesh, inner: Callable[..., Executed] | None = None) -> "Sharded":
    """The cohort dealt over the devices of `mesh`, each running its share by `inner`.

    Clients are dealt longest first, each to the device with the least work so far, so what
    is to be done is spread evenly and no client is split. Everything a round sums
    travels in one sum over the devices. With `packed` inside, a device takes any number of
    the clients; a strategy that runs all the slots it is given gets ceil(m / D) of them. Place
    data and state by `replicate` first, or the second call compiles again.

    Args:
      mesh: of one axis, or with one named "clients"; `cores()` makes one of a CPU's cores.
      inner: a strategy; None for `automatic()`.

    Raises:
      ValueError: for a mesh without a client axis, or an inner strategy that is none.
    """
    check_mesh(mesh)
    inner = automatic() if inner is None else inner
    if not callable(inner) or isinstance(inner, (type, Sharded)):
        raise ValueError(
            f"inner must be execution.vmapped(), .packed(lanes), or a function; got {inner!r}"
        )
    return Sharded(mesh, as_strategy(inner, "inner"))


@dataclass(frozen=True)
class Sharded(Strategy):
    """See `sharded`."""

    mesh: Mesh = field()  # `field()` removes the default that the base class has
    inner: Strategy

    def side_by_side(self, engine: Engine, client_states: PyTree, slots: int) -> int:
        """Those of the inner strategy on each device."""
        devices = self.mesh.size
        engine = engine._replace(platform=self.mesh.devices.flat[0].platform)
        own_slots = -(-slots // devices)
        inner = self.inner.chosen(engine, client_states, own_slots)
        return devices * inner.side_by_side(engine, client_states, own_slots)

    def __call__(
        self, engine: Engine, client_states: PyTree, tasks: Tasks, options: Options
    ) -> Executed:
        axis = client_axis(self.mesh)
        devices = self.mesh.shape[axis]
        platform = self.mesh.devices.flat[0].platform
        exchange, engine = engine.exchange, engine._replace(platform=platform)
        # The strategy is chosen for the slots of one device, which are a D-th of the cohort's.
        inner = self.inner.chosen(engine, client_states, -(-tasks.client_ids.shape[0] // devices))
        by_examples = takes_pooled(exchange, options) or exchange.local.batch_size is None

        def share(
            data: FederatedData, key: Array, message: PyTree, client_states: PyTree, tasks: Tasks
        ) -> Executed:
            me = jax.lax.axis_index(axis)
            slots = tasks.client_ids.shape[0]
            work = _work(data, tasks, by_examples)
            # A strategy with a queue skips slots without steps; others pay for every slot.
            if inner.queues:
                mine = _deal(work, devices) == me
                own_tasks, own_states, back = tasks, client_states, jnp.arange(slots)
            else:
                back, mine = _deal_slots(work, devices, me)
                own_tasks = jax.tree.map(lambda x: x[back], tasks)
                # Slots without work are given the client with the most steps, because a client that
                # does not take part may have an infinite derivative, even though it is not read.
                busiest = jnp.argmax(tasks.num_steps)
                slots_held = jnp.where(own_tasks.num_steps > 0, back, busiest)
                own_tasks = own_tasks._replace(client_ids=tasks.client_ids[slots_held])
                own_states = jax.tree.map(lambda x: x[slots_held], client_states)
            own_tasks = own_tasks._replace(num_steps=jnp.where(mine, own_tasks.num_steps, 0))
            own_engine = Engine(exchange, data, key, message, platform)
            executed = inner(own_engine, own_states, own_tasks, options)
            executed = executed._replace(client_states=_as_numbers(executed.client_states))

            def spread(x: Array) -> Array:
                """This device's values at their slots of the cohort, and zeros at all others."""
                zeros = jnp.zeros((slots, *x.shape[1:]), x.dtype)
                return zeros.at[back].set(where(mine, x, jnp.zeros_like(x)))

            names = ("client_states", "counted", "finite", "updates")
            by_slot = {name: jax.tree.map(spread, getattr(executed, name)) for name in names}
            return _sum(executed._replace(**by_slot), axis)

        everywhere = PartitionSpec()
        dealt = jax.shard_map(
            share,
            mesh=self.mesh,
            in_specs=everywhere,
            out_specs=everywhere,
            # The check refuses carries that are zeros on all devices first and differ later. The
            # final sum makes the results equal on all devices.
            check_vma=False,
        )
        executed = dealt(engine.data, engine.key, engine.message, client_states, tasks)
        return executed._replace(client_states=_with_keys_of(client_states, executed.client_states))


def _as_numbers(tree: PyTree) -> PyTree:
    """The tree with the bits of its keys, which can be summed, in place of the keys."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def _with_keys_of(like: PyTree, tree: PyTree) -> PyTree:
    """The inverse of `_as_numbers`: keys where `like` has them."""

    def restore(old: Array, new: Array) -> Array:
        if not is_key(old):
            return new
        return jax.random.wrap_key_data(new, impl=jax.random.key_impl(old))

    return jax.tree.map(restore, like, tree)


def _work(data: FederatedData, tasks: Tasks, by_examples: bool) -> Array:
    """Float[m], the cost of a slot: its steps, for full batches times its examples."""
    # Floats, because a device's sum of integers might overflow.
    cost = tasks.num_steps.astype(jnp.result_type(float))
    if by_examples:
        cost = cost * data.num_examples[tasks.client_ids].astype(cost.dtype)
    return cost


def _deal(work: Array, devices: int) -> Array:
    """Int[m], the device of each slot: longest first, to the one with the least work."""

    def give(load: Array, cost: Array) -> tuple[Array, Array]:
        device = jnp.argmin(load)
        return load.at[device].add(cost), device

    order = jnp.argsort(-work, stable=True)
    _, dealt = jax.lax.scan(give, jnp.zeros(devices, work.dtype), work[order])
    return jnp.zeros_like(dealt).at[order].set(dealt)


def _deal_slots(work: Array, devices: int, me: Array) -> tuple[Array, Array]:
    """The ceil(m / D) slots of device `me`, dealt longest first, to and fro; which are real."""
    slots = work.shape[0]
    order = jnp.argsort(-work, stable=True)
    turn = jnp.arange(-(-slots // devices))
    place = turn * devices + jnp.where(turn % 2 == 0, me, devices - 1 - me)
    return order[jnp.minimum(place, slots - 1)], place < slots


def _sum(tree: PyTree, axis: str) -> PyTree:
    """The sum over the devices, with one message for each dtype, not one for each array."""
    leaves, treedef = jax.tree.flatten(tree)
    terms = [x.astype(jnp.int32) if x.dtype == bool else x for x in leaves]
    summed: list[Any] = [None] * len(terms)
    for dtype in dict.fromkeys(x.dtype for x in terms):
        places = [i for i, x in enumerate(terms) if x.dtype == dtype]
        flat = jnp.concatenate([terms[i].reshape(-1) for i in places])
        ends = np.cumsum([terms[i].size for i in places])[:-1]
        parts = jnp.split(jax.lax.psum(flat, axis), ends)
        for i, part in zip(places, parts, strict=True):
            summed[i] = part.reshape(leaves[i].shape).astype(leaves[i].dtype)
    return jax.tree.unflatten(treedef, summed)
