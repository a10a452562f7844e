"""Rounds driven from the host: compiled chunks, checkpoints, signals, progress."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim.core.files import SaveError
from fedjax_sim.core.interrupted import InterruptedRun, SecondSignal
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.execution.placing import placed
from fedjax_sim.host.checkpoints import Checkpoints, flatten, load_together, unflatten
from fedjax_sim.host.held_states import StatesOnDisk
from fedjax_sim.host.processes import ALONE, Processes
from fedjax_sim.host.program import Program

_CHUNK_SECONDS = 1.0  # that a chunk is to take: signals are looked at after each
# The first round of a program also loads its code and touches its memory for the first time,
# some ten milliseconds: a first chunk shorter than this says nothing of the pace.
WARM_SECONDS = 1.0
# Without `checkpoint_every`, checkpoints take at most this share of the time...
_SAVE_SHARE = 0.02
_SAVE_SECONDS = 15.0  # ...and there are at least so many seconds between two of them.


class Progress(NamedTuple):
    """What `on_progress` is called with after each chunk of rounds.

    Attributes:
      round: rounds done.
      num_rounds: R.
      rounds_per_second: of this chunk.
      client_steps_per_second: of this chunk; 0 if the rounds do not count steps.
      seconds_left: at the pace of this chunk; NaN after a short first chunk, which tells no pace.
      metrics: name -> the latest value of each scalar.
    """

    round: int
    num_rounds: int
    rounds_per_second: float
    client_steps_per_second: float
    seconds_left: float
    metrics: dict[str, float]


class Interrupt:
    """Within it, SIGINT or SIGTERM ends a run after the chunk of rounds that is being computed.

    A second signal raises `SecondSignal` at once. The first does not, because an exception in
    the middle of an XLA call would leave that running while Python ends. Python delivers signals
    to the main thread only; in another thread this does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise SecondSignal
        self.receive(signal.Signals(number).name)

    def receive(self, name: str) -> None:
        """Ends the run as the named signal does, which perhaps another process received."""
        self.received = name
        outer = getattr(self._before.get(signal.Signals[name]), "__self__", None)
        if isinstance(outer, Interrupt):  # which ends, too: this run is part of it
            outer.received = self.received


class Driven(NamedTuple):
    """The rounds that were done: `history` has numpy leaves, with rounds on `rounds_axis`."""

    carry: PyTree
    history: PyTree
    round: int
    status: str  # "finished", "stopped" (by its criterion) or "interrupted"


def drive(
    program: Program,
    inputs: PyTree,
    carry: PyTree,
    *,
    interrupt: Interrupt,
    on_chunk: Callable[[int, PyTree, float], None],
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int | None = None,
    rows_as_now: Callable[[PyTree], PyTree] | None = None,
    inputs_of: Callable[[int, int], tuple[PyTree, int] | None] | None = None,
    processes: Processes = ALONE,
    states: StatesOnDisk | None = None,
) -> Driven:
    """Runs a program to its end, from its last checkpoint if there is one.

    Of several processes, each drives its own copy of the program. The writer decides how many
    rounds a chunk has and when to save, and it alone saves and calls `on_chunk`. A signal to any
    process ends all of them.

    Args:
      inputs: of the program.
      carry: before round 0; donated.
      interrupt: looked at after each chunk; the rounds done until then are saved.
      on_chunk: called with (rounds before the chunk, its rows, seconds that it took) after each
        chunk; also for the rounds of the checkpoint (with 0 seconds). If one of those met the
        stop criterion, no more are done.
      checkpoints: where to save; None for nowhere.
      checkpoint_every: rounds between checkpoints; None for some seconds between them, such
        that they cost little.
      rows_as_now: rows of the checkpoint -> the rows that this program would have computed; the
        same object where nothing differs.
      inputs_of: (first round, rounds at most) -> (the program's inputs for the next rounds, in
        place of `inputs`; how many rounds they are for); None if a signal came in the meantime.
      processes: those that the program runs on.
      states: of clients, which are on a disk; those of the rounds at hand are part of the carry.

    Raises:
      SaveError: if a checkpoint, or clients' states, cannot be written.
      InterruptedRun: for what `on_chunk` or `inputs_of` raises, once the rounds done are saved.
        Of either error, `partial` is the rounds done, a `Driven`.
      LostProcessError: (a RuntimeError) if another process is gone; the rounds since the last
        checkpoint are lost.
      KeyboardInterrupt, SystemExit: that `on_chunk` raises, likewise; to the other processes it is
        an `InterruptedRun`.
    """
    axis = program.rounds_axis
    buffers, rounds_done, stopped = program.buffers(), 0, False
    remembered = program.remembered()
    rows: list[PyTree] = []
    saved = load_together(checkpoints, processes) if checkpoints is not None else None
    if saved is not None:
        rounds_done, stopped = saved.number, saved.facts["stopped"]
        same_criterion = saved.facts.get("criterion", "") == program.criterion
        if states is None:
            carry = _put_like(unflatten("carry", carry, saved.arrays), carry)

        def saved_shape(x: Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(
                (*x.shape[:axis], rounds_done, *x.shape[axis + 1 :]), x.dtype
            )

        saved_rows = unflatten("history", jax.tree.map(saved_shape, buffers), saved.arrays)
        rows.append(saved_rows if rows_as_now is None else rows_as_now(saved_rows))
        if same_criterion and rows[0] is saved_rows:
            memory = unflatten("stop", remembered, saved.arrays)
        else:  # the criterion is another one, or saw other rows
            memory, met = program.replay(rows[0])
            stopped = bool(np.any(met))
        remembered = _put_like(memory, remembered)
    if states is not None:
        with_saved = states.begin(None if saved is None else saved.arrays, carry, rounds_done)
        carry = _put_like(with_saved, carry)
    last_save, cost = time.perf_counter(), 0.0
    last_number, pace = rounds_done, 0.0

    def driven() -> Driven:
        if not rows:
            rows.append(jax.tree.map(lambda x: _cut(x, axis, 0), buffers))
        whole = jax.tree.map(lambda *xs: np.concatenate(xs, axis=axis), *rows)
        rows[:] = [whole]
        through = "finished" if rounds_done == program.num_rounds else "interrupted"
        own_carry = processes.own_copy(carry)
        return Driven(own_carry, whole, rounds_done, "stopped" if stopped else through)

    def save() -> None:
        nonlocal last_save, last_number, cost
        if checkpoints is None or rounds_done == last_number:
            return
        began = time.perf_counter()
        driven_until_now, number, folder = driven(), rounds_done, checkpoints
        facts = {"stopped": stopped, "criterion": program.criterion}

        def write() -> None:
            saved_carry = driven_until_now.carry
            if states is None:
                arrays = flatten("carry", saved_carry)
            else:
                arrays = states.arrays(saved_carry, number)
            arrays |= flatten("history", driven_until_now.history)
            arrays |= flatten("stop", processes.own_copy(remembered))
            folder.save(number, arrays, facts)
            if states is not None:
                states.on_disk.keep_snapshot()

        try:
            processes.by_writer(write)
        except SaveError as error:
            error.partial = driven_until_now
            raise
        last_save, last_number = time.perf_counter(), rounds_done
        cost = last_save - began

    def tell(first: int, seconds: float) -> None:
        try:
            with processes.together():
                if processes.is_writer:
                    on_chunk(first, rows[-1], seconds)
        except SecondSignal:
            raise
        except BaseException as error:  # the rounds done are saved, by all, whatever it is
            save()
            if not isinstance(error, Exception):
                raise  # a KeyboardInterrupt or an exit, which callers look for as it is
            interrupted = InterruptedRun(f"a round was not told of: {error!r}")
            raise interrupted.holding(driven()) from error

    def next_inputs(
        inputs_of: Callable[[int, int], tuple[PyTree, int] | None], count: int
    ) -> tuple[PyTree, int] | None:
        nonlocal carry
        window = None
        try:
            with processes.together():
                window = inputs_of(rounds_done, count)
                if window is not None and states is not None:
                    carry = states.renewed(carry, rounds_done)
        except Exception as error:
            save()
            unread = InterruptedRun(
                f"the inputs of round {rounds_done + 1} were not read: {error!r}"
            )
            raise unread.holding(driven()) from error
        name = interrupt.received if window is None else None
        return None if heard(processes.gather(name)) else window

    def heard(signals: list[str | None]) -> bool:
        """Whether a signal reached any of the processes; this one then counts as interrupted."""
        received = [name for name in signals if name is not None]
        if received and interrupt.received is None:
            interrupt.receive(received[0])
        return bool(received)

    def rounds_ahead() -> int:
        """The rounds of the next chunk; 0 at the end, or once a signal reached any process."""
        count = 0
        if rounds_done < program.num_rounds and not stopped:
            count = max(1, min(program.capacity, int(_CHUNK_SECONDS / pace))) if pace else 1
            count = min(count, program.num_rounds - rounds_done)
            if checkpoint_every is not None:
                count = min(count, checkpoint_every - rounds_done % checkpoint_every)
        plans = processes.gather((count, interrupt.received))
        return 0 if heard([received for _, received in plans]) else plans[0][0]

    if rows:
        tell(0, 0.0)
    # Before and after each turn, on every process: `carry` and `remembered` are those after
    # `rounds_done` rounds, `rows` are the outputs of exactly these rounds, `on_chunk` was called
    # for all of them, and a checkpoint holds the first `last_number` of them.
    while count := rounds_ahead():
        start = time.perf_counter()
        if inputs_of is not None:
            window = next_inputs(inputs_of, count)
            if window is None:
                break
            inputs, count = window
        with processes.computing():
            carry, remembered, buffers, count_done, ended = program.advance(
                inputs, carry, remembered, buffers, rounds_done, count
            )
            count, stopped = int(count_done), bool(ended)
        seconds = time.perf_counter() - start
        rows.append(jax.tree.map(lambda x, n=count: _cut(x, axis, n), buffers))
        first, rounds_done = rounds_done, rounds_done + count
        pace = max(seconds / count, 1e-6)
        tell(first, seconds)
        since = time.perf_counter() - last_save
        due = since > max(_SAVE_SECONDS, cost / _SAVE_SHARE)
        if checkpoint_every is not None:
            due = rounds_done % checkpoint_every == 0
        if processes.agree(due):
            save()
    save()
    return driven()


def history_of(checkpoints: Checkpoints, row: PyTree) -> PyTree:
    """The rounds of the last undamaged checkpoint, leaves [rounds done, ...]; 0 if there is none.

    Args:
      row: the shapes of one round's outputs, of a program without an axis over devices.
    """
    saved = checkpoints.load()
    rounds_done, arrays = (0, None) if saved is None else (saved.number, saved.arrays)
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rounds_done, *x.shape), x.dtype), row)
    if arrays is None:
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), rows)
    return unflatten("history", rows, arrays)


def _put_like(tree: PyTree, like: PyTree) -> PyTree:
    """The tree, with each leaf placed on the devices where that of `like` is."""
    return jax.tree.map(lambda x, y: placed(x, y.sharding), tree, like)


def _cut(x: Array, axis: int, count: int) -> np.ndarray:
    """The first rounds of a buffer, copied: the buffer itself is donated next."""
    return np.array(np.asarray(x)[(slice(None),) * axis + (slice(0, count),)])
