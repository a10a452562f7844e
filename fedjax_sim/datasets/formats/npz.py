"""Federations of one .npz file for each client."""

import os

from fedjax_sim.datasets.arrays import pickled, read_npz
from fedjax_sim.datasets.files import halves
from fedjax_sim.datasets.formats.by_client import Examples, check_task, joined
from fedjax_sim.datasets.types import Dataset

# Python that converts PFLlib's files, once `directory` is set; a test runs it.
CONVERT = (
    "for file in pathlib.Path(directory).glob('*/*.npz'): "
    "data = numpy.load(file, allow_pickle=True)['data'].item(); "
    "numpy.savez(file, x=data['x'], y=data['y'])"
)


def npz(directory: str | os.PathLike[str], *, task: str | None = None) -> Dataset:
    """A federation in files: `train/<client>.npz` and `test/<client>.npz`, each of x and y.

    Clients in the natural order of their files' names (2 before 10), which are theirs. Images x
    (UInt8[n, height, width] or with channels) become Float32 in [0, 1], grey ones with one
    channel; all else is taken as Float32 or Int32. PFLlib's files, once converted, have images
    [n, channels, height, width], which `fs.models` want with the channels last.

    Args:
      directory: what holds train/ and test/.
      task: "classification" or "regression"; None: labels if every y is a whole number, be it
        written as a float, else a regression.

    Raises:
      FileNotFoundError: if there are no such files.
      ValueError: if one has no x and y, or pickled objects (as PFLlib's), which are not read: how
        to convert them; if clients do not fit together, or y the task.
    """
    check_task(task)
    parts = []
    for files in halves(directory, ".npz"):
        clients: dict[str, Examples] = {}
        for file in files:
            if entries := pickled(file):
                raise ValueError(
                    f"{file} holds pickled objects ({', '.join(entries)}), as PFLlib's files do, "
                    "and reading them may run what they say, so they are not read; if you trust "
                    f"who made them, make plain arrays of all of them once: {CONVERT}"
                )
            x, y = read_npz(file, "x", "y")
            clients[file.stem] = (x, y)
        parts.append(clients)
    return joined(*parts, task=task)
