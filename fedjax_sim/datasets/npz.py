"""Federations of one .npz file a client."""

import os

from fedjax_sim.datasets.arrays import read_npz
from fedjax_sim.datasets.by_client import Examples, halves, joined
from fedjax_sim.datasets.types import Dataset


def npz(directory: str | os.PathLike[str]) -> Dataset:
    """A federation in files: `train/<client>.npz` and `test/<client>.npz`, each of x and y.

    Clients in the order of their names. Images x (UInt8[n, height, width] or with channels)
    become Float32 in [0, 1], grey ones with one channel; all else is taken as Float32 or Int32.
    Whole numbers y are labels, else it is a regression.

    Args:
      directory: what holds train/ and test/.

    Raises:
      FileNotFoundError: if there are no such files.
      ValueError: if one has no x and y, or clients do not fit together.
    """
    parts = []
    for files in halves(directory, ".npz"):
        clients: dict[str, Examples] = {}
        for file in files:
            x, y = read_npz(file, "x", "y")
            clients[file.stem] = (x, y)
        parts.append(clients)
    return joined(*parts)
