"""The folder of fetched data sets, and how a set is moved there whole or not at all."""

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
SUMS = "SHA256SUMS"  # the checksums of a fetched set's files, in the format of sha256sum


def directory() -> Path:
    """The data sets' folder: FEDJAX_SIM_DATA, or `fedjax_sim` in the user's cache."""
    configured = os.environ.get("FEDJAX_SIM_DATA")
    return (
        Path(configured).expanduser() if configured else platformdirs.user_cache_path("fedjax_sim")
    )


def present(folder: Path, layouts: Layouts) -> list[Path] | None:
    """The files of the first layout all of whose files exist; None if there is none."""
    for names in layouts:
        paths = [folder / name for name in names]
        if all(path.is_file() for path in paths):
            return paths
    return None


def damage(folder: Path) -> str | None:
    """Which file of a fetched set is missing or changed; None if none is, or if a user made it."""
    if not (folder / SUMS).is_file():
        return None
    sums = _sums(folder)
    for name, expected in sums.items():
        try:
            actual = sha256(folder / name)
        except (FileNotFoundError, IsADirectoryError):
            return f"{name} is missing"
        if actual != expected:
            return f"{name} has changed"
    return None if sums else f"{SUMS} is empty"


def whole(folder: Path, layouts: Layouts) -> bool:
    """Whether a data set is there and, if it was fetched, unchanged."""
    return present(folder, layouts) is not None and damage(folder) is None


def replaceable(folder: Path) -> bool:
    """Whether a data set's folder is missing, empty, or holds only files that a fetch put there."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or (SUMS in names and names <= {SUMS, *_sums(folder)})


def _sums(folder: Path) -> dict[str, str]:
    """Name -> SHA-256."""
    lines = (folder / SUMS).read_text(errors="replace").splitlines()
    return {name: checksum for checksum, _, name in (line.partition("  ") for line in lines)}


def located(name: str, layouts: Layouts, path: str | os.PathLike[str] | None) -> list[Path]:
    """The files of a data set, in `path` or where `fetch` puts them.

    Raises:
      FileNotFoundError: if they are not there: how to get them.
      ValueError: if they were fetched and have changed since: how to get them anew.
    """
    folder = directory() / name if path is None else Path(path).expanduser()
    if path is None and (problem := damage(folder)):
        raise ValueError(
            f"data set {name} in {folder} is damaged: {problem}; get it anew with: "
            f"fedjax-sim data fetch {name}"
        )
    files = present(folder, layouts)
    if files is not None:
        return files
    if path is None:
        raise FileNotFoundError(
            f"data set {name} is not in {folder}; get it with: fedjax-sim data fetch {name}"
        )
    names = layouts[0]
    listed = ", ".join(names) if len(names) < 7 else f"{names[0]}, {names[1]}, ..., {names[-1]}"
    raise FileNotFoundError(f"path must be a folder with {name}'s files ({listed}); got {folder}")


@contextmanager
def workplace(name: str) -> Iterator[Path]:
    """An empty folder beside the data set's, for one process at a time; it is removed after.

    A killed process leaves its folder behind and loses its lock, which is the operating system's
    (flock, or msvcrt's on Windows). So the process that holds the lock removes such folders.
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


def put(finished: Path, place: Path) -> None:
    """Moves a finished folder to its place by one rename, once its files are on the disk.

    A damaged set in that place is moved into the folder that `workplace` removes.
    """
    files = sorted(finished.iterdir())
    (finished / SUMS).write_text(
        "".join(f"{sha256(path)}  {path.name}\n" for path in files), newline="\n"
    )
    for path in finished.iterdir():
        with path.open("r+b") as file:  # Windows flushes only files that are open for writing
            os.fsync(file.fileno())
    if place.exists():
        place.rename(finished.with_name("replaced"))
    finished.rename(place)
