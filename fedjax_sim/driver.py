"""Rounds driven from the host: compiled chunks, checkpoints, signals, progress.

What is driven is a `Program`: one compiled function that does any number of rounds up to the
capacity of its buffers. One function for every chunk, so that no result depends on where the
chunks, an interrupt or a checkpoint cut a run.
"""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_sim.base import Array, PyTree
from fedjax_sim.checkpoint import Checkpoints, flatten, unflatten
from fedjax_sim.execution import replicate

_CHUNK_SECONDS = 1.0  # between two looks at the signals
# The first round of a program also loads its code and touches its memory for the first time,
# some ten milliseconds: a first chunk shorter than this says nothing of the pace.
WARM_SECONDS = 1.0
_SAVE_SHARE = 0.02  # of the time, at most, goes into checkpoints that nobody asked for
_SAVE_SECONDS = 15.0  # the least time between two of those
CAPACITY = 512  # rounds a chunk, at most


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
        self.received = signal.Signals(number).name
        outer = getattr(self._before[signal.Signals(number)], "__self__", None)
        if isinstance(outer, Interrupt):  # what comes next is its business
            outer.received = self.received


class Program(NamedTuple):
    """R rounds, some at a call.

    Attributes:
      num_rounds: R.
      advance: (inputs, carry, buffers, first, count) -> (carry, buffers, done, stopped);
        compiled, with carry and buffers donated.
      buffers: () -> zeros, leaves [..., capacity, ...] with the rounds on `rounds_axis`.
      has_met: rows of rounds done -> whether one of them met the stop criterion.
      capacity: rounds of a call, at most.
      rounds_axis: 0, or 1 behind an axis over devices.
      memory: bytes that a call holds, beside what `step` closes over.
    """

    num_rounds: int
    advance: Callable[..., tuple[PyTree, PyTree, Array, Array]]
    buffers: Callable[[], PyTree]
    has_met: Callable[[PyTree], bool]
    capacity: int
    rounds_axis: int
    memory: int


class Driven(NamedTuple):
    """What came of it: `history` has numpy leaves, with the rounds done on `rounds_axis`."""

    carry: PyTree
    history: PyTree
    round: int
    status: str  # "finished", "stopped" (by its criterion) or "interrupted"


def compile_program(
    step: Callable[[PyTree, Array, PyTree], tuple[PyTree, PyTree]],
    inputs: PyTree,
    carry: PyTree,
    num_rounds: int,
    mesh: Mesh | None = None,
    stop: Callable[[PyTree], Array] | None = None,
    place: Mesh | None = None,
) -> Program:
    """`step(inputs, round, carry) -> (carry, outputs)` as a program of R rounds.

    Arrays that `step` closes over become arguments of the compiled function: as constants they
    would be copied into it, and folded.

    Args:
      inputs: read by every step; any of the same shapes can be given to `advance`.
      carry: as before round 0, on the devices where it is to be.
      mesh: of one axis: leaves of inputs and carry then have a leading axis over its devices,
        each of which does its own.
      stop: outputs of a round -> Bool[], whether the run ends behind it; without a mesh alone.
      place: a mesh on which step's own arrays are placed, for a step that is itself sharded.
    """
    capacity = min(num_rounds, CAPACITY)

    def own(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x[0], tree) if mesh is not None else tree

    shapes = jax.eval_shape(lambda *trees: tuple(map(own, trees)), inputs, carry)
    closed, (_, out) = jax.make_jaxpr(step, return_shape=True)(shapes[0], jnp.int32(0), shapes[1])
    structure = jax.tree.structure((shapes[1], out))
    consts = list(closed.consts)
    if (everywhere := mesh or place) is not None:
        consts = replicate(consts, everywhere)

    def call(consts: list[Array], *arguments: PyTree) -> tuple[PyTree, PyTree]:
        flat = jaxpr_as_fun(closed.replace(consts=consts))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(structure, flat)

    def chunk(
        consts: list[Array], inputs: PyTree, carry: PyTree, buffers: PyTree, first: Array,
        count: Array,
    ) -> tuple[PyTree, PyTree, Array, Array]:  # fmt: skip
        def body(loop: tuple[Array, Array, PyTree, PyTree]) -> tuple[Array, Array, PyTree, PyTree]:
            i, _, carry, buffers = loop
            carry, row = call(consts, inputs, first + i, carry)
            buffers = jax.tree.map(
                lambda b, x: jax.lax.dynamic_update_index_in_dim(b, x, i, 0), buffers, row
            )
            stopped = jnp.array(False) if stop is None else stop(row)
            return i + 1, stopped, carry, buffers

        def more(loop: tuple[Array, Array, PyTree, PyTree]) -> Array:
            return (loop[0] < count) & ~loop[1]

        done, stopped, carry, buffers = jax.lax.while_loop(
            more, body, (jnp.int32(0), jnp.array(False), carry, buffers)
        )
        return carry, buffers, done, stopped

    devices = 1 if mesh is None else mesh.size
    lead = () if mesh is None else (devices,)
    sharding: Any = None
    whole = chunk
    if mesh is not None:
        (axis,) = mesh.axis_names

        def share(
            consts: Any, inputs: Any, carry: Any, buffers: Any, first: Any, count: Any
        ) -> Any:
            carry, buffers, done, stopped = chunk(
                consts, own(inputs), own(carry), own(buffers), first, count
            )
            return jax.tree.map(lambda x: x[None], (carry, buffers)) + (done, stopped)

        dealt, alike = PartitionSpec(axis), PartitionSpec()
        whole = jax.shard_map(
            share,
            mesh=mesh,
            in_specs=(alike, dealt, dealt, dealt, alike, alike),
            out_specs=(dealt, dealt, alike, alike),
            check_vma=False,
        )
        sharding = NamedSharding(mesh, dealt)
    elif place is not None:
        sharding = NamedSharding(place, PartitionSpec())

    def buffers() -> PyTree:
        def zeros(x: jax.ShapeDtypeStruct) -> Array:
            return jnp.zeros((*lead, capacity, *x.shape), x.dtype, device=sharding)

        return jax.tree.map(zeros, out)

    def has_met(rows: PyTree) -> bool:
        return stop is not None and bool(jnp.any(jax.vmap(stop)(rows)))

    zero, room = np.int32(0), buffers()
    compiled = (
        jax.jit(whole, donate_argnums=(2, 3))
        .lower(consts, inputs, carry, room, zero, zero)
        .compile()
    )
    held = jax.tree.leaves((inputs, carry, room))
    said: Any = compiled.memory_analysis()
    return Program(
        num_rounds=num_rounds,
        advance=lambda inputs, carry, buffers, first, count: compiled(
            consts, inputs, carry, buffers, np.int32(first), np.int32(count)
        ),
        buffers=buffers,
        has_met=has_met,
        capacity=capacity,
        rounds_axis=len(lead),
        # What the compiler says is for one device.
        memory=devices * said.temp_size_in_bytes + sum(x.size * x.dtype.itemsize for x in held),
    )


def drive(
    program: Program,
    inputs: PyTree,
    carry: PyTree,
    interrupt: Interrupt,
    on_chunk: Callable[[int, PyTree, float], None],
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int | None = None,
) -> Driven:
    """Runs a program to its end, from its last checkpoint if there is one.

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

    Raises:
      SaveError: if a checkpoint cannot be written.
      Exception: what `on_chunk` raises, once what was computed until then is saved. On either
        error, `driven` is what was computed.
    """
    axis = program.rounds_axis
    buffers, done, stopped = program.buffers(), 0, False
    rows: list[PyTree] = []
    saved = checkpoints.load() if checkpoints is not None else None
    if saved is not None:
        done, stopped = saved.number, saved.facts["stopped"]
        carry = jax.tree.map(
            lambda x, like: jax.device_put(x, like.sharding),
            unflatten("carry", carry, saved.arrays),
            carry,
        )

        def so_far(x: Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*x.shape[:axis], done, *x.shape[axis + 1 :]), x.dtype)

        rows.append(unflatten("history", jax.tree.map(so_far, buffers), saved.arrays))
        stopped = stopped or program.has_met(rows[0])
    last_save, cost = time.perf_counter(), 0.0
    last_number, pace = done, 0.0

    def driven() -> Driven:
        if not rows:
            rows.append(jax.tree.map(lambda x: _cut(x, axis, 0), buffers))
        whole = jax.tree.map(lambda *xs: np.concatenate(xs, axis=axis), *rows)
        rows[:] = [whole]
        through = "finished" if done == program.num_rounds else "interrupted"
        return Driven(carry, whole, done, "stopped" if stopped else through)

    def save() -> None:
        nonlocal last_save, last_number, cost
        if checkpoints is None or done == last_number:
            return
        began = time.perf_counter()
        here = driven()
        arrays = flatten("carry", here.carry) | flatten("history", here.history)
        try:
            checkpoints.save(done, arrays, {"stopped": stopped})
        except OSError as error:
            error.driven = here  # type: ignore[attr-defined]  # nothing computed is lost
            raise
        last_save, last_number = time.perf_counter(), done
        cost = last_save - began

    def tell(first: int, seconds: float) -> None:
        try:
            on_chunk(first, rows[-1], seconds)
        except Exception as error:  # whatever it is, it costs no round
            save()
            error.driven = driven()  # type: ignore[attr-defined]  # as above
            raise

    if rows:
        tell(0, 0.0)
    while done < program.num_rounds and not stopped and interrupt.received is None:
        count = max(1, min(program.capacity, int(_CHUNK_SECONDS / pace))) if pace else 1
        count = min(count, program.num_rounds - done)
        if checkpoint_every is not None:
            count = min(count, checkpoint_every - done % checkpoint_every)
        start = time.perf_counter()
        carry, buffers, took, ended = program.advance(inputs, carry, buffers, done, count)
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
        if due:
            save()
    save()
    return driven()


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
