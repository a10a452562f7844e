"""A sweep's folder."""

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core.files import DAMAGED, SaveError, reason, replace_file
from fedjax_sim.host.checkpoints import Checkpoints
from fedjax_sim.host.identity import MORE_ROUNDS, another, differences, warn_of_no_program
from fedjax_sim.results import to_json
from fedjax_sim.results.trained import MODELS
from fedjax_sim.sweeps.batch import Columns

_MANIFEST = "sweep.json"


class Store:
    """A sweep's folder: what it is of, and each batch's columns once they are whole."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.batches = folder, folder / "batches"

    def widths(self) -> list[int] | None:
        path = self.folder / _MANIFEST
        return json.loads(path.read_text())["side_by_side"] if path.exists() else None

    def open(self, identity: dict[str, Any], widths: list[int], resume: bool) -> None:
        path = self.folder / _MANIFEST
        here = json.loads(to_json({**identity, "side_by_side": widths}))
        if path.exists():
            if not resume:
                raise ValueError(
                    f"out {self.folder} holds a sweep already; resume it, or name another folder"
                )
            there = json.loads(path.read_text())
            if differs := _another(there, here):
                raise ValueError(
                    f"out {self.folder} holds another sweep and cannot be resumed: {differs}"
                )
            if any("program" not in group for group in there["groups"]):
                warn_of_no_program(self.folder)
            return
        if self.batches.is_dir() and any(self.batches.iterdir()):
            raise ValueError(
                f"out {self.folder} holds batches and no {_MANIFEST} that says of what; name "
                "another folder, or remove them"
            )
        self.batches.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(to_json(here)))

    def checkpoints(self, number: int) -> Checkpoints:
        return Checkpoints(self.batches / f"{number:06d}")

    def model(self, index: int, seed: int) -> Path:
        """Where the model of a configuration, by its place in the grid, and a seed is kept."""
        return self.folder / MODELS / f"{index:06d}-{seed}.npz"

    def load(self, number: int, models: Sequence[Path] = ()) -> Columns | None:
        """A batch's columns; None if they are not there, or damaged.

        Args:
          models: that are kept of it; None is returned where one of them is not there.
        """
        path = self.batches / f"{number:06d}.npz"
        if not path.exists():
            return None
        lost = [model for model in models if not model.exists()]
        if lost:
            warnings.warn(f"{lost[0]} is missing and is computed again", stacklevel=2)
            return None
        found: Columns = {"rounds": {}, "values": {}}
        try:
            with np.load(path, allow_pickle=False) as archive:
                for name in archive.files:  # reading checks each one's sum
                    kind, _, column = name.partition(".")
                    found[kind][column] = archive[name]
        except DAMAGED as error:
            warnings.warn(f"{path} is damaged and is computed again ({error})", stacklevel=2)
            return None
        return found

    def save(self, number: int, found: Columns) -> None:
        path = self.batches / f"{number:06d}.npz"
        arrays: dict[str, Any] = {
            f"{kind}.{name}": x for kind, some in found.items() for name, x in some.items()
        }
        try:
            replace_file(path, lambda file: np.savez(file, **arrays))
        except OSError as error:
            raise SaveError(f"batch {number} was not saved in {path}: {reason(error)}") from error
        shutil.rmtree(self.checkpoints(number).folder, ignore_errors=True)


def _another(there: dict[str, Any], here: dict[str, Any]) -> str:
    """What makes what is there another sweep, in words; "" if nothing does."""
    facts = [{k: v for k, v in one.items() if k != "groups"} for one in (there, here)]
    if differs := differences(facts[0], facts[1]):
        return differs
    for place, groups in enumerate(zip(there["groups"], here["groups"], strict=True)):
        rounds = [group.get("num_rounds") for group in groups]
        if differs := another(*groups):
            many = len(there["groups"]) > 1
            return f"group {place + 1}: {differs}" if many else differs
        if rounds[0] != rounds[1]:
            return f"num_rounds is {rounds[0]} there and {rounds[1]} here; {MORE_ROUNDS}"
    return ""
