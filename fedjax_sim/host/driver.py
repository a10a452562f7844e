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
from fedjax_sim.core.interrupted import InterruptedRun
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.execution.placing import placed
from fedjax_sim.host.checkpoints import Checkpoints, flatten, load_together, unflatten
from fedjax_sim.host.processes import ALONE, Processes
from fedjax_sim.host.program import Program

_CHUNK_SECONDS = 1.0  # between two looks at the signals
# The first round of a program also loads its code and touches its memory for the first time,
# some ten milliseconds: a first chunk shorter than this says nothing of the pace.
WARM_SECONDS = 1.0
_SAVE_SHARE = 0.02  # of the time, at most, goes into checkpoints that nobody asked for
_SAVE_SECONDS = 15.0  # the least time between two of those


class Progress(NamedTuple):
    """What is told after each chunk of rounds.

    Attributes:
      round: rounds done.
      num_rounds: R.
      rounds_per_second: of this chunk.
      client_steps_per_second: of this chunk; 0 if its outputs do not say.
      seconds_left: at this pace; NaN while no pace is known, after a first chunk that was short.
      metrics: name -> the latest value of each scalar.
    """

    round: int
    num_rounds: int
    rounds_per_second: float
    client_steps_per_second: float
    seconds_left: float
    metrics: dict[str, float]


class Interrupt:
    """SIGINT and SIGTERM ask for an end after the rounds at hand; a second one insists.

    An exception in the middle of an XLA call would leave it running while Python ends. Signals
    reach the main thread alone; elsewhere this changes nothing.
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
            raise KeyboardInterrupt
        self.receive(signal.Signals(number).name)

    def receive(self, name: str) -> None:
        """Asks for an end, as the signal of that name does; another process may have had it."""
        self.received = name
        outer = getattr(self._before.get(signal.Signals[name]), "__self__", None)
        if isinstance(outer, Interrupt):  # what comes next is its business
            outer.received = self.received


class Driven(NamedTuple):
    """What came of it: `history` has numpy leaves, with the rounds done on `rounds_axis`."""

    carry: PyTree
    history: PyTree
    round: int
    status: str  # "finished", "stopped" (by its criterion) or "interrupted"


def drive(
    program: Program,
    inputs: PyTree,
    carry: PyTree,
    interrupt: Interrupt,
    on_chunk: Callable[[int, PyTree, float], None],
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int | None = None,
    as_it_were: Callable[[PyTree], PyTree] | None = None,
    inputs_of: Callable[[int, int], tuple[PyTree, int] | None] | None = None,
    processes: Processes = ALONE,
) -> Driven:
    """Runs a program to its end, from its last checkpoint if there is one.

    Of several processes each drives its own. The writer says how many rounds a chunk has and when
    to save, and it alone saves and calls `on_chunk`; a signal to any of them ends all.

    Args:
      inputs: of the program.
      carry: before round 0; donated.
      interrupt: looked at after each chunk; what is done by then is saved.
      on_chunk: told (rounds before it, its rows, seconds it took) after each chunk, and of
        the rounds that a checkpoint brought back (with 0 seconds). If one of those met the
        stop criterion, no more are done.
      checkpoints: where to save; None for nowhere.
      checkpoint_every: rounds between checkpoints; None for some seconds between them, such
        that they cost little.
      as_it_were: the rows that a checkpoint brought back -> as this program would have made them,
        the same object where nothing differs.
      inputs_of: (first round, rounds at most) -> the program's inputs for so many of them, in the
        place of `inputs`; None after an interrupt while they were waited for.
      processes: those that the program runs on.

    Raises:
      SaveError: if a checkpoint cannot be written.
      InterruptedRun: for what `on_chunk` or `inputs_of` raises, once what was computed until then
        is saved. Of either error, `partial` is what was computed, a `Driven`.
    """
    axis = program.rounds_axis
    buffers, done, stopped = program.buffers(), 0, False
    remembered = program.remembered()
    rows: list[PyTree] = []
    saved = load_together(checkpoints, processes) if checkpoints is not None else None
    if saved is not None:
        done, stopped = saved.number, saved.facts["stopped"]
        same = saved.facts.get("criterion", "") == program.criterion
        carry = _put_like(unflatten("carry", carry, saved.arrays), carry)

        def so_far(x: Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*x.shape[:axis], done, *x.shape[axis + 1 :]), x.dtype)

        there = unflatten("history", jax.tree.map(so_far, buffers), saved.arrays)
        rows.append(there if as_it_were is None else as_it_were(there))
        if same and rows[0] is there:
            again = unflatten("stop", remembered, saved.arrays)
        else:  # of another criterion, or of rows that it had not seen so
            again, met = program.replay(rows[0])
            stopped = bool(np.any(met))
        remembered = _put_like(again, remembered)
    last_save, cost = time.perf_counter(), 0.0
    last_number, pace = done, 0.0

    def driven() -> Driven:
        if not rows:
            rows.append(jax.tree.map(lambda x: _cut(x, axis, 0), buffers))
        whole = jax.tree.map(lambda *xs: np.concatenate(xs, axis=axis), *rows)
        rows[:] = [whole]
        through = "finished" if done == program.num_rounds else "interrupted"
        here = processes.own_copy(carry)
        return Driven(here, whole, done, "stopped" if stopped else through)

    def save() -> None:
        nonlocal last_save, last_number, cost
        if checkpoints is None or done == last_number:
            return
        began = time.perf_counter()
        here, number, folder = driven(), done, checkpoints
        facts = {"stopped": stopped, "criterion": program.criterion}

        def write() -> None:
            arrays = flatten("carry", here.carry) | flatten("history", here.history)
            arrays |= flatten("stop", processes.own_copy(remembered))
            folder.save(number, arrays, facts)

        try:
            processes.by_writer(write)
        except SaveError as error:
            error.partial = here
            raise
        last_save, last_number = time.perf_counter(), done
        cost = last_save - began

    def tell(first: int, seconds: float) -> None:
        try:
            with processes.together():
                if processes.is_writer:
                    on_chunk(first, rows[-1], seconds)
        except Exception as error:  # whatever it is, it costs no round
            save()
            told = InterruptedRun(f"a round was not told of: {error!r}")
            raise told.holding(driven()) from error

    def next_inputs(
        inputs_of: Callable[[int, int], tuple[PyTree, int] | None], count: int
    ) -> tuple[PyTree, int] | None:
        given = None
        try:
            with processes.together():
                given = inputs_of(done, count)
        except Exception as error:
            save()
            unread = InterruptedRun(f"the inputs of round {done + 1} were not read: {error!r}")
            raise unread.holding(driven()) from error
        name = interrupt.received if given is None else None
        return None if heard(processes.gather(name)) else given

    def heard(signals: list[str | None]) -> bool:
        """Whether a signal has reached any of the processes, of which this one then knows."""
        received = [name for name in signals if name is not None]
        if received and interrupt.received is None:
            interrupt.receive(received[0])
        return bool(received)

    def rounds_ahead() -> int:
        """Of the next chunk; 0 at the end, or once a signal has reached any of the processes."""
        count = 0
        if done < program.num_rounds and not stopped:
            count = max(1, min(program.capacity, int(_CHUNK_SECONDS / pace))) if pace else 1
            count = min(count, program.num_rounds - done)
            if checkpoint_every is not None:
                count = min(count, checkpoint_every - done % checkpoint_every)
        plans = processes.gather((count, interrupt.received))
        return 0 if heard([received for _, received in plans]) else plans[0][0]

    if rows:
        tell(0, 0.0)
    while count := rounds_ahead():
        start = time.perf_counter()
        if inputs_of is not None:
            given = next_inputs(inputs_of, count)
            if given is None:
                break
            inputs, count = given
        carry, remembered, buffers, took, ended = program.advance(
            inputs, carry, remembered, buffers, done, count
        )
        count, stopped = int(took), bool(ended)
        seconds = time.perf_counter() - start
        rows.append(jax.tree.map(lambda x, n=count: _cut(x, axis, n), buffers))
        first, done = done, done + count
        pace = max(seconds / count, 1e-6)
        tell(first, seconds)
        since = time.perf_counter() - last_save
        due = since > max(_SAVE_SECONDS, cost / _SAVE_SHARE)
        if checkpoint_every is not None:
            due = done % checkpoint_every == 0
        if processes.agree(due):
            save()
    save()
    return driven()


def history_of(checkpoints: Checkpoints, row: PyTree) -> PyTree:
    """The rounds of the last whole checkpoint, leaves [done, ...]; none if there is none.

    Args:
      row: the shapes of one round's, of a program without an axis over devices.
    """
    saved = checkpoints.load()
    done, arrays = (0, None) if saved is None else (saved.number, saved.arrays)
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((done, *x.shape), x.dtype), row)
    if arrays is None:
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), rows)
    return unflatten("history", rows, arrays)


def _put_like(tree: PyTree, like: PyTree) -> PyTree:
    """The leaves on the devices of those of `like`."""
    return jax.tree.map(lambda x, y: placed(x, y.sharding), tree, like)


def _cut(x: Array, axis: int, count: int) -> np.ndarray:
    """The first rounds of a buffer, copied: the buffer itself is donated next."""
    return np.array(np.asarray(x)[(slice(None),) * axis + (slice(0, count),)])


def span_of(seconds: float) -> str:
    """A time in words.

    >>> span_of(61.3), span_of(600), span_of(9000)
    ('61 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
