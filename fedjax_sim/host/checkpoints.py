"""Checkpoints on disk, by Orbax: whole or not there, and never loaded if damaged."""

import errno
import json
import os
import shutil
import warnings
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.files import SaveError, reason
from fedjax_sim.core.randomness import is_key
from fedjax_sim.core.types import PyTree
from fedjax_sim.host.processes import Processes
from fedjax_sim.results.folder import RUN

_KEPT = 2  # checkpoints: the last one, and the one before it in case the last is damaged


class Saved(NamedTuple):
    """A checkpoint that was read."""

    number: int
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


class Checkpoints:
    """Numbered checkpoints of named arrays and a few facts, in one folder.

    A checkpoint is written under another name and then moved, so that a reader never sees half
    of one. Its checksum shows whether it was damaged later.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._damaged = set[int]()  # which `load` passed over

    def save(self, number: int, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        """Writes checkpoint `number`, then removes all but the last two that are not damaged.

        Raises:
          SaveError: saying why it could not be written; nothing that was saved is lost.
        """
        import orbax.checkpoint as ocp  # here: it takes longer to import than JAX does

        path = self.folder / RUN.part(number)
        non_empty = {name: x for name, x in arrays.items() if x.size}  # Orbax keeps no empty array
        empty = {name: [str(x.dtype), x.shape] for name, x in arrays.items() if not x.size}
        metadata = {"facts": facts, "empty": empty, "checksum": _checksums(non_empty)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob("*.orbax-checkpoint-tmp*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with _checkpointer() as checkpointer:
                checkpointer.save(
                    path,
                    args=ocp.args.PyTreeSave(non_empty),
                    force=True,
                    custom_metadata={"json": json.dumps(metadata)},
                )
        except Exception as error:
            for left in self.folder.glob(f"{path.name}.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)
            raise SaveError(
                f"checkpoint {number} was not saved in {self.folder}: {reason(error)}"
            ) from error
        self._damaged.discard(number)
        numbers = self.numbers()
        # Of those behind this one, the run was resumed before them, so it found them damaged.
        whole = [n for n in numbers if n <= number and n not in self._damaged]
        for old in {*numbers} - {*whole[-_KEPT:]}:
            shutil.rmtree(self.folder / RUN.part(old), ignore_errors=True)

    def numbers(self) -> list[int]:
        """The numbers of the checkpoints in the folder, in order."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(path.name) for path in paths if path.name.isdecimal())

    def load(self) -> Saved | None:
        """The last checkpoint that is not damaged; None if there is none.

        Warns of each damaged one.
        """
        for number in reversed(self.numbers()):
            try:
                return self.read(number)
            except Exception as error:
                self._damaged.add(number)
                warnings.warn(
                    f"checkpoint {number} in {self.folder} is damaged and was passed over "
                    f"({reason(error)})",
                    stacklevel=2,
                )
        return None

    def read(self, number: int) -> Saved:
        """The checkpoint of that number.

        Raises:
          Exception: if it is missing or damaged.
        """
        path = self.folder / RUN.part(number)
        if not path.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        with _checkpointer() as checkpointer:
            import orbax.checkpoint as ocp

            metadata = json.loads(checkpointer.metadata(path).custom_metadata["json"])
            as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
            names = [name for name, _ in metadata["checksum"]]
            restore = ocp.args.PyTreeRestore(
                dict.fromkeys(names, 0), restore_args=dict.fromkeys(names, as_numpy)
            )
            arrays = {k: np.asarray(x) for k, x in checkpointer.restore(path, args=restore).items()}
        if _checksums(arrays) != metadata["checksum"]:
            raise ValueError("its arrays are not those that were saved")
        for name, (dtype, shape) in metadata["empty"].items():
            arrays[name] = np.zeros(shape, dtype)
        return Saved(number, arrays, metadata["facts"])


def load_together(checkpoints: Checkpoints, processes: Processes) -> Saved | None:
    """The last checkpoint that the writer finds undamaged, read by each process of a run.

    Raises:
      ValueError: if one of them cannot read the one that the writer read.
    """
    saved: Saved | None = None

    def last() -> int | None:
        nonlocal saved
        saved = checkpoints.load()
        return None if saved is None else saved.number

    number = processes.by_writer(last)
    with processes.together():
        if number is not None and saved is None:
            try:
                saved = checkpoints.read(number)
            except Exception as error:
                raise ValueError(
                    f"out must be a folder that all processes see; checkpoint {number}, which the "
                    f"writer read, is not to be read here in {checkpoints.folder}: {reason(error)}"
                ) from error
    return saved


def _checkpointer() -> Any:
    """Orbax's checkpointer, set up so that it does not wait for other processes of the run."""
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def flatten(name: str, tree: PyTree) -> dict[str, np.ndarray]:
    """The leaves of a pytree as numpy arrays, named by their order; random keys as their bits."""

    def on_host(x: Any) -> np.ndarray:
        if is_key(x):
            x = jax.random.key_data(x)
        return np.array(x)

    return {f"{name}.{i:04d}": on_host(x) for i, x in enumerate(jax.tree.leaves(tree))}


def unflatten(name: str, like: PyTree, arrays: dict[str, np.ndarray]) -> PyTree:
    """The pytree that `flatten` took apart: numpy leaves, and keys as keys.

    Raises:
      ValueError: if the arrays have other shapes or dtypes than the leaves of `like`.
    """
    leaves, treedef = jax.tree.flatten(like)
    restored = []
    for i, x in enumerate(leaves):
        key = is_key(x)
        spec: Any = jax.eval_shape(jax.random.key_data, x) if key else x
        saved = arrays.get(f"{name}.{i:04d}")
        if saved is None or saved.shape != spec.shape or saved.dtype != spec.dtype:
            raise ValueError(
                f"the checkpoint holds another {name}: its leaf {i} is "
                f"{'missing' if saved is None else f'{saved.dtype}{list(saved.shape)}'}, "
                f"for {spec.dtype}{list(spec.shape)} here"
            )
        restored.append(
            jax.random.wrap_key_data(jnp.asarray(saved), impl=jax.random.key_impl(x))
            if key
            else saved
        )
    return jax.tree.unflatten(treedef, restored)


def checksum(*arrays: Any) -> int:
    """CRC-32 of the arrays' bytes, one after another."""
    crc = 0
    for x in arrays:
        crc = zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data, crc)
    return crc


def _checksums(arrays: dict[str, np.ndarray]) -> list[list[Any]]:
    """The checksum of each array, sorted by name."""
    return [[name, checksum(arrays[name])] for name in sorted(arrays)]
