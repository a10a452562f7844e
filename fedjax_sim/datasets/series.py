"""Forecasting: windows of several clients' pasts, the values that follow, and scaling."""

from collections.abc import Sequence

import numpy as np

from fedjax_sim.datasets.types import Dataset


def forecasting(
    series: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    length: int,
    train_share: float = 0.8,
    scaled: int | None = None,
    *,
    names: tuple[str, ...] | None = None,
) -> Dataset:
    """Each client's next value from its last T steps, split in time.

    The first `train_share` of a client's steps are its training steps. An example belongs to the
    part that its target is in, so the first test examples look back at training steps, as a
    forecast would. Examples with a gap (NaN) are left out. The first `scaled` features are
    standardised by mean and standard deviation of the training steps, and targets by those of the
    training targets; both are of all clients together, so that differences between clients remain.

    Args:
      series: K arrays Float[steps, F].
      targets: K arrays Float[steps].
      length: T.
      scaled: None for all F.
      names: of the clients.

    Returns:
      x: Float32[N, T, F], y: Float32[N], client k's examples in time; regression.

    Raises:
      ValueError: for a T that leaves nothing to train on, or to test on.
    """
    if length >= (fewest := min(len(steps) for steps in series)):
        raise ValueError(f"length must be below a client's {fewest} steps; got {length}")
    cuts = [int(len(steps) * train_share) for steps in series]
    training_steps = np.concatenate(
        [s[:cut] for s, cut in zip(series, cuts, strict=True)], dtype=float
    )
    num_scaled = training_steps.shape[1] if scaled is None else scaled
    mean, std = np.nanmean(training_steps, axis=0), np.nanstd(training_steps, axis=0)
    mean[num_scaled:], std[num_scaled:] = 0, 1
    future = np.concatenate([t[:cut] for t, cut in zip(targets, cuts, strict=True)], dtype=float)
    middle, spread = np.nanmean(future), np.nanstd(future)
    train: list[tuple[np.ndarray, np.ndarray]] = []
    test: list[tuple[np.ndarray, np.ndarray]] = []
    for steps, target, cut in zip(series, targets, cuts, strict=True):
        normal = ((steps - mean) / std).astype(np.float32)
        y = ((target - middle) / spread).astype(np.float32)[length:]
        x = np.lib.stride_tricks.sliding_window_view(normal, length, axis=0)[:-1]
        x = x.transpose(0, 2, 1)
        whole = np.isfinite(x).all(axis=(1, 2)) & np.isfinite(y)
        early = np.arange(length, len(steps)) < cut
        train.append((x[whole & early], y[whole & early]))
        test.append((x[whole & ~early], y[whole & ~early]))
    parts = []
    for part in (train, test):
        x, y = (np.concatenate(column) for column in zip(*part, strict=True))
        if not len(y):
            purpose = "train" if part is train else "test"
            raise ValueError(f"length must leave examples to {purpose} on; got {length}")
        parts.append({"x": x, "y": y})
    client_ids = [
        np.repeat(np.arange(len(series), dtype=np.int32), [len(y) for _, y in part])
        for part in (train, test)
    ]
    return Dataset(
        parts[0],
        parts[1],
        num_classes=None,
        client_ids=client_ids[0],
        client_names=names,
        test_client_ids=client_ids[1],
    )


def on_a_circle(turns: np.ndarray) -> np.ndarray:
    """Float[N, 2]: sine and cosine of an angle in turns, which has no jump at midnight or north.

    >>> on_a_circle(np.array([0.25])).round(6).tolist()
    [[1.0, 0.0]]
    """
    return np.stack([np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns)], axis=1)
