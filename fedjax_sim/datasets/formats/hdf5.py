"""Federations in HDF5, as TensorFlow Federated keeps EMNIST."""

import os

import numpy as np

from fedjax_sim.datasets.files import Pair, natural_order, pair
from fedjax_sim.datasets.formats.by_client import Examples, check_task, joined, with_channel
from fedjax_sim.datasets.types import Dataset


def hdf5(
    path: str | os.PathLike[str] | Pair,
    x: str = "pixels",
    y: str = "label",
    group: str = "examples",
    *,
    task: str | None = None,
) -> Dataset:
    """A federation in two HDF5 files, `/examples/<client>/{pixels,label}`.

    EMNIST's x is Float32[N, 28, 28, 1] in [0, 1], where the background is 1, not 0 as in `mnist`.
    Images [N, height, width] are given one channel, and UInt8 ones are divided by 255. Clients in
    the natural order of their groups' names (f2 before f10), which are theirs. Needs h5py, in the
    extra `data`. FedJAX keeps its data sets in SQLite: see `sqlite`.

    Args:
      path: a folder with one `*train*.h5` and one `*test*.h5` (`fed_emnist_train.h5`, ...), or
        the two files, (train, test).
      x, y: what a client's arrays are called.
      group: what holds the clients.
      task: "classification" or "regression"; None: labels if every y is a whole number, be it
        written as a float, else a regression.

    Raises:
      ImportError: without h5py.
      FileNotFoundError: if the files are not there.
      ValueError: if there are several such files, or one is not of that form, or y not of the
        task.
    """
    check_task(task)
    try:
        import h5py
    except ImportError:
        raise ImportError("hdf5 needs h5py; install the data extra: fedjax-sim[data]") from None
    parts = []
    for path_of_part in pair(path, ".h5"):
        clients: dict[str, Examples] = {}
        try:
            with h5py.File(path_of_part, "r") as file:
                for client in sorted(file[group], key=natural_order):
                    arrays = file[group][client]
                    inputs = np.asarray(arrays[x][()])
                    clients[client] = (with_channel(inputs), np.asarray(arrays[y][()]))
        except (KeyError, OSError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path_of_part} must be HDF5 with /{group}/<client>/{{{x},{y}}}: {error}"
            ) from None
        parts.append(clients)
    return joined(*parts, task=task)
