"""A results folder: its files, their names, and which of them may be removed or resumed."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_sim.core.files import check_writable, lock_of, locked

SUMMARY, TABLE, ROUNDS = "summary.json", "table.csv", "rounds.csv"  # written by `Results.save`
HISTORY, PICTURE = "history.csv", "compare.png"  # a comparison has these, too
CONFIGURATION = "configuration.toml"  # the options of the command line
MODEL = "model.npz"  # a run's model
CLIENTS = "clients.csv"  # final values of each client of a run
STATES, ROWS = "client_states", "rows.bin"  # a run's folder of what its clients keep, and the file
MODELS = "models"  # a sweep's folder of them, one file a run
CLAIMS = "claims"  # who computes which batch of a sweep that several processes share
BASELINES = ("centralised", "local_only")  # folders of their names, in a run's


class Kind(NamedTuple):
    """A kind of work that can be resumed: a run, or a sweep.

    Attributes:
      name: its name.
      manifest: name of the file of the values that identify it.
      parts: name of the folder of its saved parts, which are numbered.
      digits: how many digits a part's number has.
      ending: what follows the number in the name of a part that is complete.
    """

    name: str
    manifest: str
    parts: str
    digits: int
    ending: str

    def part(self, number: int) -> str:
        """The name of the part of that number, without its ending."""
        return f"{number:0{self.digits}d}"


RUN = Kind("experiment", "experiment.json", "checkpoints", 9, "")
SWEEP = Kind("sweep", "sweep.json", "batches", 6, ".npz")
_KINDS = (RUN, SWEEP)

_RESULTS = (SUMMARY, TABLE, ROUNDS, MODEL, CLIENTS, HISTORY, PICTURE)
_MANIFESTS = (*(kind.manifest for kind in _KINDS), CONFIGURATION)


class RunFolder(NamedTuple):
    """The results folder of a run, a sweep or a comparison; no other module names its files.

    Attributes:
      path: the folder, which need not exist yet.
    """

    path: Path

    def manifest(self, kind: Kind) -> Path:
        """The file of the values that identify the run or the sweep."""
        return self.path / kind.manifest

    def parts(self, kind: Kind) -> Path:
        """The folder of numbered parts: a run's checkpoints, or a sweep's batches."""
        return self.path / kind.parts

    @property
    def client_states(self) -> Path:
        """The file of what a run's clients keep, where that is on disk."""
        return self.path / STATES / ROWS

    def batch(self, number: int) -> Path:
        """The file of a sweep's batch that is complete."""
        return self.parts(SWEEP) / (SWEEP.part(number) + SWEEP.ending)

    def batch_checkpoints(self, number: int, owner: int = 0) -> Path:
        """The folder of the checkpoints of a sweep's batch that is not complete yet.

        Args:
          owner: how many others computed it before, and did not complete it.
        """
        name = SWEEP.part(number)
        return self.parts(SWEEP) / (f"{name}.{owner}" if owner else name)

    def checkpoints_of_batch(self, number: int) -> list[tuple[int, Path]]:
        """(owner, folder) of all checkpoints of a batch, the latest owner last."""
        name = re.compile(rf"{SWEEP.part(number)}(?:\.([0-9]+))?")
        matches = [(name.fullmatch(path.name), path) for path in self.parts(SWEEP).glob("*")]
        return sorted((int(match[1] or 0), path) for match, path in matches if match)

    @property
    def claims(self) -> Path:
        """The folder of who computes, or computed, which batch of a sweep that processes share."""
        return self.path / CLAIMS

    def model(self, index: int, seed: int) -> Path:
        """The file of a sweep's model, of the configuration at `index` in the grid and a seed."""
        return self.path / MODELS / f"{index:06d}-{seed}.npz"

    def models(self) -> list[Path]:
        """The files of models that exist: the one of a run, or those of a sweep."""
        path = self.path / MODEL
        return [path] if path.exists() else sorted((self.path / MODELS).glob("*.npz"))

    def baseline(self, name: str) -> "RunFolder":
        """The folder of a run's baseline."""
        return RunFolder(self.path / name)

    def holds(self, kind: Kind) -> bool:
        """Whether the folder holds work of that kind that can be resumed."""
        return self.manifest(kind).exists()

    def numbers(self, kind: Kind) -> list[int]:
        """Numbers of the complete parts, ascending: rounds with a checkpoint, or batches."""
        paths = self._numbered(kind)
        return [int(path.stem) for path in paths if path.name == path.stem + kind.ending]

    def has_parts(self, kind: Kind) -> bool:
        """Whether any part is saved, complete or not."""
        return bool(self._numbered(kind))

    def has_results(self) -> bool:
        """Whether tables were saved; they may be those of an interrupted run or sweep."""
        return (self.path / SUMMARY).exists()

    def is_complete(self) -> bool:
        """Whether tables were saved that say of themselves that they are of all runs."""
        try:
            summary: dict[str, Any] = json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return summary.get("complete") is True

    def missing(self) -> list[str]:
        """The files of `Results.save` that are missing."""
        return [name for name in (SUMMARY, TABLE, ROUNDS) if not (self.path / name).is_file()]

    def is_baseline(self) -> bool:
        """Whether a run trained it as a baseline; a run of its own may have such a name, too."""
        try:
            facts: dict[str, Any] = json.loads(self.manifest(RUN).read_text())
        except (OSError, ValueError):
            return False
        return facts.get("configuration", {}).get("baseline") == self.path.name

    def held(self) -> list[str]:
        """Names of the files of results that exist."""
        return [name for name in (*_RESULTS, *_MANIFESTS) if (self.path / name).exists()]

    def check(self, kind: Kind, resume: bool, overwrite: bool) -> None:
        """Refuses a folder with results unless these are to be resumed or replaced.

        Args:
          kind: the kind of work that the caller can resume.

        Raises:
          ValueError: if it holds results and neither is asked for, or results of another kind.
        """
        present = self.held()
        if not present or overwrite:
            return
        holds = f"out {self.path} holds results already ({', '.join(present)})"
        if present == [CONFIGURATION]:
            holds = f"out {self.path} holds {CONFIGURATION} and no results, as when interrupted "
            holds += "early"
        if not resume:
            raise ValueError(
                f"{holds}; name another folder, or give resume (--resume) or overwrite "
                "(--overwrite)"
            )
        other_manifests = {other_kind.manifest for other_kind in _KINDS if other_kind != kind}
        if kind.manifest not in present and (SUMMARY in present or other_manifests & {*present}):
            raise ValueError(
                f"{holds}, which this command cannot resume; give overwrite (--overwrite)"
            )

    def prepare(self, overwrite: bool) -> None:
        """Makes the folder, tests that files can be written, and with `overwrite` removes results.

        Raises:
          ValueError: if it cannot be written.
        """
        check_writable(self.path, f"out {self.path}")
        if overwrite:
            self.clear()

    def clear(self) -> None:
        """Removes the files of earlier results, and nothing else.

        Results are removed first and manifests last: a folder in which this was interrupted has no
        results that look complete, and can still be cleared or resumed.

        Raises:
          ValueError: if a run that keeps its clients' states on the disk is at work in the folder.
        """
        with self._without_writer_of_states():
            self._clear()

    @contextmanager
    def kept_if_begun(self, kind: Kind) -> Iterator[None]:
        """Within it work begins: if it is refused before a part is saved, its files are removed.

        A folder that held something before, or that several processes share, is left as it is.
        """
        was_empty = not self.held()
        try:
            yield
        except ValueError:
            is_shared = self.claims.is_dir()
            if was_empty and not is_shared and not self.has_parts(kind):
                self.clear()
            raise

    @contextmanager
    def _without_writer_of_states(self) -> Iterator[None]:
        """Within it no run writes the clients' states; removes them and their lock at its end."""
        rows = self.client_states
        if not rows.parent.is_dir():
            yield
            return
        refusal = (
            f"out {self.path} must be a folder in which no other run is at work; another one "
            f"writes {rows}, the clients' states"
        )
        with locked(lock_of(rows), refusal, or_unlocked=True):
            yield
            rows.unlink(missing_ok=True)
            lock_of(rows).unlink(missing_ok=True)
        _remove_empty(rows.parent)

    def _clear(self) -> None:
        for name in _RESULTS:
            (self.path / name).unlink(missing_ok=True)
        for path in self._numbered(RUN):
            if path.is_dir():
                shutil.rmtree(path)
        for path in self._numbered(SWEEP):
            if path.is_dir():
                _remove_checkpoints(path)
            elif path.suffixes == [".npz"] or re.search(r"\.npz\.[0-9a-f]{8}\.part$", path.name):
                path.unlink()
        for path in sorted((self.path / MODELS).glob("*.npz")):
            if re.fullmatch(r"[0-9]{6}--?[0-9]+\.npz", path.name):
                path.unlink()
        for path in sorted(self.claims.glob("*")):
            if re.fullmatch(r"[0-9]{6,}\.[0-9]+|now-.*", path.name):
                path.unlink()
        for path in sorted(self.path.glob("*.part")):  # of a process that was killed
            if path.name[: -len(".00000000.part")] in (*_RESULTS, *_MANIFESTS):
                path.unlink()
        others = (self.path / MODELS, self.claims)
        for folder in (*map(self.parts, _KINDS), *others):
            _remove_empty(folder)
        for baseline in map(self.baseline, BASELINES):  # of the run that is replaced
            if baseline.is_baseline():
                baseline.clear()
                _remove_empty(baseline.path)
        for name in _MANIFESTS:
            (self.path / name).unlink(missing_ok=True)

    def _numbered(self, kind: Kind) -> list[Path]:
        """The parts whose names are numbers, also those that were cut off while being saved."""
        name = re.compile(rf"[0-9]{{{kind.digits}}}(\..*)?")
        return sorted(p for p in self.parts(kind).glob("*") if name.fullmatch(p.name))


def _remove_checkpoints(path: Path) -> None:
    """Removes the checkpoints of one batch."""
    for checkpoint in path.glob("?????????*"):
        if checkpoint.name.split(".")[0].isdecimal():
            shutil.rmtree(checkpoint)
    _remove_empty(path)


def _remove_empty(path: Path) -> None:
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
