"""One data set from the files of its clients."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.datasets.types import Dataset

Examples = tuple[np.ndarray, np.ndarray]  # x[n, ...], y[n, ...]


def joined(train: Mapping[str, Examples], test: Mapping[str, Examples]) -> Dataset:
    """Clients in the order of `train`; floats as Float32, whole numbers as Int32, labels counted.

    Images x, UInt8[n, height, width] or with channels, become Float32[n, height, width, channels]
    in [0, 1].

    Raises:
      ValueError: if there are no examples, a client's x and y differ in number, or clients in
        shape, or train and test and their clients in whether images are of bytes.
    """
    parts, classes = [], []
    for said, clients in (("train", train), ("test", test)):
        if not any(len(y) for _, y in clients.values()):
            raise ValueError(f"{said} must hold at least one example; got none")
        for client, (x, y) in clients.items():
            if not x.ndim or not y.ndim:
                raise ValueError(f"client {client} of {said} must have arrays; got a number")
            if len(x) != len(y):
                raise ValueError(
                    f"client {client} of {said} must have an x for each y; got {len(x)} and "
                    f"{len(y)}"
                )
        parts.append({name: _column(clients, i, said) for i, name in enumerate("xy")})
        classes.append(parts[-1]["y"])
    images = [x for part in (train, test) for x, _ in part.values() if x.ndim > 2 and len(x)]
    if len({_are_bytes(x) for x in images}) > 1:
        types = sorted({str(x.dtype) for x in images})
        raise ValueError(
            f"images must be of bytes everywhere, or nowhere; got {' and '.join(types)}"
        )
    for name in "xy":
        one, other = (f"{p[name].dtype}{list(p[name].shape[1:])}" for p in parts)
        if one != other:
            raise ValueError(f"{name} must be alike in train and test; got {one} and {other}")
    whole = np.issubdtype(classes[0].dtype, np.integer)
    if whole and min(int(y.min()) for y in classes) < 0:
        raise ValueError("y must be labels from 0 up; got a negative one")
    return Dataset(
        train=parts[0],
        test=parts[1],
        num_classes=1 + max(int(y.max()) for y in classes) if whole else None,
        client_ids=np.repeat(
            np.arange(len(train), dtype=np.int32), [len(y) for _, y in train.values()]
        ),
    )


def _are_bytes(x: np.ndarray) -> bool:
    """Images of bytes, to be scaled."""
    return x.dtype == np.uint8 and x.ndim > 2


def _column(clients: Mapping[str, Examples], i: int, said: str) -> np.ndarray:
    some = {client: pair[i] for client, pair in clients.items() if len(pair[i])}
    first = next(iter(some.values()))
    for client, array in some.items():
        if array.dtype.kind not in "fiub":
            raise ValueError(f"client {client} of {said} must have numbers; got {array.dtype}")
        if array.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"clients of {said} must have examples of one shape; got {list(array.shape[1:])} "
                f"of client {client}, and {list(first.shape[1:])}"
            )
    column = np.concatenate(list(some.values()))
    if "xy"[i] == "x" and _are_bytes(column):
        column = column.astype(np.float32) / np.float32(255)
        return column[..., None] if column.ndim == 3 else column
    if column.dtype.kind == "f":
        return column.astype(np.float32)
    if int(column.max()) > np.iinfo(np.int32).max or int(column.min()) < np.iinfo(np.int32).min:
        raise ValueError(f"{said} must hold whole numbers of 32 bits; got {column.max()}")
    return column.astype(np.int32)


def halves(path: Any, ending: str) -> tuple[list[Path], list[Path]]:
    """The files of `path`/train and of `path`/test, by name.

    Raises:
      FileNotFoundError: if there are none.
    """
    found = []
    for part in ("train", "test"):
        folder = Path(path).expanduser() / part
        files = sorted(folder.glob(f"*{ending}"))
        if not files:
            raise FileNotFoundError(
                f"path must be a folder with {ending} files in train/ and in test/; got {path}, "
                f"without any in {part}/"
            )
        found.append(files)
    return found[0], found[1]
