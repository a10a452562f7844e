"""Windows on a federation that is not in memory; the next is read while one is trained on.

A window holds the examples of all cohorts of some rounds, in a fixed number of rows, and is an
input of the program, so that nothing compiles anew. Sizes, weights and static fields are those of
the whole federation, so that a round has the result that it has with all data in memory.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_sim.core.checks import check_count, check_in_32_bits
from fedjax_sim.core.history import History
from fedjax_sim.core.trees import num_bytes, shapes_with
from fedjax_sim.core.types import Array, FederatedState, PyTree
from fedjax_sim.data import Source, read_rows, usual_rows
from fedjax_sim.execution.placing import placed, spread
from fedjax_sim.host.planning import Cohorts, Planned, staged, taking_part
from fedjax_sim.training.experiment import Experiment

_STATES_BYTES = 2**28  # of clients' states that are held; at least those of the largest round
_LOOK_SECONDS = 0.1  # between two looks at the signals, while a window is waited for

# (experiment, round, carry) -> (carry, row), as a program's step, of an experiment in memory.
Step = Callable[[Experiment, Array, PyTree], tuple[PyTree, History]]


class Window(NamedTuple):
    """The part of a federation that is an input of the program.

    Attributes:
      examples: leaves [capacity, ...].
      offsets: Int[K], the first row of each client that is held.
      held: Bool[K].
    """

    examples: PyTree
    offsets: Any
    held: Any


class _Ready(NamedTuple):
    """A window on the devices, and the rounds that it serves."""

    planned: Planned
    window: Window


class Windows:
    """The windows of one run, in the order of its rounds; used as a context, which ends its thread.

    Attributes:
      capacity: rows of each.
      most_clients: of each, where their states are held with it; None for any number.
    """

    def __init__(
        self,
        experiment: Experiment,
        key: Array,
        state: FederatedState,
        *,
        capacity: int | None,
        mesh: Mesh | None,
        has_states: bool = False,
    ) -> None:
        """Plans the run; reads nothing yet.

        Args:
          experiment: whose data is a `Source`, or read as one.
          state: before round 0, or its shapes.
          capacity: rows; None for 256 MiB of them, or those of the largest round.
          mesh: where the windows are placed; None for the default device.
          has_states: whether the states of a window's clients are held with it, and those of the
            others not.

        Raises:
          ValueError: for a sampler that looks at examples, or a capacity that a round exceeds.
        """
        data = experiment.data
        self._source = data if isinstance(data, Source) else Source.of(data)
        self._experiment, self._key = experiment, key
        # The static fields of a federation in memory, which may be the user's own.
        self._whole = replace(
            self._source.without_examples,
            max_num_examples=data.max_num_examples,
            padded_sizes=data.padded_sizes,
        )
        self._params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params)
        self._cohorts = Cohorts(experiment.sampler, key, self._whole, experiment.num_rounds)
        self.capacity = self._rows(capacity)
        self.most_clients = self._most_states(state) if has_states else None
        self._mesh = mesh
        # Of this thread, which the other does not know: what is entered with `with` is each one's.
        (self._device,) = jnp.zeros(()).devices()
        self._has_64_bits = jax.enable_x64.value
        self._promotion = jax.numpy_dtype_promotion.value
        self._here: _Ready | None = None
        self._next: Future[_Ready] | None = None
        self._thread: threading.Thread | None = None

    def _rows(self, capacity: int | None) -> int:
        source, sampler = self._source, self._experiment.sampler
        sizes = np.sort(np.asarray(source.num_examples))
        # An upper bound of what a cohort reads; only if it does not fit are all rounds looked at.
        most_rows = int(sizes.sum() if sampler.size is None else sizes[-sampler.size :].sum())
        if capacity is None:
            rows = usual_rows(source)
            if most_rows > rows:
                rows = max(rows, self._cohorts.largest_round()[1])
            check_in_32_bits("sampler must draw cohorts of", rows, " examples")
            return rows
        capacity = check_count("capacity", capacity, ", or None")
        check_in_32_bits("capacity must be", capacity)
        if most_rows > capacity:
            largest, rows = self._cohorts.largest_round()
            if rows > capacity:
                raise ValueError(
                    f"capacity must hold the cohort of each round: that of round {largest + 1} has "
                    f"{rows} examples; got {capacity}"
                )
        return capacity

    def _most_states(self, state: FederatedState) -> int:
        """How many clients' states are held: at least those of each round."""
        clients = self._whole.num_clients
        size = num_bytes(shapes_with(state.clients))
        of_a_round = self._experiment.sampler.size
        if of_a_round is None:
            of_a_round = self._cohorts.most_clients()
        # More clients than have examples in a window would be rows that nobody uses.
        num_examples = np.sort(np.asarray(self._source.num_examples))
        of_examples = int(np.searchsorted(np.cumsum(num_examples), self.capacity, side="right"))
        most = min(_STATES_BYTES // max(size, 1), of_examples)
        return max(1, min(clients, max(of_a_round, most)))

    def planned_now(self) -> Planned:
        """Of the window that was taken last."""
        assert self._here is not None
        return self._here.planned

    @property
    def shapes(self) -> Window:
        """Of what the program is given."""
        sharding: Any = None
        if self._mesh is not None:
            sharding = NamedSharding(self._mesh, PartitionSpec())

        def rows(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.capacity, *x.shape[1:]), x.dtype, sharding=sharding)

        clients = (self._whole.num_clients,)
        return Window(
            examples=jax.tree.map(rows, self._whole.examples),
            offsets=jax.ShapeDtypeStruct(clients, jnp.int32, sharding=sharding),
            held=jax.ShapeDtypeStruct(clients, jnp.bool_, sharding=sharding),
        )

    def carry(self, carry: PyTree) -> PyTree:
        """The program's carry: a step's own, and whether all cohorts so far were in the windows."""
        return carry, placed(jnp.array(True), jax.tree.leaves(carry)[0].sharding)

    def step(self, step: Step) -> Callable[[Window, Array, PyTree], tuple[PyTree, History]]:
        """The program's step, made of a step on an experiment in memory.

        The cohort is drawn in the round as it is where all data are in memory, so that the same is
        compiled, and compared with the window. Of numbers that are rounded, as sums of weights,
        another program might draw another one.
        """

        def on_window(window: Window, round: Array, carry: PyTree) -> tuple[PyTree, History]:
            step_carry, all_held = carry
            experiment, whole = self._experiment, self._whole
            cohort = experiment.sampler.sample(self._key, round, staged(whole))
            ids = taking_part(cohort, whole)
            all_held &= jnp.all(window.held.at[ids].get(mode="fill", fill_value=True))
            data = replace(
                whole,
                examples=window.examples,
                offsets=window.offsets,
                num_examples_of_all=self._source.total_num_examples,
            )
            sampler = experiment.sampler._replace(sample=lambda key, round, data: cohort)
            step_carry, row = step(
                experiment._replace(data=data, sampler=sampler), round, step_carry
            )
            return (step_carry, all_held), row

        return on_window

    def own_carry(self, carry: PyTree) -> PyTree:
        """A step's own, of the program's.

        Raises:
          ValueError: if a cohort was not the one that was planned.
        """
        step_carry, all_held = carry
        if not bool(all_held):
            raise ValueError(
                "sampler must draw the same cohort of a key and a round in whatever program: a "
                "round drew a client that was not planned for, and did not read its examples"
            )
        return step_carry

    def take(
        self, first: int, count: int, is_interrupted: Callable[[], bool]
    ) -> tuple[Window, int] | None:
        """The window that round `first` is in, and for how many of `count` rounds it can be used.

        None after an interrupt while it is waited for.

        Raises:
          Exception: what the source raises, and what is refused of what it reads.
        """
        ready = self._here
        if ready is None or not ready.planned.first <= first < ready.planned.end:
            self._here = None
            if self._next is None:
                self._next = self._begin(first)
            while not wait([self._next], timeout=_LOOK_SECONDS).done:
                if is_interrupted():
                    return None
            ready, self._next = self._next.result(), None
            self._here = ready
            if ready.planned.end < self._experiment.num_rounds:
                self._next = self._begin(ready.planned.end)
        return ready.window, min(count, ready.planned.end - first)

    def _begin(self, first: int) -> "Future[_Ready]":
        """Begins to read the window of the rounds from `first` on, in a thread.

        What is drawn is drawn here, before the rounds at hand are: on an accelerator it would wait
        for them.
        """
        planned = self._cohorts.plan(first, self.capacity, self.most_clients)
        future: Future[_Ready] = Future()

        def read() -> None:
            try:
                with jax.enable_x64(self._has_64_bits), jax.numpy_dtype_promotion(self._promotion):
                    future.set_result(_Ready(planned, self._read(planned)))
            except BaseException as error:  # raised again where the window is asked for
                future.set_exception(error)

        # A daemon thread, so that a second signal ends the process without waiting for a disk.
        self._thread = threading.Thread(target=read, name="fedjax-sim-window", daemon=True)
        self._thread.start()
        return future

    def _read(self, planned: Planned) -> Window:
        ids, sizes = planned.client_ids, np.asarray(self._source.num_examples)
        columns = read_rows(self._source, ids, self.capacity)
        check = self._experiment.algorithm.check
        if check is not None and planned.num_examples:  # as `fs.init` does of data in memory
            check(self._params, jax.tree.map(lambda x: x[: planned.num_examples], columns))
        offsets = np.zeros(len(sizes), np.int32)
        offsets[ids] = np.cumsum(sizes[ids]) - sizes[ids]
        held = np.zeros(len(sizes), bool)
        held[ids] = True
        dtypes = jax.tree.map(lambda x: x.dtype, self._whole.examples)
        columns = jax.tree.map(lambda x, dtype: x.astype(dtype, copy=False), columns, dtypes)
        window = Window(columns, offsets, held)
        if self._mesh is not None:
            return spread(window, self._mesh)  # in a thread, where none waits for another process
        return jax.device_put(window, self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        is_at_once = kind is not None and issubclass(kind, KeyboardInterrupt)
        if self._thread is not None and not is_at_once:
            self._thread.join()
