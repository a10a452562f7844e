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

_OF = "of"  # of what runs a batch is, for those who read the folder without the experiment


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

    def join(self, identity: Mapping[str, Any], widths: list[int]) -> list[int]:
        """Joins the sweep in the folder, or begins it; returns its configurations side by side.

        Where they differ from `widths`, another process has begun it in the meantime, and the
        batches are to be planned again with what it chose.

        Raises:
          ValueError: if the folder holds another sweep.
        """
        manifest = Manifest.of(SWEEP, {**identity, "side_by_side": widths})
        saved = manifest.join(self.folder)
        chosen: list[int] = saved.facts["side_by_side"]
        alike = Manifest(SWEEP, manifest.facts | {"side_by_side": chosen})
        if differs := alike.differences(saved):
            raise ValueError(
                f"out {self.folder.path} holds another sweep, and no shard can join it: {differs}"
            )
        self.folder.parts(SWEEP).mkdir(exist_ok=True)
        return chosen

    def checkpoints(self, number: int, owner: int = 0) -> Checkpoints:
        """The checkpoints of a batch that is not complete yet, those of its last owner included.

        Args:
          owner: how many others computed it before, and did not complete it. Each has a folder
            of its own, lest one that was only asleep write into that of its successor.
        """
        folder = self.folder.batch_checkpoints(number, owner)
        earlier = self.folder.checkpoints_of_batch(number)
        if earlier and earlier[-1][1] != folder:
            shutil.rmtree(folder, ignore_errors=True)
            try:
                earlier[-1][1].rename(folder)
            except OSError as error:
                raise SaveError(f"{folder} was not written: {reason(error)}") from error
        return Checkpoints(folder)

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
                    if kind != _OF:
                        columns[kind][column] = archive[name]
        except DAMAGED as error:
            warnings.warn(f"{path} is damaged and is computed again ({error})", stacklevel=2)
            return None
        return columns

    def places(self, number: int) -> tuple[list[tuple[int, int]], int | None] | None:
        """(index of the configuration, seed) of each run of a batch, and R.

        It is None if that is not known, of a batch that an earlier version saved.
        """
        try:
            with np.load(self.folder.batch(number), allow_pickle=False) as archive:
                places, rounds = archive[f"{_OF}.places"], archive[f"{_OF}.num_rounds"]
        except DAMAGED:
            return None
        num_rounds = int(rounds[0]) if len(rounds) else None
        return [(int(index), int(seed)) for index, seed in places], num_rounds

    def save(
        self,
        number: int,
        columns: Columns,
        places: Sequence[tuple[int, int]],
        num_rounds: int | None,
        owner: int = 0,
    ) -> None:
        """Writes a batch's columns, whole or not at all; its checkpoints are no longer needed.

        Args:
          places: of its runs, (index of the configuration, seed).
          num_rounds: R; None for a function that returns results.
          owner: as of `checkpoints`.

        Raises:
          SaveError: if they cannot be written.
        """
        path = self.folder.batch(number)
        arrays: dict[str, Any] = {
            f"{kind}.{name}": x for kind, by_name in columns.items() for name, x in by_name.items()
        }
        arrays[f"{_OF}.places"] = np.array(places, np.int64)
        arrays[f"{_OF}.num_rounds"] = np.array([] if num_rounds is None else [num_rounds], np.int64)
        try:
            replace_file(path, lambda file: np.savez(file, **arrays))
        except OSError as error:
            raise SaveError(f"batch {number} was not saved in {path}: {reason(error)}") from error
        for earlier, folder in self.folder.checkpoints_of_batch(number):
            if earlier <= owner:
                shutil.rmtree(folder, ignore_errors=True)
