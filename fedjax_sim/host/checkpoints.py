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
from fedjax_sim.core.types import PyTree
from fedjax_sim.host.processes import Processes
from fedjax_sim.results.folder import RUN

_KEPT = 2  # the last, and the one before it in case the last is damaged


class Saved(NamedTuple):
    """A checkpoint that was read."""

    number: int
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


class Checkpoints:
    """Numbered checkpoints of named arrays and a few facts, in one folder.

    A checkpoint is written beside its place and moved there, so that one cut off in the middle
    is never seen; its checksum tells one that was damaged later.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def save(self, number: int, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        """Writes checkpoint `number`, then removes all but the last two.

        Raises:
          SaveError: saying why it could not be written; nothing that was saved is lost.
        """
        import orbax.checkpoint as ocp  # here: it takes longer to import than JAX does

        path = self.folder / RUN.part(number)
        held = {name: x for name, x in arrays.items() if x.size}  # Orbax keeps no empty array
        empty = {name: [str(x.dtype), x.shape] for name, x in arrays.items() if not x.size}
        said = {"facts": facts, "empty": empty, "checksum": _checksums(held)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob("*.orbax-checkpoint-tmp*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with _checkpointer() as checkpointer:
                checkpointer.save(
                    path,
                    args=ocp.args.PyTreeSave(held),
                    force=True,
                    custom_metadata={"json": json.dumps(said)},
                )
        except Exception as error:
            for left in self.folder.glob(f"{path.name}.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)
            raise SaveError(
                f"checkpoint {number} was not saved in {self.folder}: {reason(error)}"
            ) from error
        numbers = self.numbers()
        behind = [n for n in numbers if n > number]  # damaged, since the run began before them
        for old in [n for n in numbers if n <= number][:-_KEPT] + behind:
            shutil.rmtree(self.folder / RUN.part(old), ignore_errors=True)

    def numbers(self) -> list[int]:
        """Of the checkpoints that are there, in order."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(path.name) for path in found if path.name.isdecimal())

    def load(self) -> Saved | None:
        """The last checkpoint that is whole; None if there is none.

        Warns of each damaged one that it passes over.
        """
        for number in reversed(self.numbers()):
            try:
                return self.read(number)
            except Exception as error:
                warnings.warn(
                    f"checkpoint {number} in {self.folder} is damaged and was passed over "
                    f"({reason(error)})",
                    stacklevel=2,
                )
        return None

    def read(self, number: int) -> Saved:
        """The checkpoint of that number.

        Raises:
          Exception: if it is not there, or not whole.
        """
        path = self.folder / RUN.part(number)
        if not path.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        with _checkpointer() as checkpointer:
            import orbax.checkpoint as ocp

            said = json.loads(checkpointer.metadata(path).custom_metadata["json"])
            as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
            names = [name for name, _ in said["checksum"]]
            restore = ocp.args.PyTreeRestore(
                dict.fromkeys(names, 0), restore_args=dict.fromkeys(names, as_numpy)
            )
            held = {k: np.asarray(x) for k, x in checkpointer.restore(path, args=restore).items()}
        if _checksums(held) != said["checksum"]:
            raise ValueError("its arrays are not those that were saved")
        for name, (dtype, shape) in said["empty"].items():
            held[name] = np.zeros(shape, dtype)
        return Saved(number, held, said["facts"])


def load_together(checkpoints: Checkpoints, processes: Processes) -> Saved | None:
    """The last checkpoint that is whole, as the writer finds it, on all processes of a run.

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
    """Orbax's, for this process alone: of several it would wait for all."""
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
    """The leaves of a pytree on the host, by name and place; keys as their bits."""

    def on_host(x: Any) -> np.ndarray:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.array(x)

    return {f"{name}.{i:04d}": on_host(x) for i, x in enumerate(jax.tree.leaves(tree))}


def unflatten(name: str, like: PyTree, arrays: dict[str, np.ndarray]) -> PyTree:
    """The pytree that `flatten` took apart: numpy leaves, and keys as keys.

    Raises:
      ValueError: if it was one of other shapes or dtypes.
    """
    leaves, treedef = jax.tree.flatten(like)
    made = []
    for i, x in enumerate(leaves):
        key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        spec: Any = jax.eval_shape(jax.random.key_data, x) if key else x
        found = arrays.get(f"{name}.{i:04d}")
        if found is None or found.shape != spec.shape or found.dtype != spec.dtype:
            raise ValueError(
                f"the checkpoint holds another {name}: its leaf {i} is "
                f"{'missing' if found is None else f'{found.dtype}{list(found.shape)}'}, "
                f"for {spec.dtype}{list(spec.shape)} here"
            )
        made.append(
            jax.random.wrap_key_data(jnp.asarray(found), impl=jax.random.key_impl(x))
            if key
            else found
        )
    return jax.tree.unflatten(treedef, made)


def checksum(*arrays: Any) -> int:
    """CRC-32 of the arrays' bytes, one after another."""
    found = 0
    for x in arrays:
        found = zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data, found)
    return found


def _checksums(arrays: dict[str, np.ndarray]) -> list[list[Any]]:
    """Of each array, in the order of their names."""
    return [[name, checksum(arrays[name])] for name in sorted(arrays)]
