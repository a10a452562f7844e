"""The memory that an experiment needs, from shapes alone, before anything compiles."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import is_concrete
from fedjax_sim.core.trees import num_bytes
from fedjax_sim.core.types import PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.client import Engine
from fedjax_sim.execution.machine import carry_bytes, free_memory, gibibytes, update_bytes
from fedjax_sim.training.arguments import check_strategy, imagined_answer
from fedjax_sim.training.experiment import Experiment


class Memory(NamedTuple):
    """Bytes, of all devices together.

    What a step computes on its way, the activations of a block and the gradient, is not in it: it
    is known once the program is compiled.

    Attributes:
      data: of the federation's examples, or of a window of a `Source`'s where that is bounded.
      server: the model and what the server keeps beside it, twice: the state before a round and
        the one behind it.
      clients: of all K clients' states.
      training: the clients side by side, each its model and its optimizer's state, and the states
        of the cohort that are handed back.
      updates: the m updates of a rule that sees all of them; 0 of one that averages. Asynchronous
        rounds hold those of the b clients that train at once.
      pending: of asynchronous rounds what c clients in training will send, and keep.
    """

    data: int
    server: int
    clients: int
    training: int
    updates: int
    pending: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)


def memory(experiment: Experiment) -> Memory:
    """What an experiment needs, by its parts; computes nothing.

        server = 2 |server state|,   clients = K |client state|,
        training = L |carry| + m |client state|,   updates = m |update| if the rule combines them,
        pending = c (|update| + |total| + |client state|) in asynchronous rounds

    with L the clients that the strategy trains side by side and m the cohort's slots, or the
    buffer's b in asynchronous rounds, which train so many at a time. `fs.simulate`
    compares it with what is free, and refuses before it compiles.

    >>> import fedjax_sim as fs, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones((3, 100))}] * 50)
    >>> loss_fn = lambda w, batch, key: batch["x"] @ w
    >>> algorithm = fs.scaffold(loss_fn, 0.1, fs.LocalTraining())
    >>> experiment = fs.Experiment(
    ...     algorithm, jnp.zeros(100), data, fs.sampling.uniform(5), num_rounds=10,
    ...     execution=fs.execution.packed(2))
    >>> fs.memory(experiment).clients  # a control variate of 400 bytes for each of the 50
    20000
    """
    federation, sampler = experiment.federation, experiment.sampler
    state = jax.eval_shape(experiment.start, jax.random.key(0))
    asynchrony = experiment.algorithm.asynchrony
    slots = federation.num_clients if sampler.size is None else sampler.size
    slots = slots if asynchrony is None else asynchrony.buffer
    cohort = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((slots, *x.shape[1:]), x.dtype), state.clients
    )
    strategy = check_strategy(experiment.execution)
    keeps_updates = asynchrony is not None or _combines(experiment, slots)
    training, updates = [0], [0]

    def measure(data: FederatedData, server: PyTree) -> None:
        for exchange in experiment.algorithm.exchanges:
            message = exchange.broadcast(server, jnp.int32(0))
            engine = Engine(exchange, data, jax.random.key(0), message)
            lanes = strategy.side_by_side(engine, cohort, slots)
            training.append(lanes * carry_bytes(engine, cohort) + num_bytes(cohort))
            if keeps_updates:
                updates.append(slots * update_bytes(engine, cohort))

    # In a trace, since the examples may be shapes alone, which a client's probe reads.
    jax.eval_shape(measure, federation, state.server)
    return Memory(
        data=num_bytes(federation.examples),
        server=2 * num_bytes(state.server),
        clients=num_bytes(state.clients),
        training=max(training),
        updates=max(updates),
        pending=num_bytes(state.pending),
    )


def check_fits(experiment: Experiment, devices: Sequence[Any]) -> None:
    """Refuses an experiment that needs more memory than these devices have free.

    The examples are not counted where they are there already.

    Raises:
      ValueError: with what is needed, by its parts, and what is free.
    """
    needed, free = memory(experiment), free_memory(devices)
    there = all(map(is_concrete, jax.tree.leaves(experiment.federation.examples)))
    amount = needed.total - (needed.data if there else 0)
    if amount <= free:
        return
    words = ", ".join(
        f"{gibibytes(size)} {words}"
        for size, words in (
            (needed.server, "for the server's state, before and after"),
            (needed.clients, f"for the states of {experiment.federation.num_clients} clients"),
            (needed.training, "for the clients in training"),
            (needed.updates, "for all updates of a cohort at once"),
            (needed.pending, "for updates that are yet to arrive"),
        )
        if size
    )
    raise ValueError(
        f"the experiment needs {gibibytes(amount)} of memory, and {gibibytes(free)} are free: "
        f"{words}. Take a smaller cohort, fewer lanes (execution.packed(lanes)), a rule that only "
        "averages, or an algorithm that keeps less of each client"
    )


def _combines(experiment: Experiment, slots: int) -> bool:
    """Whether the rule sees all updates at once."""

    asked: list[bool] = []
    exchange = experiment.algorithm.exchanges[-1]

    def ask() -> None:
        num_clients = experiment.federation.num_clients
        coefficients = imagined_answer(experiment.aggregation, slots, num_clients)
        if exchange.aggregation is not None:
            coefficients = exchange.aggregation(coefficients)
        asked.append(coefficients.combine is not None)

    jax.eval_shape(ask)
    return asked[0]
