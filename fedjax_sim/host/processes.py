"""The processes of a run: who this one is, who writes, and how all come to do the same.

A run over a mesh of several processes is the same Python program in each of them. What one
computes on the mesh waits for the others, so all must do the same rounds, save at the same round
and end together, an error included. What only one of them knows (the time, a signal, the disk)
passes through here.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_sim.core.files import SaveError, reason
from fedjax_sim.core.interrupted import LostProcessError, SecondSignal
from fedjax_sim.core.types import PyTree
from fedjax_sim.execution.machine import own_devices
from fedjax_sim.execution.placing import gather, of_processes, own_copy

T = TypeVar("T")

_HEAD = 4  # bytes, of the length of a message
_BLOCK = 256  # bytes of a message that is told in one collective; a longer one takes two


class Processes:
    """The one process of a run without others: all that is asked of it is at hand.

    Each method is called by all processes, in the same order; with an error, too, no process waits
    for one that has left.
    """

    indices: Sequence[int] = (0,)  # of the processes of JAX, the writer first
    is_writer = True  # whether this one writes, tells and decides

    def gather(self, value: Any) -> list[Any]:
        """What each process gave, values of JSON; on all of them."""
        return [value]

    def agree(self, value: T) -> T:
        """The writer's value, of JSON, on all of them."""
        decided: T = self.gather(value)[0]
        return decided

    @contextmanager
    def telling(self) -> Iterator[None]:
        """What fails within is raised by the others where they wait next."""
        yield

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails within one process is raised by all, once all are through."""
        with self.telling():
            yield
        self.gather(None)

    def by_writer(self, function: Callable[[], T]) -> T:
        """What the function returns on the writer, of JSON, which alone calls it; all wait."""
        value: Any = None
        with self.telling():
            if self.is_writer:
                value = function()
        decided: T = self.agree(value)
        return decided

    @contextmanager
    def computing(self) -> Iterator[None]:
        """What fails within, on the devices of all of them, may be the end of another process."""
        yield

    def own_copy(self, tree: PyTree) -> PyTree:
        """What lies on all devices of the run, on those of this process."""
        return tree


ALONE = Processes()


class Several(Processes):
    """Those of a mesh; the one of the lowest index writes."""

    def __init__(self, mesh: Mesh) -> None:
        own_devices(mesh)  # which refuses a mesh of others alone
        self.mesh = mesh
        self.processes = of_processes(mesh)
        self.indices = [device.process_index for device in self.processes.devices]
        (mine,) = own_devices(self.processes)
        self.is_writer = mine.process_index == self.indices[0]

    def gather(self, value: Any) -> list[Any]:
        """See `Processes`.

        Raises:
          ValueError, SaveError, RuntimeError: what another one failed with, and its index.
          LostProcessError: if another one is gone.
          TypeError: for what is no value of JSON.
        """
        with self.telling():
            message = _encoded({"value": value})
        try:
            answers = self._exchange(message)
        except Exception as error:  # whatever the platform's collectives raise
            raise LostProcessError(
                "another process of the run is gone or cannot be reached; what is saved can be "
                f"resumed by all: {reason(error)}"
            ) from error
        for index, answer in zip(self.indices, answers, strict=True):
            if "failed" in answer:
                raise _ERRORS[answer["kind"]](f"process {index}: {answer['failed']}")
        return [answer["value"] for answer in answers]

    @contextmanager
    def telling(self) -> Iterator[None]:
        """See `Processes`."""
        try:
            yield
        except SecondSignal:
            raise  # which waits for nobody
        except BaseException as error:
            kinds = (name for name, kind in _ERRORS.items() if isinstance(error, kind))
            kind = next(kinds, None)
            says = repr(error) if kind is None else str(error)
            # The error at hand is the one to raise, be the others there to hear of it or not.
            with suppress(Exception):
                self._exchange(_encoded({"failed": says, "kind": kind or "RuntimeError"}))
            raise

    @contextmanager
    def computing(self) -> Iterator[None]:
        """See `Processes`.

        Raises:
          LostProcessError: for whatever the platform fails with.
        """
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            raise LostProcessError(
                "a round failed on the devices of several processes, as when one of them is gone; "
                f"what is saved can be resumed by all: {reason(error)}"
            ) from error

    def own_copy(self, tree: PyTree) -> PyTree:
        """See `Processes`."""
        return own_copy(tree, self.mesh)

    def _exchange(self, message: bytes) -> list[dict[str, Any]]:
        """The messages of all."""
        text = np.frombuffer(message, np.uint8)
        head = np.zeros(_BLOCK, np.uint8)
        head[:_HEAD] = np.frombuffer(len(text).to_bytes(_HEAD, "big"), np.uint8)
        first_part = text[: _BLOCK - _HEAD]
        head[_HEAD : _HEAD + len(first_part)] = first_part
        heads = gather(head, self.processes)
        lengths = [int.from_bytes(bytes(x[:_HEAD]), "big") for x in heads]
        parts = heads[:, _HEAD:]
        if max(lengths) > _BLOCK - _HEAD:
            # All have one length, a power of two, so that only a few lengths are compiled.
            padded = np.zeros(1 << (max(lengths) - 1).bit_length(), np.uint8)
            padded[: len(text)] = text
            parts = gather(padded, self.processes)
        return [json.loads(bytes(x[:n])) for x, n in zip(parts, lengths, strict=True)]


def _encoded(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()


# How an error of another process is raised here: as its own kind where callers look for that.
_ERRORS: dict[str, type[Exception]] = {
    "SaveError": SaveError,
    "ValueError": ValueError,
    "RuntimeError": RuntimeError,
}


def processes_of(mesh: Mesh | None) -> Processes:
    """Those that a run on a mesh has; `ALONE` without one, or if all its devices are this one's.

    Raises:
      ValueError: if this process has no device of the mesh.
    """
    if mesh is None or len(own_devices(mesh)) == mesh.size:
        return ALONE
    return Several(mesh)
