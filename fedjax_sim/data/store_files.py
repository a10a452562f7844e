"""The files of a federation on disk: arrays, and the manifest, which has their checksums."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.types import PyTree

FORMAT, VERSION = "fedjax_sim federation", 1
MANIFEST, SIZES, WEIGHTS, NAMES = "manifest.json", "sizes.npy", "weights.npy", "names.json"
_BLOCK = 2**26  # bytes that have a checksum of their own
_BUFFER = 2**20  # bytes that are written at a time, of clients that have less


class Leaf(NamedTuple):
    """One array of the examples.

    Attributes:
      file: its name in the folder.
      path: of the leaf, for messages.
      dtype: of an example.
      shape: of an example.
    """

    file: str
    path: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def stored(self) -> np.dtype:
        """The type in the file: what NumPy does not know, as bfloat16, is there as its bits."""
        is_known = self.dtype.kind in "biufc"
        return self.dtype if is_known else np.dtype(f"u{self.dtype.itemsize}")

    def mapped(self, folder: Path, num_examples: int) -> np.ndarray:
        """Its file as an array [N, ...], of which pages are read as they are looked at.

        Raises:
          ValueError: naming the file, if it is not of this shape.
        """
        path = folder / self.file
        shape = (num_examples, *self.shape)
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise ValueError(f"{path} cannot be read as an array: {error}") from error
        if array.shape != shape or array.dtype != self.stored:
            raise ValueError(
                f"{path} must be {self.stored}{list(shape)}, as {MANIFEST} says; it is "
                f"{array.dtype}{list(array.shape)}"
            )
        return array.view(self.dtype)


class Blocks:
    """The checksums of what is written, SHA-256 of each block of `_BLOCK` bytes."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._hash, self._room = hashlib.sha256(), _BLOCK

    def add(self, data: memoryview) -> None:
        """More bytes, behind those before."""
        while len(data):
            part, data = data[: self._room], data[self._room :]
            self._hash.update(part)
            self._room -= len(part)
            if not self._room:
                self._done.append(self._hash.hexdigest())
                self._hash, self._room = hashlib.sha256(), _BLOCK

    def checksums(self) -> list[str]:
        """Of all blocks so far; the last one may be shorter."""
        return self._done + ([self._hash.hexdigest()] if self._room < _BLOCK else [])


class ArrayFile:
    """An array [N, ...] in a `.npy` file, written row by row while N is not known."""

    def __init__(self, folder: Path, leaf: Leaf) -> None:
        self._leaf, self._rows, self._blocks = leaf, 0, Blocks()
        self._file = (folder / leaf.file).open("wb", buffering=_BUFFER)
        self._write_header()
        self._start = self._file.tell()

    def _write_header(self) -> None:
        shape = (self._rows, *self._leaf.shape)
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(self._leaf.stored),
                "fortran_order": False,
                "shape": shape,
            },
        )

    def add(self, rows: np.ndarray) -> None:
        """Rows [n, ...] behind those before."""
        if rows.size:
            data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
            self._blocks.add(data)
            self._file.write(data)
        self._rows += len(rows)

    def close(self) -> dict[str, Any]:
        """Writes the number of rows; returns what the manifest has of the file."""
        end = self._file.tell()
        self._file.seek(0)
        self._write_header()  # NumPy leaves room in it for the digits of the longest first axis
        assert self._file.tell() == self._start
        self._file.flush()
        os.fsync(self._file.fileno())
        self.abandon()
        return {"bytes": end, "start": self._start, "sha256": self._blocks.checksums()}

    def abandon(self) -> None:
        """Closes the file, as it is."""
        self._file.close()


def write_whole(path: Path, content: bytes) -> dict[str, Any]:
    """Writes a file; returns what the manifest has of it."""
    blocks = Blocks()
    blocks.add(memoryview(content))
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "start": 0, "sha256": blocks.checksums()}


def verified(path: Path, about: Mapping[str, Any]) -> None:
    """Compares a file with its checksums.

    Raises:
      ValueError: naming the file and the first bytes that are others.
    """
    with path.open("rb") as file:
        file.seek(about["start"])
        for number, checksum in enumerate(about["sha256"]):
            if hashlib.sha256(file.read(_BLOCK)).hexdigest() != checksum:
                first = about["start"] + number * _BLOCK
                last = min(first + _BLOCK, about["bytes"])
                raise ValueError(
                    f"{path} is damaged: bytes {first} to {last} do not have the checksum that "
                    f"{MANIFEST} says"
                )


def read_manifest(folder: Path) -> tuple[dict[str, Any], str]:
    """The manifest of a store, and its SHA-256, after looking at the size of each file.

    Raises:
      ValueError: naming the file that is missing, of another version or of another size.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"folder must be a store, as fs.data.FederatedStore.write makes one; {path} cannot be "
            f"read: {error.strerror}"
        ) from error
    try:
        manifest = json.loads(content)
        name, version = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged, or no manifest of a store: {error!r}") from error
    if name != FORMAT or version != VERSION:
        raise ValueError(
            f"{path} must be of a {FORMAT!r} of version {VERSION}, which this package reads; it is "
            f"of {name!r} of version {version!r}"
        )
    with naming_manifest(folder):
        listed = {file: about["bytes"] for file, about in manifest["files"].items()}
    for file, expected in listed.items():
        try:
            size = (folder / file).stat().st_size
        except OSError as error:
            raise ValueError(f"{folder / file} is missing: {error.strerror}") from error
        if size != expected:
            raise ValueError(
                f"{folder / file} must have {expected} bytes, as {MANIFEST} says; it has {size}"
            )
    return manifest, hashlib.sha256(content).hexdigest()


@contextmanager
def naming_manifest(folder: Path) -> Iterator[None]:
    """What a manifest lacks, or has of another type, is told as damage of it.

    Raises:
      ValueError: naming the manifest.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: {error!r}") from error


def described(structure: Any) -> Any:
    """The structure of examples in values of JSON: the number of each leaf in its place.

    Raises:
      ValueError: for what is neither a dictionary of texts, a list, a tuple nor an array.
    """
    numbers = jax.tree.unflatten(structure, range(structure.num_leaves))

    def node(tree: Any) -> Any:
        if isinstance(tree, int):
            return tree
        if type(tree) is dict and all(isinstance(key, str) for key in tree):
            return {"dict": {key: node(value) for key, value in tree.items()}}
        if type(tree) in (list, tuple):
            return {type(tree).__name__: [node(value) for value in tree]}
        raise ValueError(
            "clients must have examples of dictionaries with texts as keys, lists, tuples and "
            f"arrays, which a file can name; got a {type(tree).__name__}"
        )

    return node(numbers)


def restored(description: Any) -> PyTree:
    """The structure that `described` took apart, with each leaf's number in its place."""
    if isinstance(description, int):
        return description
    ((kind, parts),) = description.items()
    if kind == "dict":
        return {key: restored(value) for key, value in parts.items()}
    values = [restored(value) for value in parts]
    return tuple(values) if kind == "tuple" else values


def leaves_of(manifest: Mapping[str, Any]) -> list[Leaf]:
    """The arrays that a manifest names, in their order."""
    listed: Iterable[Mapping[str, Any]] = manifest["leaves"]
    return [Leaf(x["file"], x["path"], jnp.dtype(x["dtype"]), tuple(x["shape"])) for x in listed]
