"""Federations from Hugging Face's `datasets`."""

from typing import Any

import numpy as np

from fedjax_sim.datasets.by_client import Examples, joined
from fedjax_sim.datasets.types import Dataset


def hugging_face(
    dataset: Any, client_column: str, x: str = "image", y: str = "label", test: Any = None
) -> Dataset:
    """A data set of Hugging Face, whose clients are the values of a column.

    Images (UInt8) become Float32 in [0, 1], grey ones [N, height, width, 1]; other columns are
    taken as Float32 or Int32. Clients in the order of their values. It must be in memory's reach.

    Args:
      dataset: a `datasets.DatasetDict` with train and test, or a `datasets.Dataset` with which
        `test` is given.
      client_column: the column that says whose an example is.
      x, y: the columns of inputs and of labels or targets.
      test: a `datasets.Dataset`; it needs no client_column.

    Raises:
      ValueError: for a column that is not there, with those that are, or one of several shapes.

    """
    if test is None:
        if not hasattr(dataset, "keys") or not {"train", "test"} <= set(dataset.keys()):
            raise ValueError(
                "dataset must have the splits train and test, unless test is given; got "
                f"{type(dataset).__name__}"
            )
        dataset, test = dataset["train"], dataset["test"]
    columns = _columns(dataset, {"client_column": client_column, "x": x, "y": y})
    inputs, targets = _numbers(columns[x], "x"), _numbers(columns[y], "y")
    names, ids = np.unique(columns[client_column], return_inverse=True)
    order = np.argsort(ids, kind="stable")
    cuts = np.cumsum(np.bincount(ids))[:-1]
    rows = np.split(order, cuts)
    train: dict[str, Examples] = {
        str(name): (inputs[mine], targets[mine]) for name, mine in zip(names, rows, strict=True)
    }
    columns = _columns(test, {"x": x, "y": y})
    return joined(train, {"all": (_numbers(columns[x], "x"), _numbers(columns[y], "y"))})


def _columns(dataset: Any, wanted: dict[str, str]) -> dict[str, Any]:
    for argument, name in wanted.items():
        if name not in dataset.column_names:
            raise ValueError(
                f"{argument} must be one of {', '.join(dataset.column_names)}; got {name!r}"
            )
    columns = list(dict.fromkeys(wanted.values()))
    return dict(dataset.select_columns(columns).with_format("numpy")[:])


def _numbers(column: Any, argument: str) -> np.ndarray:
    array = np.asarray(column)
    if array.dtype == object:
        raise ValueError(f"{argument} must have one shape in all examples; got several")
    if array.dtype == np.uint8 and array.ndim > 2:
        array = array.astype(np.float32) / np.float32(255)
        return array[..., None] if array.ndim == 3 else array
    return array
