"""The results folder: refused where it holds results, cleared of those alone."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # --help loads no results
    from fedjax_sim.results import Results

# Of runs, sweeps and comparisons, with what they go on from.
FILES = (
    "summary.json", "table.csv", "rounds.csv", "configuration.toml", "history.csv", "compare.png",
    "experiment.json", "sweep.json",
)  # fmt: skip
RUN, SWEEP = "experiment.json", "sweep.json"  # what `fs.simulate` and `fs.sweep` resume by


def check(folder: Path, resume: bool, overwrite: bool, marker: str) -> None:
    """Refuses a folder with results that are to be neither resumed nor replaced.

    Args:
      marker: `RUN` or `SWEEP`, the file that can be resumed.

    Raises:
      ValueError: if it holds results, or with resume others than those.
    """
    there = [name for name in FILES if (folder / name).exists()]
    if not there or overwrite:
        return
    holds = f"--out {folder} holds results already ({', '.join(there)})"
    if not resume:
        raise ValueError(f"{holds}; name another folder, or give --resume or --overwrite")
    others = {RUN, SWEEP} - {marker}
    if marker not in there and ("summary.json" in there or others & {*there}):
        raise ValueError(f"{holds}, which cannot be resumed by this command; give --overwrite")


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
        raise ValueError(f"--out {folder} cannot be written: {error.strerror}") from error
    if overwrite:
        clear(folder)


def clear(folder: Path) -> None:
    """Removes the files of earlier results, and nothing else."""
    for name in FILES:
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


def save(results: "Results", out: Path, summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The tables and the summary, or one line that says what is there without them."""
    try:
        return results.save(out, summary)
    except OSError as error:
        raise OSError(f"the tables were not written: {error.strerror}; {saved(out)}") from error
