"""Federations in HDF5, as FedJAX and TensorFlow Federated keep EMNIST."""

import os
from pathlib import Path

import numpy as np

from fedjax_sim.datasets.by_client import Examples, joined
from fedjax_sim.datasets.types import Dataset


def hdf5(
    path: str | os.PathLike[str], x: str = "pixels", y: str = "label", group: str = "examples"
) -> Dataset:
    """A federation in two HDF5 files, `/examples/<client>/{pixels,label}`.

    EMNIST's x is Float32[N, 28, 28, 1] in [0, 1], where the background is 1, not 0 as in `mnist`.
    Images [N, height, width] are given one channel, and UInt8 ones are divided by 255. Needs h5py,
    in the extra `data`.

    Args:
      path: a folder with one `*train*.h5` and one `*test*.h5` (`fed_emnist_train.h5`, ...).
      x, y: what a client's arrays are called.
      group: what holds the clients.

    Raises:
      ImportError: without h5py.
      FileNotFoundError: if the files are not there.
      ValueError: if a file is not of that form.
    """
    try:
        import h5py
    except ImportError:
        raise ImportError("hdf5 needs h5py; install the data extra: fedjax-sim[data]") from None
    folder, parts = Path(path).expanduser(), []
    for part in ("train", "test"):
        files = sorted(folder.glob(f"*{part}*.h5"))
        if len(files) != 1:
            raise FileNotFoundError(
                f"path must be a folder with one *{part}*.h5; got {path}, with {len(files)}"
            )
        clients: dict[str, Examples] = {}
        try:
            with h5py.File(files[0], "r") as file:
                for client, arrays in file[group].items():
                    pixels = arrays[x][()]
                    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
                    clients[client] = (pixels, np.asarray(arrays[y][()]))
        except (KeyError, OSError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{files[0]} must be HDF5 with /{group}/<client>/{{{x},{y}}}: {error}"
            ) from None
        parts.append(clients)
    return joined(*parts)
