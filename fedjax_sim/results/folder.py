"""A results folder: what lies in it, what that is called, what may be removed, what may go on."""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

SUMMARY, TABLE, ROUNDS = "summary.json", "table.csv", "rounds.csv"  # what `Results.save` writes
HISTORY, PICTURE = "history.csv", "compare.png"  # of a comparison, beside those
CONFIGURATION = "configuration.toml"  # what the command line was asked for
MODEL = "model.npz"  # a run's model
MODELS = "models"  # a sweep's folder of them, one file a run
BASELINES = ("centralised", "local_only")  # folders of their names, in a run's


class Kind(NamedTuple):
    """What can be gone on with.

    Attributes:
      name: what it is called.
      manifest: the file that says what identifies it.
      parts: the folder of what is saved of it, numbered.
      digits: of such a number.
      ending: behind the number of one that is whole.
    """

    name: str
    manifest: str
    parts: str
    digits: int
    ending: str

    def part(self, number: int) -> str:
        """What the part of that number is called, without its ending."""
        return f"{number:0{self.digits}d}"


RUN = Kind("experiment", "experiment.json", "checkpoints", 9, "")
SWEEP = Kind("sweep", "sweep.json", "batches", 6, ".npz")
_KINDS = (RUN, SWEEP)

_RESULTS = (SUMMARY, TABLE, ROUNDS, MODEL, HISTORY, PICTURE)
_MANIFESTS = (*(kind.manifest for kind in _KINDS), CONFIGURATION)


class RunFolder(NamedTuple):
    """The results folder of a run, a sweep or a comparison; the only one who knows what is in it.

    Attributes:
      path: where it is; it may not be there yet.
    """

    path: Path

    def manifest(self, kind: Kind) -> Path:
        """The file that says what identifies what is there."""
        return self.path / kind.manifest

    def parts(self, kind: Kind) -> Path:
        """The folder of what is saved, numbered: a run's checkpoints, a sweep's batches."""
        return self.path / kind.parts

    def batch(self, number: int) -> Path:
        """The file of a sweep's batch that is through."""
        return self.parts(SWEEP) / (SWEEP.part(number) + SWEEP.ending)

    def batch_checkpoints(self, number: int) -> Path:
        """The folder of the checkpoints of a sweep's batch that is at work."""
        return self.parts(SWEEP) / SWEEP.part(number)

    def model(self, index: int, seed: int) -> Path:
        """The model of a sweep's configuration, by its place in the grid, and seed."""
        return self.path / MODELS / f"{index:06d}-{seed}.npz"

    def models(self) -> list[Path]:
        """The files of models that are there: a run's one, or those of a sweep."""
        path = self.path / MODEL
        return [path] if path.exists() else sorted((self.path / MODELS).glob("*.npz"))

    def baseline(self, name: str) -> "RunFolder":
        """The folder of a run's baseline."""
        return RunFolder(self.path / name)

    def holds(self, kind: Kind) -> bool:
        """Whether there is something of that kind to go on with."""
        return self.manifest(kind).exists()

    def numbers(self, kind: Kind) -> list[int]:
        """Of the parts that are whole, in order: rounds with a checkpoint, or batches."""
        paths = self._numbered(kind)
        return [int(path.stem) for path in paths if path.name == path.stem + kind.ending]

    def has_parts(self, kind: Kind) -> bool:
        """Whether anything is saved, be it whole or not."""
        return bool(self._numbered(kind))

    def has_results(self) -> bool:
        """Whether tables were saved; they may be those of an interrupted run or sweep."""
        return (self.path / SUMMARY).exists()

    def missing(self) -> list[str]:
        """The files of `Results.save` that are not there."""
        return [name for name in (SUMMARY, TABLE, ROUNDS) if not (self.path / name).is_file()]

    def is_baseline(self) -> bool:
        """Whether a run trained it as a baseline; a run of its own may have such a name, too."""
        try:
            there: dict[str, Any] = json.loads(self.manifest(RUN).read_text())
        except (OSError, ValueError):
            return False
        return there.get("configuration", {}).get("baseline") == self.path.name

    def held(self) -> list[str]:
        """The files of results that are there."""
        return [name for name in (*_RESULTS, *_MANIFESTS) if (self.path / name).exists()]

    def check(self, kind: Kind, resume: bool, overwrite: bool) -> None:
        """Refuses a folder with results that are to be neither resumed nor replaced.

        Args:
          kind: what can be resumed.

        Raises:
          ValueError: if it holds results, or with resume others than those.
        """
        there = self.held()
        if not there or overwrite:
            return
        holds = f"out {self.path} holds results already ({', '.join(there)})"
        if there == [CONFIGURATION]:
            holds = f"out {self.path} holds {CONFIGURATION} and no results, as when interrupted "
            holds += "early"
        if not resume:
            raise ValueError(
                f"{holds}; name another folder, or give resume (--resume) or overwrite "
                "(--overwrite)"
            )
        others = {other.manifest for other in _KINDS if other != kind}
        if kind.manifest not in there and (SUMMARY in there or others & {*there}):
            raise ValueError(
                f"{holds}, which this command cannot resume; give overwrite (--overwrite)"
            )

    def prepare(self, overwrite: bool) -> None:
        """Makes the folder, proves that files can be written, and removes what is to be replaced.

        Raises:
          ValueError: if it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            why = "it is a file" if self.path.is_file() else error.strerror
            raise ValueError(f"out {self.path} cannot be written: {why}") from error
        if overwrite:
            self.clear()

    def clear(self) -> None:
        """Removes the files of earlier results, and nothing else.

        What says that they are whole goes first, and what says of what they are last: cut off in
        the middle, the folder can be cleared or resumed.
        """
        for name in _RESULTS:
            (self.path / name).unlink(missing_ok=True)
        for path in self._numbered(RUN):
            if path.is_dir():
                shutil.rmtree(path)
        for path in self._numbered(SWEEP):
            if path.is_dir():
                _remove_checkpoints(path)
            elif path.suffixes == [".npz"]:
                path.unlink()
        for path in sorted((self.path / MODELS).glob("*.npz")):
            if re.fullmatch(r"[0-9]{6}--?[0-9]+\.npz", path.name):
                path.unlink()
        for folder in (*map(self.parts, _KINDS), self.path / MODELS):
            _remove_empty(folder)
        for baseline in map(self.baseline, BASELINES):  # of the run that is replaced
            if baseline.is_baseline():
                baseline.clear()
                _remove_empty(baseline.path)
        for name in _MANIFESTS:
            (self.path / name).unlink(missing_ok=True)

    def _numbered(self, kind: Kind) -> list[Path]:
        """What is called by a number among the parts, one that was cut off while saved, too."""
        name = re.compile(rf"[0-9]{{{kind.digits}}}(\..*)?")
        return sorted(p for p in self.parts(kind).glob("*") if name.fullmatch(p.name))


def _remove_checkpoints(path: Path) -> None:
    """Those of one batch."""
    for checkpoint in path.glob("?????????*"):
        if checkpoint.name.split(".")[0].isdecimal():
            shutil.rmtree(checkpoint)
    _remove_empty(path)


def _remove_empty(path: Path) -> None:
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
