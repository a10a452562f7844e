"""CIFAR-10, in the binary or the Python batches that it is published in."""

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core.registry import declare
from fedjax_sim.datasets.fetching.cache import located
from fedjax_sim.datasets.types import Dataset, Facts

_PARTS = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CIFAR10 = (tuple(f"{part}.bin" for part in _PARTS), _PARTS)
_ROW = 1 + 3 * 32 * 32  # a label; the red, green and blue plane
# Functions that the pickles of the Python batches may call: those that make arrays, under the names
# of old and new NumPy.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


@declare(
    "50,000 + 10,000 photographs, 32x32 in colour",
    facts=Facts("cnn", 100, target=0.6),
)
def cifar10(path: str | os.PathLike[str] | None = None) -> Dataset:
    """50,000 training and 10,000 test photographs, in 10 classes.

    x: Float32[N, 32, 32, 3] in [0, 1], red, green, blue (614 MB for training); y: Int32[N].
    Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images; no licence is stated,
    so it is fetched (`fedjax-sim data fetch cifar10`), not shipped. Papers subtract means; here
    none is subtracted, and a model may do so.

    Args:
      path: a folder with the binary (`data_batch_1.bin`, ...) or the Python (`data_batch_1`,
        ...) version; None for where `fetch` puts it, in binary.

    Raises:
      FileNotFoundError: if they are not there: how to get them.
      ValueError: if a file is not what it should be.
    """
    batches = [_read(file) for file in located("cifar10", CIFAR10, path)]
    parts = []
    for chosen in (batches[:-1], batches[-1:]):
        planes = np.concatenate([pixels for pixels, _ in chosen]).reshape(-1, 3, 32, 32)
        x = planes.transpose(0, 2, 3, 1).astype(np.float32, order="C") / np.float32(255)
        y = np.concatenate([labels for _, labels in chosen]).astype(np.int32)
        parts.append({"x": x, "y": y})
    return Dataset(parts[0], parts[1], num_classes=10)


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """UInt8[N, 3072] and the labels [N]."""
    content = file.read_bytes()
    if file.suffix == ".bin":
        if not content or len(content) % _ROW:
            raise ValueError(
                f"{file} must hold rows of {_ROW} bytes, a label and 32x32 pixels; it holds "
                f"{len(content)} bytes"
            )
        rows = np.frombuffer(content, np.uint8).reshape(-1, _ROW)
        pixels, labels = rows[:, 1:], rows[:, 0]
    else:
        batch = _arrays_only(content, file)
        try:
            pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
        except (KeyError, TypeError):
            raise ValueError(f"{file} must be a dictionary with data and labels") from None
        if labels.ndim != 1 or not labels.size or pixels.shape != (len(labels), _ROW - 1):
            raise ValueError(
                f"{file} must hold data [N, 3072] and labels [N]; got {list(pixels.shape)} and "
                f"{list(labels.shape)}"
            )
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{file} must hold labels 0 to 9; got {labels.min()} to {labels.max()}")
    return pixels, labels


def _arrays_only(content: bytes, file: Path) -> Any:
    """A pickle of dictionaries, lists and arrays; what would run code is refused."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in _ALLOWED:
                raise pickle.UnpicklingError(
                    f"it must hold arrays alone, and names {module}.{name}"
                )
            return super().find_class(module, name)

    try:
        return Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise any error
        raise ValueError(f"{file} is not a batch of CIFAR-10: {error}") from None


def convert(raw: Path, converted: Path) -> None:
    """PNGs, a row of 1,024 RGB pixels for each image, as binary batches."""
    from PIL import Image

    train = json.loads((raw / "train_lables.json").read_text())
    test = json.loads((raw / "test_lables.json").read_text())
    start = 0
    for part in _PARTS:
        with Image.open(raw / f"{part}.png") as image:
            pixels = np.asarray(image.convert("RGB"))  # [N, 1024, 3]
        rows = len(pixels)
        labels = test if part == "test_batch" else train[start : start + rows]
        start += rows
        if len(labels) != rows or pixels.shape[1:] != (1024, 3):
            raise ValueError(f"{part}.png has {pixels.shape} pixels, and {len(labels)} labels")
        planes = pixels.transpose(0, 2, 1).reshape(rows, -1)
        content = np.concatenate([np.asarray(labels, np.uint8)[:, None], planes], axis=1)
        (converted / f"{part}.bin").write_bytes(content.tobytes())
