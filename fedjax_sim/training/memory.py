"""The memory that an experiment needs, from shapes alone, before anything compiles."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.checks import is_concrete
from fedjax_sim.core.trees import num_bytes, shapes_with
from fedjax_sim.core.types import PyTree
from fedjax_sim.core.words import gibibytes
from fedjax_sim.data import FederatedData, Source, usual_rows
from fedjax_sim.execution.client import Engine
from fedjax_sim.execution.machine import (
    carry_bytes,
    free_memory,
    own_devices,
    update_bytes,
)
from fedjax_sim.execution.strategy import Strategy
from fedjax_sim.training.arguments import check_strategy, imagined_answer
from fedjax_sim.training.experiment import Experiment


class Memory(NamedTuple):
    """Bytes, of all devices of this process together.

    What a step computes on its way, the activations of a block and the gradient, is not in it: it
    is known once the program is compiled.

    Attributes:
      data: of the federation's examples; of a `Source`'s two windows, one that is trained on and
        one that is read. A CPU's devices share them.
      server: the model and what the server keeps beside it, twice on each device: the state before
        a round and the one behind it.
      clients: of all K clients' states, on each device.
      training: the clients side by side, each its model and its optimizer's state, and on each
        device the states of the cohort that are handed back.
      updates: the m updates of a rule that sees all of them, on each device; 0 of one that
        averages. Asynchronous rounds hold those of the b clients that train at once.
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


def memory(
    experiment: Experiment, *, capacity: int | None = None, num_states: int | None = None
) -> Memory:
    """What an experiment needs, by its parts; computes nothing.

        data = N |example| in memory, 2 rows |example| of a source,   server = 2 D |server state|,
        clients = D K |client state|,   training = L |carry| + D m |client state|,
        updates = D m |update| if the rule combines them,
        pending = D c (|update| + |total| + |client state|) in asynchronous rounds

    with D the devices of this process in the strategy's mesh, 1 without one, L the clients that
    these train side by side and m the cohort's slots, or the buffer's b in asynchronous rounds,
    which train so many at a time. `fs.simulate` compares it with what is free, and refuses before
    it compiles.

    Args:
      capacity: rows of a window, as of `fs.simulate`; None for those that one on a `Source` has at
        most where nobody says: 256 MiB of them, or those of the m largest clients.
      num_states: of how many clients the states are held, where the others are on a disk; None for
        all K.

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
    state = jax.eval_shape(lambda key: experiment.start(key, num_states), jax.random.key(0))
    asynchrony = experiment.algorithm.asynchrony
    cohort_size = federation.num_clients if sampler.size is None else sampler.size
    slots = cohort_size if asynchrony is None else asynchrony.buffer
    cohort = shapes_with(state.clients, slots)
    strategy = check_strategy(experiment.execution)
    devices = _devices(strategy)
    keeps_updates = asynchrony is not None or _combines(experiment, slots)
    training, updates = [0], [0]

    def measure(data: FederatedData, server: PyTree) -> None:
        for exchange in experiment.algorithm.exchanges:
            message = exchange.broadcast(server, jnp.int32(0))
            engine = Engine(exchange, data, jax.random.key(0), message)
            lanes = strategy.side_by_side(engine, cohort, slots)
            if strategy.mesh is not None:
                lanes = lanes * devices.number // strategy.mesh.size
            states_handed_back = devices.number * num_bytes(cohort)
            training.append(lanes * carry_bytes(engine, cohort) + states_handed_back)
            if keeps_updates:
                updates.append(devices.number * slots * update_bytes(engine, cohort))

    # In a trace, since the examples may be shapes alone, which a client's probe reads.
    jax.eval_shape(measure, federation, state.server)
    data = num_bytes(federation.examples)
    if isinstance(experiment.data, Source) and capacity is None:
        capacity = _rows(experiment.data, cohort_size)
    if capacity is not None:
        data = 2 * capacity * (data // federation.total_num_examples)
    return Memory(
        data=data if devices.share_examples else devices.number * data,
        server=devices.number * 2 * num_bytes(state.server),
        clients=devices.number * num_bytes(state.clients),
        training=max(training),
        updates=max(updates),
        pending=devices.number * num_bytes(state.pending),
    )


def check_fits(
    experiment: Experiment,
    devices: Sequence[Any],
    *,
    capacity: int | None = None,
    num_states: int | None = None,
) -> None:
    """Refuses an experiment that needs more memory than these devices have free.

    The examples are not counted where they are there already.

    Args:
      devices: those of this process.
      capacity: as of `memory`, as `num_states`.

    Raises:
      ValueError: with what is needed, by its parts, and what is free.
    """
    needed = memory(experiment, capacity=capacity, num_states=num_states)
    free, examples = free_memory(devices), jax.tree.leaves(experiment.federation.examples)
    are_there = capacity is None and all(map(is_concrete, examples))
    more_data = needed.data - (num_bytes(examples) if are_there else 0)
    amount = needed.total - needed.data + more_data
    if amount <= free:
        return
    held = experiment.federation.num_clients if num_states is None else num_states
    words = ", ".join(
        f"{gibibytes(size)} {words}"
        for size, words in (
            (more_data, "for the examples" if capacity is None else "for two windows on them"),
            (needed.server, "for the server's state, before and after"),
            (needed.clients, f"for the states of {held} clients"),
            (needed.training, "for the clients in training"),
            (needed.updates, "for all updates of a cohort at once"),
            (needed.pending, "for updates that are yet to arrive"),
        )
        if size
    )
    on_disk = (
        ', or keep what clients keep on a disk (client_states="disk")'
        if needed.clients and num_states is None
        else ""
    )
    raise ValueError(
        f"the experiment needs {gibibytes(amount)} of memory, and {gibibytes(free)} are free: "
        f"{words}. Take a smaller cohort, fewer lanes (execution.packed(lanes)), a rule that only "
        f"averages, or an algorithm that keeps less of each client{on_disk}"
    )


class _Devices(NamedTuple):
    """Those of this process that an experiment is computed on.

    Attributes:
      number: how many.
      share_examples: whether they read one copy of the examples, as those of a CPU do.
    """

    number: int
    share_examples: bool


def _devices(strategy: Strategy) -> _Devices:
    if strategy.mesh is None:
        return _Devices(1, share_examples=True)
    mine = own_devices(strategy.mesh)
    return _Devices(len(mine), all(device.platform == "cpu" for device in mine))


def _rows(source: Source, cohort_size: int) -> int:
    """Rows of a window by default, at most: of how many one holds, cohorts decide."""
    largest = np.sort(np.asarray(source.num_examples))[-cohort_size:]
    return max(usual_rows(source), int(largest.sum()))


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
