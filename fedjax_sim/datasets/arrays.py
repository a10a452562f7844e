"""Arrays by name from a NumPy archive."""

import zipfile
from pathlib import Path

import numpy as np

from fedjax_sim.core.files import DAMAGED

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(file: Path, *names: str) -> list[np.ndarray]:
    """The arrays of these names in an .npz file.

    Raises:
      ValueError: if it is no such file, or lacks one of them.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            return [archive[name] for name in names]
    except DAMAGED as error:
        why = str(error).split(".")[0]  # NumPy's next sentence advises to load it unsafely
        raise ValueError(f"{file} must hold arrays {' and '.join(names)}: {why}") from None


def pickled(file: Path) -> list[str]:
    """The names of an .npz file's arrays that are pickled objects, by their headers.

    Nothing is unpickled. A file that is no .npz has no such names; `read_npz` says what is wrong.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return [
                name.removesuffix(".npy") for name in archive.namelist() if _holds(archive, name)
            ]
    except DAMAGED:
        return []  # the file cannot be read, for which `read_npz` raises an error that names it


def _holds(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether an entry of an archive is an array of objects."""
    with archive.open(name) as entry:
        read_header = _HEADERS.get(np.lib.format.read_magic(entry))
        return read_header is not None and bool(read_header(entry)[2].hasobject)
