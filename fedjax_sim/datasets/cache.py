"""Where fetched data sets lie, and how one gets there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import platformdirs

Layouts = Sequence[Sequence[str]]  # sets of file names, any one of which is a whole data set


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


def located(name: str, layouts: Layouts, path: str | os.PathLike[str] | None) -> list[Path]:
    """The files of a data set, in `path` or where `fetch` puts them.

    Raises:
      FileNotFoundError: if they are not there: how to get them.
    """
    folder = directory() / name if path is None else Path(path).expanduser()
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

    A killed process leaves its folder and loses its lock, so whoever holds the lock may
    remove what is there.
    """
    import fcntl  # Unix has it; on other systems files are given by path

    top = directory()
    top.mkdir(parents=True, exist_ok=True)
    with (top / f".{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in top.glob(f".{name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=top))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def put(made: Path, place: Path) -> None:
    """Moves a finished folder to its place, in one step, once its files are on the disk."""
    for path in made.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    made.rename(place)
