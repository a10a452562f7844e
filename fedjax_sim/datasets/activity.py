"""Shoulder exercises by wearer of a watch: motion at 50 Hz, ten people, seven exercises."""

import os
from pathlib import Path

import numpy as np

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.registry import declare
from fedjax_sim.datasets.arrays import read_npz
from fedjax_sim.datasets.fetching.cache import located
from fedjax_sim.datasets.types import FEATURES, Dataset, Facts

EXERCISES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
FILES = (("activity.npz",),)


@declare(
    "7 exercises of 10 wearers of a watch",
    facts=Facts("2nn", 10, FEATURES, fraction=0.3, natural=True),
)
def activity(path: str | os.PathLike[str] | None = None, length: int = 100) -> Dataset:
    """Which of seven exercises somebody does, from T samples of a watch: 10 clients.

    x: Float32[N, T, 6]: acceleration (g) and angular velocity (rad/s) along three axes, each less
    the mean and over the standard deviation of the training samples of all; y: Int32[N], as in
    `EXERCISES`. Windows follow each other without overlap; in each of the 140 recordings (10
    people, 7 exercises, 2 arms) the first four fifths of the windows train and the others test,
    and less than a window at the end is left out.

    Burns et al. 2018, Shoulder physiotherapy exercise recognition, Physiological Measurement 39;
    from PyPI's seglearn (BSD). All people are in both parts, so the test measures how well a model
    knows these wearers, not how well it generalises to new ones.

    Args:
      path: a folder with `activity.npz`; None for where `fetch` puts it.
      length: T; 100 are two seconds.

    Raises:
      FileNotFoundError: if it is not there: how to get it.
      ValueError: if T < 1, or no recording has two windows.
    """
    check_count("length", length)
    (file,) = located("activity", FILES, path)
    names = ("samples", "lengths", "exercise", "person")
    samples, lengths, labels, people = read_npz(file, *names)
    train: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    test: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    ends = np.cumsum(lengths)
    for start, end, label, person in zip(ends - lengths, ends, labels, people, strict=True):
        num_windows = (end - start) // length
        windows = samples[start : start + num_windows * length].reshape(num_windows, length, 6)
        cut = num_windows * 4 // 5
        for part, mine in ((train, windows[:cut]), (test, windows[cut:])):
            part.append((mine, np.full(len(mine), label), np.full(len(mine), person)))
    x, y, ids = (np.concatenate(column) for column in zip(*train, strict=True))
    x_test, y_test, test_ids = (np.concatenate(column) for column in zip(*test, strict=True))
    if not len(x):
        raise ValueError(f"length must leave a recording two windows; got {length}")
    mean, std = x.mean(axis=(0, 1), dtype=np.float64), x.std(axis=(0, 1), dtype=np.float64)

    def normal(x: np.ndarray) -> np.ndarray:
        return ((x - mean) / std).astype(np.float32)

    return Dataset(
        {"x": normal(x), "y": y.astype(np.int32)},
        {"x": normal(x_test), "y": y_test.astype(np.int32)},
        num_classes=len(EXERCISES),
        client_ids=ids.astype(np.int32),
        test_client_ids=test_ids.astype(np.int32),
    )


def convert(raw: Path, converted: Path) -> None:
    """The pickled dictionary, whose package was verified, as arrays without a pickle."""
    recordings = np.load(raw / "watch_dataset.npy", allow_pickle=True).item()
    if tuple(recordings["y_labels"]) != EXERCISES:
        raise ValueError(f"its exercises are {recordings['y_labels']}")
    np.savez(
        converted / "activity.npz",
        samples=np.concatenate(recordings["X"]).astype(np.float32),
        lengths=np.array([len(x) for x in recordings["X"]], np.int32),
        exercise=np.asarray(recordings["y"], np.int8),
        person=np.asarray(recordings["subject"], np.int8) - 1,
    )
