"""A federation on disk: files that are mapped, so that a run reads its cohorts' rows alone."""

import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np

from fedjax_sim.core.files import SaveError, reason, to_json
from fedjax_sim.core.types import PyTree
from fedjax_sim.data import store_files as files
from fedjax_sim.data.checks import (
    as_array,
    check_same_length,
    check_values,
    checked_names,
    checked_weights,
    path_name,
)
from fedjax_sim.data.source import Source
from fedjax_sim.data.store_files import ArrayFile, Leaf

if TYPE_CHECKING:
    from fedjax_sim.data.federation import FederatedData

_TOGETHER = 256  # clients of a source that are read, and then written, at a time


@dataclass(frozen=True, eq=False)
class _Mapped:
    """`Source.read` of a store: views of its files, mapped anew at each call.

    So the pages that a window looked at are given back with it, and a process holds no more of a
    store than the windows at hand. A file that was cut short in the meantime is noticed, too.
    """

    folder: Path
    leaves: Sequence[Leaf]
    structure: Any
    starts: np.ndarray
    sizes: np.ndarray
    num_examples: int

    def all_examples(self) -> PyTree:
        """Leaves [N, ...]."""
        return jax.tree.unflatten(self.structure, self._columns())

    def _columns(self) -> list[np.ndarray]:
        return [leaf.mapped(self.folder, self.num_examples) for leaf in self.leaves]

    def __call__(self, ids: np.ndarray) -> list[PyTree]:
        columns = self._columns()
        starts, ends = self.starts[ids], self.starts[ids] + self.sizes[ids]
        return [
            jax.tree.unflatten(self.structure, [x[start:end] for x in columns])
            for start, end in zip(starts, ends, strict=True)
        ]


@dataclass(frozen=True, eq=False, repr=False)
class FederatedStore(Source):
    """A federation in a folder: a `Source` whose `identity` is the checksum of the manifest.

    `fs.simulate` reads the rows of the cohorts to come while it trains, and gives the bits that
    it gives with the federation in memory; `fs.evaluate` passes over it in blocks. The folder has
    a file `.npy` for each leaf of the examples, `[N, ...]`, client after client; the sizes n_k,
    weights and names; and `manifest.json`, with the version, every shape, and the SHA-256 of each
    64 MiB of each file. It is written under another name and moved, so that it is whole or absent.

    Attributes:
      folder: where it is.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     clients = ({"x": np.full((n, 2), n, np.float32)} for n in (3, 1))
    ...     store = FederatedStore.write(f"{folder}/mine", clients)
    ...     again = FederatedStore.open(f"{folder}/mine").verify()
    ...     again.read(np.array([1]))[0]["x"].tolist(), again.in_memory.num_clients
    ([[1.0, 1.0]], 2)
    """

    folder: Path = Path()

    def __repr__(self) -> str:
        leaves = jax.tree_util.tree_flatten_with_path(self.spec)[0]
        rows = ", ".join(f"{path_name(p)}: {x.dtype}{list(x.shape)}" for p, x in leaves)
        return (
            f"FederatedStore({len(self.num_examples)} clients, {self.total_num_examples} examples, "
            f"{rows}, {str(self.folder)!r})"
        )

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """The store in a folder; looks at the manifest and at the size and shape of each file.

        Whether the examples are those that were written is for `verify` to say, which reads them.

        Raises:
          ValueError: naming the file that is missing, damaged, or of another version, size or
            shape.
        """
        folder = Path(folder).expanduser().absolute()
        manifest, identity = files.read_manifest(folder)
        with files.naming_manifest(folder):
            return cls._of_manifest(folder, manifest, identity)

    @classmethod
    def _of_manifest(cls, folder: Path, manifest: Mapping[str, Any], identity: str) -> Self:
        """See `open`."""
        for name in (files.SIZES, files.WEIGHTS, files.NAMES):
            if name in manifest["files"]:
                files.verified(folder / name, manifest["files"][name])
        sizes = np.load(folder / files.SIZES)
        total, leaves = int(manifest["examples"]), files.leaves_of(manifest)
        if len(sizes) != manifest["clients"] or int(sizes.sum()) != total:
            raise ValueError(
                f"{folder / files.SIZES} must be of {manifest['clients']} clients with {total} "
                f"examples, as {files.MANIFEST} says; it is of {len(sizes)} with {sizes.sum()}"
            )
        weights = names = None
        if files.WEIGHTS in manifest["files"]:
            weights = np.load(folder / files.WEIGHTS)
        if files.NAMES in manifest["files"]:
            names = tuple(json.loads((folder / files.NAMES).read_text()))
        for leaf in leaves:
            leaf.mapped(folder, total)
        numbers, structure = jax.tree.flatten(files.restored(manifest["structure"]))
        leaves = [leaves[number] for number in numbers]
        spec = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        return cls(
            num_examples=sizes,
            spec=jax.tree.unflatten(structure, spec),
            read=_Mapped(folder, leaves, structure, np.cumsum(sizes) - sizes, sizes, total),
            weights=weights,
            client_names=names,
            identity=identity,
            folder=folder,
        )

    @classmethod
    def write(
        cls,
        folder: str | Path,
        clients: "Iterable[PyTree] | FederatedData | Source",
        client_weights: Any | None = None,
        *,
        client_names: Iterable[str] | None = None,
    ) -> Self:
        """Writes a federation, client by client, and opens it.

        Memory is that of one client, so an iterator may give more than memory holds. Numbers keep
        their type, also of 64 bits, which JAX halves where it is not told otherwise.

        Args:
          folder: which must not exist yet.
          clients: one pytree of arrays `[n_k, ...]` for each client, as
            `FederatedData.from_clients`; or a federation, or a source, whose weights and names are
            written, too.
          client_weights: Float[K], p_k up to scale; None for n_k, or those of the federation.
          client_names: K different texts; None for none, or those of the federation.

        Raises:
          ValueError: if the folder exists, and for clients as `FederatedData.from_clients`.
          SaveError: (an OSError) if the files cannot be written, as on a disk that is full; what
            was written is then removed.
        """
        folder = Path(folder).expanduser().absolute()
        if folder.exists():
            raise ValueError(f"folder must be a new one; {folder} exists already")
        source = _source_of(clients)
        one_by_one: Any = clients
        if source is not None:
            client_weights = source.weights if client_weights is None else client_weights
            client_names = source.client_names if client_names is None else client_names
            one_by_one = _clients_of(source)
        beside = folder.with_name(folder.name + ".part")
        try:
            if beside.exists():  # of a process that was killed
                shutil.rmtree(beside)
            beside.mkdir(parents=True)
            _write(beside, iter(one_by_one), client_weights, client_names)
            beside.rename(folder)
        except OSError as error:
            raise SaveError(
                f"the store {folder} was not written, and nothing of it is left: {reason(error)}"
            ) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return cls.open(folder)

    def mapped(self) -> PyTree:
        """The examples of all clients, leaves [N, ...], read where they are looked at."""
        assert isinstance(self.read, _Mapped)
        return self.read.all_examples()

    def verify(self) -> Self:
        """Reads all files and compares their checksums; returns the store.

        Raises:
          ValueError: naming the file that is damaged, and the bytes.
        """
        manifest, identity = files.read_manifest(self.folder)
        if identity != self.identity:
            raise ValueError(f"{self.folder / files.MANIFEST} was replaced since it was opened")
        for name, about in manifest["files"].items():
            files.verified(self.folder / name, about)
        return self


def _source_of(clients: Any) -> Source | None:
    """The federation as a source; None for an iterable of clients.

    Raises:
      ValueError: for what is neither.
    """
    from fedjax_sim.data.federation import FederatedData

    if isinstance(clients, FederatedData):
        return Source.of(clients)
    if isinstance(clients, Source):
        return clients
    if isinstance(clients, dict) or not isinstance(clients, Iterable):
        raise ValueError(
            "clients must be an iterable with one pytree of arrays for each client, a "
            f"FederatedData or a Source; got {type(clients).__name__}"
        )
    return None


def _clients_of(source: Source) -> Iterator[PyTree]:
    ids = np.arange(len(source.num_examples))
    for first in range(0, len(ids), _TOGETHER):
        yield from source.read(ids[first : first + _TOGETHER])


def _write(folder: Path, clients: Iterator[PyTree], client_weights: Any, client_names: Any) -> None:
    """Writes the files of a store, the manifest last."""
    arrays, leaves, sizes = list[ArrayFile](), list[Leaf](), list[int]()
    structure: Any = None
    names = list[str]()
    try:
        for k, client in enumerate(clients):
            paths, own_structure = jax.tree_util.tree_flatten_with_path(client)
            if structure is None:
                structure, names = own_structure, [path_name(path) for path, _ in paths]
                files.described(structure)  # which refuses what a file cannot name
            if own_structure != structure:
                raise ValueError(
                    f"clients must all have the structure of client 0: got {own_structure} for "
                    f"client {k}, and {structure} for client 0"
                )
            rows = [
                as_array(x, f"{name} of client {k}")
                for name, (_, x) in zip(names, paths, strict=True)
            ]
            check_same_length(rows, names, f" of client {k}")
            sizes.append(len(rows[0]))
            if not sizes[-1]:
                continue
            if not arrays:
                leaves = [
                    Leaf(f"leaf-{i}.npy", name, x.dtype, x.shape[1:])
                    for i, (name, x) in enumerate(zip(names, rows, strict=True))
                ]
                arrays = [ArrayFile(folder, leaf) for leaf in leaves]
            for leaf, array, x in zip(leaves, arrays, rows, strict=True):
                if x.shape[1:] != leaf.shape or x.dtype != leaf.dtype:
                    raise ValueError(
                        f"{leaf.path} must have one dtype and one shape behind its first axis: got "
                        f"{x.dtype}{list(x.shape[1:])} for client {k}, and {leaf.dtype}"
                        f"{list(leaf.shape)} before"
                    )
                check_values(x, leaf.path, np.zeros(1, np.int64), np.array([k]))
                array.add(x)
        if not arrays:
            raise ValueError("clients must hold at least one example; got none")
        about = {leaf.file: x.close() for leaf, x in zip(leaves, arrays, strict=True)}
    finally:
        for array in arrays:
            array.abandon()
    about[files.SIZES] = files.write_whole(folder / files.SIZES, _npy(np.array(sizes, np.int64)))
    if client_weights is not None:
        checked_weights(client_weights, np.array(sizes))
        weights = _npy(np.asarray(client_weights, np.float64))
        about[files.WEIGHTS] = files.write_whole(folder / files.WEIGHTS, weights)
    kept_names = checked_names(client_names, len(sizes))
    if kept_names is not None:
        text = json.dumps(list(kept_names)).encode()
        about[files.NAMES] = files.write_whole(folder / files.NAMES, text)
    manifest = {
        "format": files.FORMAT,
        "version": files.VERSION,
        "clients": len(sizes),
        "examples": sum(sizes),
        "structure": files.described(structure),
        "leaves": [
            {"file": x.file, "path": x.path, "dtype": x.dtype.name, "shape": list(x.shape)}
            for x in leaves
        ],
        "files": about,
    }
    files.write_whole(folder / files.MANIFEST, to_json(manifest))


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()
