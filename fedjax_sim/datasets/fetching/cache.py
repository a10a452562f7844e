"""Where fetched data sets lie, and how one gets there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock

from fedjax_sim.datasets.fetching.archives import sha256

Layouts = Sequence[Sequence[str]]  # sets of file names, any one of which is a whole data set
SUMS = "SHA256SUMS"  # of a fetched set's files, as sha256sum writes and checks them


def directory() -> Path:
    """The data sets' folder: FEDJAX_SIM_DATA, or `fedjax_sim` in the user's cache."""
    given = os.environ.get("FEDJAX_SIM_DATA")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("fedjax_sim")


def present(folder: Path, layouts: Layouts) -> list[Path] | None:
    """The files of the first layout that is there in full; None if none is."""
    for names in layouts:
        paths = [folder / name for name in names]
        if all(path.is_file() for path in paths):
            return paths
    return None


def damage(folder: Path) -> str | None:
    """Which file of a fetched set is not as it was put there; None if all are, or for a user's."""
    if not (folder / SUMS).is_file():
        return None
    sums = _sums(folder)
    for name, wanted in sums.items():
        try:
            found = sha256(folder / name)
        except (FileNotFoundError, IsADirectoryError):
            return f"{name} is missing"
        if found != wanted:
            return f"{name} has changed"
    return None if sums else f"{SUMS} is empty"


def whole(folder: Path, layouts: Layouts) -> bool:
    """Whether a data set is there, and if it was fetched, as it was put there."""
    return present(folder, layouts) is not None and damage(folder) is None


def replaceable(folder: Path) -> bool:
    """Whether there is nothing in a data set's place but what a fetch put there."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    there = {path.name for path in folder.iterdir()}
    return not there or (SUMS in there and there <= {SUMS, *_sums(folder)})


def _sums(folder: Path) -> dict[str, str]:
    """Name -> SHA-256."""
    lines = (folder / SUMS).read_text(errors="replace").splitlines()
    return {name: wanted for wanted, _, name in (line.partition("  ") for line in lines)}


def located(name: str, layouts: Layouts, path: str | os.PathLike[str] | None) -> list[Path]:
    """The files of a data set, in `path` or where `fetch` puts them.

    Raises:
      FileNotFoundError: if they are not there: how to get them.
      ValueError: if they were fetched and have changed since: how to get them anew.
    """
    folder = directory() / name if path is None else Path(path).expanduser()
    if path is None and (what := damage(folder)):
        raise ValueError(
            f"data set {name} in {folder} is damaged: {what}; get it anew with: "
            f"fedjax-sim data fetch {name}"
        )
    found = present(folder, layouts)
    if found is not None:
        return found
    if path is None:
        raise FileNotFoundError(
            f"data set {name} is not in {folder}; get it with: fedjax-sim data fetch {name}"
        )
    one = layouts[0]
    listed = ", ".join(one) if len(one) < 7 else f"{one[0]}, {one[1]}, ..., {one[-1]}"
    raise FileNotFoundError(f"path must be a folder with {name}'s files ({listed}); got {folder}")


@contextmanager
def workplace(name: str) -> Iterator[Path]:
    """An empty folder beside the data set's, for one process at a time; it is removed after.

    A killed process leaves its folder and loses its lock, which is the system's (flock, or msvcrt's
    on Windows), so whoever holds the lock may remove what is there.
    """
    top = directory()
    top.mkdir(parents=True, exist_ok=True)
    with FileLock(top / f".{name}.lock"):
        for left in top.glob(f".{name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=top))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def put(made: Path, place: Path) -> None:
    """Moves a finished folder to its place, in one step, once its files are on the disk.

    A damaged set that is there goes first, into what `workplace` removes.
    """
    files = sorted(made.iterdir())
    (made / SUMS).write_text(
        "".join(f"{sha256(path)}  {path.name}\n" for path in files), newline="\n"
    )
    for path in made.iterdir():
        with path.open("r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
    if place.exists():
        place.rename(made.with_name("replaced"))
    made.rename(place)
