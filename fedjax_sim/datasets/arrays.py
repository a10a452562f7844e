"""Arrays by name from a NumPy archive."""

import zipfile
import zlib
from pathlib import Path

import numpy as np


def read_npz(file: Path, *names: str) -> list[np.ndarray]:
    """The arrays of these names in an .npz file.

    Raises:
      ValueError: if it is none, or has not all of them.
    """
    try:
        with np.load(file, allow_pickle=False) as found:
            return [found[name] for name in names]
    except (
        KeyError, ValueError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile,
        zlib.error,
    ) as error:  # fmt: skip
        why = str(error).split(".")[0]  # NumPy goes on with advice to load it unsafely
        raise ValueError(f"{file} must hold arrays {' and '.join(names)}: {why}") from None
