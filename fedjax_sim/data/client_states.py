"""The states of K clients on a disk: a row for each that was ever written, and none for others."""

import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.files import SaveError, lock_of, locked, reason
from fedjax_sim.core.types import PyTree

_SNAPSHOTS = 2  # kept ones, whose rows stay as they were
_NOWHERE = -1  # in place of the row of a client that was never written


class ClientStates:
    """What K clients keep between rounds, on a disk: `fs.simulate(client_states="disk")`.

    A client that was never written has the state that all have before they are first picked. The
    file has one row for each of the others, so that it grows with the clients that took part and
    not with K; of a client, memory holds 13 bytes. What a kept snapshot has is never written over:
    a changed state goes to a row that neither of the last two has, and a snapshot is the list of
    rows. So a run that is killed at any moment finds the states of its last checkpoint, of
    which none was copied.

    Rows are read and written, and not mapped, because a disk that is full then says so where a map
    would end the process.
    """

    def __init__(self, path: Path, num_clients: int, first: PyTree) -> None:
        """Opens nothing yet: `begin` or `restore` does.

        Args:
          path: of the file of rows.
          num_clients: K.
          first: NumPy leaves, the state of a client that was never written.
        """
        self.path, self._first = path, first
        leaves, self._structure = jax.tree.flatten(first)
        self._leaves = [np.asarray(x, order="C") for x in leaves]
        self.row_bytes = sum(x.nbytes for x in self._leaves)
        self._row = np.full(num_clients, _NOWHERE, np.int64)
        self._checksum = np.zeros(num_clients, np.uint32)
        # Rows that this process wrote are not compared with their checksums again.
        self._is_unread = np.zeros(num_clients, bool)
        self._compares_each_read = False
        self._end = 0  # rows in the file
        self._kept: list[np.ndarray] = []  # the rows of each kept snapshot
        self._is_kept = np.zeros(0, bool)  # of each row, whether one of them has it
        self._free: list[int] = []

    def __repr__(self) -> str:
        return (
            f"ClientStates({self.num_written} of {len(self._row)} clients written, "
            f"{self.row_bytes} bytes each, {str(self.path)!r})"
        )

    def __len__(self) -> int:
        """K."""
        return len(self._row)

    @property
    def is_written(self) -> np.ndarray:
        """Bool[K]."""
        return self._row != _NOWHERE

    @property
    def num_written(self) -> int:
        """How many clients have a row."""
        return int(np.count_nonzero(self.is_written))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it no other process writes the file.

        Two that go on from one checkpoint would write other clients to the same rows.

        Raises:
          ValueError: if another process writes it.
          SaveError: if the lock cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_saved(error) from error
        refusal = (
            "out must be a folder in which no other run is at work; another one writes "
            f"{self.path}, the clients' states"
        )
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(lock_of(self.path), refusal, or_unlocked=True))
            except OSError as error:
                raise self._not_saved(error) from error
            yield

    def compare_each_read(self) -> None:
        """From now on, the run being through, a row is compared with its checksum whenever it is
        read, because a run that goes on in the folder writes over rows that its checkpoints do not
        need.
        """
        self._compares_each_read = True

    def begin(self) -> None:
        """An empty file, in the place of what is there.

        Raises:
          SaveError: if it cannot be made.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
        except OSError as error:
            raise self._not_saved(error) from error

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes back to what `snapshot` returned.

        Raises:
          ValueError: naming the file, if it is missing or has fewer rows.
        """
        ids = arrays["client_ids"]
        self._row[:] = _NOWHERE
        self._row[ids], self._checksum[ids] = arrays["rows"], arrays["checksums"]
        self._is_unread[ids] = True
        size = self.path.stat().st_size if self.path.exists() else -1
        rows = int(arrays["rows"].max()) + 1 if len(ids) else 0
        if size < rows * self.row_bytes:
            size_text = "is missing" if size < 0 else f"has {size}"
            raise ValueError(
                f"{self.path}, the clients' states, must have at least {rows * self.row_bytes} "
                f"bytes, as the checkpoint says; it {size_text}"
            )
        # Which rows the snapshot before has is not known: all that are there stay for two of them.
        self._end = -(-size // self.row_bytes)
        self._kept, self._free = [np.arange(self._end)], []
        self._is_kept = np.ones(self._end, bool)

    def snapshot(self) -> dict[str, np.ndarray]:
        """The rows as they are, on the disk before this returns: what `restore` takes.

        Raises:
          SaveError: if the disk does not take them.
        """
        try:
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise self._not_saved(error) from error
        ids = np.flatnonzero(self.is_written)
        return {"client_ids": ids, "rows": self._row[ids], "checksums": self._checksum[ids]}

    def keep_snapshot(self) -> None:
        """What `snapshot` returned last is in a checkpoint: its rows stay, and those that only
        older ones than the last two have are free."""
        self._kept = [*self._kept, self._row[self.is_written]][-_SNAPSHOTS:]
        self._is_kept = np.zeros(self._end, bool)
        for rows in self._kept:
            self._is_kept[rows] = True
        is_used = self._is_kept.copy()
        is_used[self._row[self.is_written]] = True
        self._free = np.flatnonzero(~is_used)[::-1].tolist()

    def read(self, client_ids: Any, num_rows: int | None = None) -> PyTree:
        """The states of some clients, NumPy leaves [c, ...].

        Args:
          num_rows: of the leaves, c at least; those behind the clients' are zeros.

        Raises:
          ValueError: for ids out of range, and for a row that is damaged, naming the file.
        """
        ids = self._checked(client_ids)
        count = len(ids) if num_rows is None else num_rows
        columns = [np.zeros((count, *x.shape), x.dtype) for x in self._leaves]
        rows = self._row[ids]
        for column, x in zip(columns, self._leaves, strict=True):
            column[: len(ids)][rows == _NOWHERE] = x
        places = np.flatnonzero(rows != _NOWHERE)
        if len(places):
            with self.path.open("rb", buffering=0) as file:
                for place in places[np.argsort(rows[places])]:
                    self._read_row(file, int(ids[place]), _bytes_at(columns, place))
        return jax.tree.unflatten(self._structure, columns)

    def write(self, client_ids: Any, states: PyTree) -> None:
        """Replaces the states of some clients, each named once.

        Args:
          states: leaves [c, ...].

        Raises:
          SaveError: if the disk does not take them; those of kept snapshots are as they were.
        """
        ids = self._checked(client_ids)
        columns = [np.asarray(x, order="C") for x in jax.tree.leaves(states)]
        try:
            with self.path.open("rb+", buffering=0) as file:
                for place, k in enumerate(ids.tolist()):
                    row, parts = self._place_for(k), _bytes_at(columns, place)
                    _all_written(file, parts, row * self.row_bytes)
                    self._row[k], self._checksum[k] = row, _checksum(parts)
                    self._is_unread[k] = False
        except OSError as error:
            raise self._not_saved(error) from error

    def _place_for(self, client_id: int) -> int:
        """The client's own row, unless a kept snapshot has it: then a free one, or a new one."""
        row = int(self._row[client_id])
        if row != _NOWHERE and not (row < len(self._is_kept) and self._is_kept[row]):
            return row
        if self._free:
            return self._free.pop()
        self._end += 1
        return self._end - 1

    def _read_row(self, file: FileIO, client_id: int, parts: list[memoryview]) -> None:
        place = int(self._row[client_id]) * self.row_bytes
        file.seek(place)
        is_short = sum(file.readinto(part) for part in parts) < self.row_bytes
        is_compared = self._compares_each_read or self._is_unread[client_id]
        if is_short or (is_compared and _checksum(parts) != self._checksum[client_id]):
            perhaps = " (a run that went on in this folder may have replaced it)"
            raise ValueError(
                f"{self.path} is damaged: the state of client {client_id}, bytes {place} to "
                f"{place + self.row_bytes}, is not the one that was saved"
                f"{perhaps if self._compares_each_read else ''}"
            )
        self._is_unread[client_id] = False

    def _checked(self, client_ids: Any) -> np.ndarray:
        ids = np.asarray(client_ids)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"client_ids must be integers in one axis; got {ids.dtype} of shape {ids.shape}"
            )
        if len(ids) and not (ids.min() >= 0 and ids.max() < len(self)):
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise ValueError(f"client_ids must lie in [0, {len(self)}); got {wrong}")
        return ids

    def _not_saved(self, error: OSError) -> SaveError:
        return SaveError(
            f"{self.path}, the clients' states, was not written: {reason(error)}; the states of "
            "the last checkpoint are whole, and a resume goes on from it"
        )


def _bytes_at(columns: list[np.ndarray], place: int) -> list[memoryview]:
    """One client's part of each array, as bytes."""
    own = (x[place : place + 1].reshape(-1) for x in columns)
    return [x.view(np.uint8).data for x in own if x.size]


def _checksum(parts: list[memoryview]) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum


def _all_written(file: FileIO, parts: list[memoryview], place: int) -> None:
    """Writes all bytes: a disk that is nearly full takes some of them and then says so."""
    file.seek(place)
    for part in parts:
        while len(part):
            part = part[file.write(part) :]
