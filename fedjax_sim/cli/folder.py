"""The results folder: refused where it holds results, cleared of those alone."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedjax_sim.cli import files
from fedjax_sim.core.files import SaveError, reason
from fedjax_sim.results.trained import MODEL, MODELS

BASELINES = ("centralised", "local_only")  # folders of their names, in a run's
RUN, SWEEP = "experiment.json", "sweep.json"  # what `fs.simulate` and `fs.sweep` resume by
_RESULTS = ("summary.json", "table.csv", "rounds.csv", MODEL, "history.csv", "compare.png")
_MANIFESTS = (RUN, SWEEP, files.NAME)


def check(folder: Path, resume: bool, overwrite: bool, marker: str) -> None:
    """Refuses a folder with results that are to be neither resumed nor replaced.

    Args:
      marker: `RUN` or `SWEEP`, the file that can be resumed.

    Raises:
      ValueError: if it holds results, or with resume others than those.
    """
    there = held(folder)
    if not there or overwrite:
        return
    holds = f"--out {folder} holds results already ({', '.join(there)})"
    if there == [files.NAME]:
        holds = f"--out {folder} holds {files.NAME} and no results, as when interrupted early"
    if not resume:
        raise ValueError(f"{holds}; name another folder, or give --resume or --overwrite")
    others = {RUN, SWEEP} - {marker}
    if marker not in there and ("summary.json" in there or others & {*there}):
        raise ValueError(f"{holds}, which this command cannot resume; give --overwrite")


def held(folder: Path) -> list[str]:
    """The files of results that are there."""
    return [name for name in (*_RESULTS, *_MANIFESTS) if (folder / name).exists()]


def prepare(folder: Path, overwrite: bool) -> None:
    """Makes the folder, proves that files can be written, and removes what is to be replaced.

    Raises:
      ValueError: if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror
        raise ValueError(f"--out {folder} cannot be written: {why}") from error
    if overwrite:
        clear(folder)


def clear(folder: Path) -> None:
    """Removes the files of earlier results, and nothing else.

    What says that they are whole goes first, and what says of what they are last: cut off in the
    middle, the folder can be cleared or resumed.
    """
    for name in _RESULTS:
        (folder / name).unlink(missing_ok=True)
    for name, digits in (("checkpoints", 9), ("batches", 6)):
        for path in sorted((folder / name).glob("*")):
            number = path.name.split(".")[0]
            if not (number.isdecimal() and len(number) == digits):
                continue
            if path.is_dir():
                _remove_checkpoints(path, name == "batches")
            elif path.name == f"{number}.npz":
                path.unlink()
        _remove_empty(folder / name)
    for path in sorted((folder / MODELS).glob("*.npz")):
        if re.fullmatch(r"[0-9]{6}--?[0-9]+\.npz", path.name):
            path.unlink()
    _remove_empty(folder / MODELS)
    for name in BASELINES:  # of the run that is replaced
        if is_baseline(folder / name):
            clear(folder / name)
            _remove_empty(folder / name)
    for name in _MANIFESTS:
        (folder / name).unlink(missing_ok=True)


def is_baseline(folder: Path) -> bool:
    """Whether a run trained it as a baseline; a run of its own may have such a name, too."""
    try:
        there = json.loads((folder / RUN).read_text())
    except (OSError, ValueError):
        return False
    return there.get("configuration", {}).get("baseline") == folder.name


def _remove_checkpoints(path: Path, of_a_batch: bool) -> None:
    """One checkpoint, or those of one batch."""
    if not of_a_batch:
        shutil.rmtree(path)
        return
    for one in path.glob("?????????*"):
        if one.name.split(".")[0].isdecimal():
            shutil.rmtree(one)
    _remove_empty(path)


def _remove_empty(path: Path) -> None:
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def saved(folder: Path) -> str:
    """What is there to go on from, in words."""
    numbers = [int(p.name) for p in (folder / "checkpoints").glob("?????????")]
    batches = len([*(folder / "batches").glob("??????.npz")])
    if numbers:
        what = f"rounds 1 to {max(numbers)} are saved"
    elif batches:
        what = f"{batches} batch{'es are' if batches > 1 else ' is'} saved"
    else:
        return "nothing is saved"
    return f"{what}, and --resume goes on from there"


@contextmanager
def saying_what_is_saved(folder: Path) -> Iterator[None]:
    """What goes wrong with files in here is one line, which also says what is in the folder.

    Raises:
      SaveError: if the folder cannot be written; or for an OSError of where else the numbers of
        `fs.simulate` go, TensorBoard's files and the terminal.
    """
    try:
        yield
    except SaveError as error:
        raise SaveError(f"{error}; {saved(folder)}") from error
    except OSError as error:
        if not hasattr(error, "simulation"):
            raise
        raise SaveError(f"a round was not told of: {reason(error)}; {saved(folder)}") from error
