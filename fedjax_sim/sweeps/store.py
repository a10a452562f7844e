"""A sweep's batches on disk."""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core.files import DAMAGED, SaveError, reason, replace_file
from fedjax_sim.host.checkpoints import Checkpoints
from fedjax_sim.host.manifest import Manifest
from fedjax_sim.results.folder import SWEEP, RunFolder
from fedjax_sim.sweeps.batch import Columns


class Store:
    """A sweep's folder: its manifest, and the columns of each batch that is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = RunFolder(folder)

    def widths(self) -> list[int] | None:
        """The saved sweep's number of configurations side by side, by group; None without one."""
        manifest = Manifest.read(self.folder, SWEEP)
        return None if manifest is None else manifest.facts["side_by_side"]

    def open(self, identity: Mapping[str, Any], widths: list[int], resume: bool) -> None:
        """Writes the manifest, or compares it with that of the folder.

        Raises:
          ValueError: if the folder holds a sweep that is not to be resumed, or another one.
        """
        manifest = Manifest.of(SWEEP, {**identity, "side_by_side": widths})
        manifest.open(self.folder, resume)
        self.folder.parts(SWEEP).mkdir(exist_ok=True)

    def checkpoints(self, number: int) -> Checkpoints:
        """The checkpoints of a batch that is not complete yet."""
        return Checkpoints(self.folder.batch_checkpoints(number))

    def load(self, number: int, models: Sequence[Path] = ()) -> Columns | None:
        """A batch's columns; None if they are missing or damaged.

        Args:
          models: the files of its models; None is returned if one of them is missing.
        """
        path = self.folder.batch(number)
        if not path.exists():
            return None
        lost = [model for model in models if not model.exists()]
        if lost:
            warnings.warn(f"{lost[0]} is missing and is computed again", stacklevel=2)
            return None
        columns: Columns = {"rounds": {}, "values": {}}
        try:
            with np.load(path, allow_pickle=False) as archive:
                for name in archive.files:  # reading an array checks its CRC
                    kind, _, column = name.partition(".")
                    columns[kind][column] = archive[name]
        except DAMAGED as error:
            warnings.warn(f"{path} is damaged and is computed again ({error})", stacklevel=2)
            return None
        return columns

    def save(self, number: int, columns: Columns) -> None:
        """Writes a batch's columns, whole or not at all; its checkpoints are no longer needed.

        Raises:
          SaveError: if they cannot be written.
        """
        path = self.folder.batch(number)
        arrays: dict[str, Any] = {
            f"{kind}.{name}": x for kind, by_name in columns.items() for name, x in by_name.items()
        }
        try:
            replace_file(path, lambda file: np.savez(file, **arrays))
        except OSError as error:
            raise SaveError(f"batch {number} was not saved in {path}: {reason(error)}") from error
        shutil.rmtree(self.checkpoints(number).folder, ignore_errors=True)
