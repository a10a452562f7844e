"""Sending the model to clients that are free, and training them at once.

Their results are held until they arrive.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.asynchrony import Asynchrony, Pending
from fedjax_sim.core.client_states import states_of
from fedjax_sim.core.counts import carried, exact
from fedjax_sim.core.division import num_groups
from fedjax_sim.core.models import model_of
from fedjax_sim.core.randomness import permutation_seeds, permute
from fedjax_sim.core.tasks import Executed, Options, Tasks
from fedjax_sim.core.trees import first_of_each
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    Exchange,
    FederatedAlgorithm,
    FederatedState,
    Metrics,
    Params,
    PyTree,
    accumulator,
)
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.client import Engine
from fedjax_sim.execution.strategy import Strategy
from fedjax_sim.training.communication import communication
from fedjax_sim.training.executing import execute
from fedjax_sim.training.reported import Slots


class Sent(NamedTuple):
    """Who of a cohort is sent the model now.

    Attributes:
      slots: of the cohort; those without steps are not trained.
      chosen: Int[n], the slots that train, one for each free place, and then any.
      places: Int[n], where in `Pending` their results go; c for those behind `number`.
      number: Int[], of the clients that train.
    """

    slots: Slots
    chosen: Array
    places: Array
    number: Array


class Trained(NamedTuple):
    """What a loop over groups of clients carries: what is pending, metrics and lane steps."""

    pending: Pending
    metrics: Metrics
    lane_steps: Array  # UInt32[4]


def choose(
    asynchrony: Asynchrony, key: Array, pending: Pending, data: FederatedData, slots: Slots
) -> Sent:
    """Draws who is sent the model: free clients of the cohort, evenly, until c are in training.

    A client that is sent the model and will not report holds no place, so that another one is sent
    the model, too.
    """
    number_of_slots = slots.ids.shape[0]
    if number_of_slots < asynchrony.concurrency:
        raise ValueError(
            "sampler must draw at least as many clients as train at a time, of whom those who are "
            f"free are sent the model: fs.sampling.uniform({asynchrony.concurrency}); got cohorts "
            f"of {number_of_slots}"
        )
    is_busy = jnp.zeros(data.num_clients, bool)
    is_busy = is_busy.at[pending.client_ids].max(pending.in_flight)
    turns = permute(
        permutation_seeds(key), jnp.arange(number_of_slots, dtype=jnp.int32), number_of_slots
    )
    ids = slots.ids[turns]
    is_free = first_of_each(ids, slots.was_sent[turns] & ~is_busy[ids])
    reports = is_free & (slots.steps[turns] > 0)
    num_free = asynchrony.concurrency - jnp.sum(pending.in_flight, dtype=jnp.int32)
    before = jnp.cumsum(reports, dtype=jnp.int32) - reports.astype(jnp.int32)
    was_sent = jnp.zeros(number_of_slots, bool).at[turns].set(is_free & (before < num_free))
    # Whole groups of b clients, of which the last may have fewer.
    size = -(-asynchrony.concurrency // asynchrony.buffer) * asynchrony.buffer
    (order,) = jnp.nonzero(reports & (before < num_free), size=size, fill_value=0)
    (places,) = jnp.nonzero(~pending.in_flight, size=size, fill_value=asynchrony.concurrency)
    number = jnp.minimum(jnp.sum(reports, dtype=jnp.int32), num_free)
    steps = jnp.where(was_sent, slots.steps, 0)
    slots = slots._replace(
        cohort=slots.cohort._replace(reports=steps > 0), was_sent=was_sent, steps=steps
    )
    return Sent(slots, turns[order], places, number)


def with_total_beside(exchange: Exchange) -> Exchange:
    """The exchange with the total in the update, so that a strategy hands back each client's."""
    inner = exchange.client.finish

    def finish(*arguments: PyTree) -> ClientOutput:
        output = inner(*arguments)
        return output._replace(update=(output.update, output.total), total=())

    return exchange._replace(client=exchange.client._replace(finish=finish))


def seconds_of(
    algorithm: FederatedAlgorithm,
    asynchrony: Asynchrony,
    state: FederatedState,
    data: FederatedData,
    slots: Slots,
) -> Array:
    """Float[m], from being sent the model to the server's having the update."""
    exchange = communication(algorithm, state.params, data)
    return asynchrony.clock.seconds(slots.ids, slots.steps, exchange.down, exchange.up)


def train(
    asynchrony: Asynchrony,
    strategy: Strategy,
    engine: Engine,
    options: Options,
    state: FederatedState,
    sent: Sent,
    seconds: Array,
) -> Trained:
    """Trains who was sent the model, b at a time: c clients in round 0, and b in most others."""
    slots, size = sent.slots, asynchrony.buffer

    def execute_group(group: Array) -> tuple[Array, Array, Executed]:
        """The group's slots and places, and what the strategy makes of it."""
        first = group * size
        chosen = jax.lax.dynamic_slice_in_dim(sent.chosen, first, size)
        is_real = first + jnp.arange(size, dtype=jnp.int32) < sent.number
        steps = jnp.where(is_real, slots.steps[chosen], 0)
        ones = jnp.ones(size, slots.client_weights.dtype)
        client_states = states_of(state.clients, slots.ids[chosen])
        tasks = Tasks(slots.ids[chosen], steps, ones, ones)
        executed = execute(strategy, engine, client_states, tasks, options)
        places = jax.lax.dynamic_slice_in_dim(sent.places, first, size)
        return chosen, jnp.where(is_real, places, asynchrony.concurrency), executed

    def train_group(group: Array, trained: Trained) -> Trained:
        chosen, places, executed = execute_group(group)
        update, total = executed.updates
        if asynchrony.mixes_models:
            update = jax.tree.map(_plus_each, update, _sent_model(engine, state))
        new_results = Pending(
            update=update,
            total=total,
            client_state=executed.client_states,
            client_ids=slots.ids[chosen],
            version=jnp.broadcast_to(state.round, chosen.shape),
            seconds=seconds[chosen],
            counted=executed.counted,
            finite=executed.finite,
            in_flight=jnp.ones(size, bool),
        )
        pending = jax.tree.map(
            lambda old, new: old.at[places].set(new, mode="drop"), trained.pending, new_results
        )
        metrics = jax.tree.map(jnp.add, trained.metrics, executed.metrics)
        lane_steps = executed.lane_steps
        lane_steps = lane_steps if jnp.ndim(lane_steps) else exact(lane_steps)
        return Trained(pending, metrics, carried(trained.lane_steps + lane_steps))

    first = jnp.zeros((), jnp.int32)
    metrics = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(execute_group, first)[2].metrics
    )
    assert isinstance(state.pending, Pending)
    start = Trained(state.pending, metrics, jnp.zeros(4, jnp.uint32))
    if asynchrony.buffer == asynchrony.concurrency:
        return train_group(first, start)
    return jax.lax.fori_loop(0, num_groups(sent.number, size), train_group, start)


def _sent_model(engine: Engine, state: FederatedState) -> Params:
    """The model that clients train from: by a codec it is not quite the server's."""
    model = model_of(engine.message)
    return state.params if model is None else model


def _plus_each(update: Array, model: Array) -> Array:
    """The models [b, ...] that these updates are made of, in float32 or better and rounded once."""
    wide = accumulator(update.dtype)
    return (model.astype(wide)[None] + update.astype(wide)).astype(update.dtype)
