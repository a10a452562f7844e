"""Federations in SQLite, as FedJAX keeps EMNIST and CIFAR-100."""

import os
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.datasets.files import Pair, pair
from fedjax_sim.datasets.formats.by_client import Examples, check_task, joined, with_channel
from fedjax_sim.datasets.types import Dataset

_TABLE = "federated_data"
_COLUMNS = "client_id, data, num_examples"


def sqlite(
    path: str | os.PathLike[str] | Pair,
    x: str = "pixels",
    y: str = "label",
    *,
    task: str | None = None,
) -> Dataset:
    """A federation in FedJAX's two SQLite files (Ro et al. 2021, arXiv 2108.02117).

    Each has a table `federated_data(client_id, data, num_examples)`; a client's data are a
    dictionary of arrays in msgpack, compressed by zlib. Clients in the table's order, which is
    FedJAX's, named by their client_id.

    EMNIST's x is Float32[N, 28, 28, 1] in [0, 1], where the background is 1, not 0 as in `mnist`
    (FedJAX's own `load_data` takes 1 - x). Images [N, height, width] are given one channel, and
    UInt8 ones are divided by 255. Text (Shakespeare, Stack Overflow) is not read.

    Args:
      path: a folder with one `*train*.sqlite` and one `*test*.sqlite`, or the two files:
        ("federated_emnist_train.sqlite", "federated_emnist_test.sqlite").
      x, y: what a client's arrays are called: of CIFAR-100 "image" and "label".
      task: "classification" or "regression"; None: labels if every y is a whole number, be it
        written as a float, else a regression.

    Raises:
      FileNotFoundError: if the files are not there.
      ValueError: if there are several such files, or one is not of that form, or y not of the
        task.
    """
    check_task(task)
    parts = []
    for file in pair(path, ".sqlite"):
        clients: dict[str, Examples] = {}
        for client_id, record, count in _rows(file):
            client = _text(client_id)
            if client in clients:
                raise ValueError(f"{file} holds client {client} twice")
            where = f"{file}, client {client},"
            arrays = _arrays(record, where)
            inputs, targets = (_array(arrays, name, where) for name in (x, y))
            if len(targets) != count:
                raise ValueError(f"{where} must have {count} examples; got {len(targets)} {y}")
            clients[client] = (with_channel(inputs), targets)
        parts.append(clients)
    return joined(*parts, task=task)


def _rows(file: Path) -> Iterator[tuple[Any, Any, Any]]:
    """The clients' rows, in their order."""
    try:
        import sqlite3
    except ImportError:
        raise ImportError("sqlite needs sqlite3, which this Python was built without") from None
    tables: list[str] = []
    try:
        address = f"{file.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as connection:
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = [name for (name,) in rows]
            yield from connection.execute(f"SELECT {_COLUMNS} FROM {_TABLE} ORDER BY rowid")
    except sqlite3.Error as error:
        hint = f"; its tables are {', '.join(tables)}" if tables else ""
        raise ValueError(
            f"{file} must be FedJAX's SQLite, with a table {_TABLE}({_COLUMNS}): {error}{hint}"
        ) from None


def _text(client_id: Any) -> str:
    if isinstance(client_id, bytes):
        return client_id.decode(errors="backslashreplace")
    return str(client_id)


def _arrays(record: Any, where: str) -> dict[str, Any]:
    """A client's arrays by name."""
    from flax.serialization import msgpack_restore  # its form of arrays is the one FedJAX took over

    try:
        arrays = msgpack_restore(zlib.decompress(record))
    except (zlib.error, ValueError, TypeError, KeyError, AssertionError) as error:
        raise ValueError(
            f"{where} must be a dictionary of arrays in msgpack, compressed by zlib: {error}"
        ) from None
    if not isinstance(arrays, dict):
        raise ValueError(f"{where} must be a dictionary of arrays; got {type(arrays).__name__}")
    return arrays


def _array(arrays: dict[str, Any], name: str, where: str) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"{where} must have an array {name}; got {', '.join(map(str, arrays))}")
    array = arrays[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(
            f"{where} must have numbers in {name}; got text or the like, which is not read: make "
            "numbers of it, write one .npz a client, of x and y, and read them with "
            "fs.datasets.npz"
        )
    return array
