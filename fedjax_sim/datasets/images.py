"""MNIST and Fashion-MNIST, in the IDX files that they are published in."""

import gzip
import os
import zlib
from pathlib import Path

import numpy as np

from fedjax_sim.core.registry import declare
from fedjax_sim.datasets.fetching.cache import located
from fedjax_sim.datasets.types import Dataset, Facts

_PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
# The published names and those of some copies, each plain and gzipped.
IDX = tuple(
    tuple(f"{part}{dot}idx{3 if 'images' in part else 1}-ubyte{end}" for part in _PARTS)
    for end in ("", ".gz")
    for dot in ("-", ".")
)


@declare(
    "60,000 + 10,000 handwritten digits, 28x28",
    facts=Facts("2nn", 100),
)
def mnist(path: str | os.PathLike[str] | None = None) -> Dataset:
    """60,000 training and 10,000 test images of handwritten digits, in 10 classes.

    x: Float32[N, 28, 28, 1] in [0, 1], 0 the background; y: Int32[N]. In the files' order: the
    papers shuffle, or sort by label. LeCun, Cortes and Burges 1998; no licence is stated, so
    it is fetched (`fedjax-sim data fetch mnist`), not shipped.

    Args:
      path: a folder with the four IDX files, as published or gzipped; None for where `fetch`
        puts them.

    Raises:
      FileNotFoundError: if they are not there: how to get them.
      ValueError: if a file is not what it should be.
    """
    return _read_idx("mnist", path)


@declare(
    "60,000 + 10,000 clothes, 28x28",
    facts=Facts("2nn", 100, target=0.8),
)
def fashion_mnist(path: str | os.PathLike[str] | None = None) -> Dataset:
    """60,000 training and 10,000 test images of clothes, in 10 classes; in all else as `mnist`.

    x: Float32[N, 28, 28, 1] in [0, 1]; y: Int32[N]. Xiao, Rasul and Vollgraf 2017 (arXiv
    1708.07747), MIT.

    Args:
      path: as of `mnist`.

    Raises:
      FileNotFoundError: if they are not there: how to get them.
      ValueError: if a file is not what it should be.
    """
    return _read_idx("fashion_mnist", path)


def _read_idx(name: str, path: str | os.PathLike[str] | None) -> Dataset:
    x, y, x_test, y_test = (read_idx(file) for file in located(name, IDX, path))
    parts = []
    for images, labels in ((x, y), (x_test, y_test)):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{name} must have images [N, height, width] and labels [N]; got "
                f"{list(images.shape)} and {list(labels.shape)}"
            )
        scaled = images[..., None].astype(np.float32) / np.float32(255)
        parts.append({"x": scaled, "y": labels.astype(np.int32)})
    return Dataset(parts[0], parts[1], num_classes=10)


def read_idx(file: Path) -> np.ndarray:
    """UInt8[...] of an IDX file, gzipped or not: 0, 0, 8, the axes, their sizes, the bytes.

    Raises:
      ValueError: if it is no such file, or cut short.
    """
    content = file.read_bytes()
    try:
        content = gzip.decompress(content) if file.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is not a whole gzip file: {error}") from None
    start = 4 + 4 * content[3] if len(content) > 3 and content[:3] == b"\0\0\x08" else 0
    if not start or len(content) < start:
        raise ValueError(f"{file} must be an IDX file of bytes; it starts with {content[:4]!r}")
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    if len(content) - start != np.prod(shape, dtype=np.int64):
        raise ValueError(
            f"{file} must hold {shape} bytes behind its head; it holds {len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
