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
      ValueError: for what is no data set, or a column that is not there (with those that are),
        of several shapes, or with clients or labels missing.
    """
    if test is None:
        if not hasattr(dataset, "keys") or not {"train", "test"} <= set(dataset.keys()):
            raise ValueError(
                "dataset must have the splits train and test, unless test is given; got "
                f"{type(dataset).__name__}"
            )
        dataset, test = dataset["train"], dataset["test"]
    columns = _columns("dataset", dataset, {"client_column": client_column, "x": x, "y": y})
    inputs, targets = _numbers(columns[x], "x"), _targets(columns[y], y)
    clients = np.asarray(columns[client_column])
    _check_none_missing("client_column", client_column, clients)
    names, ids = np.unique(clients, return_inverse=True)
    order = np.argsort(ids, kind="stable")
    cuts = np.cumsum(np.bincount(ids))[:-1]
    rows = np.split(order, cuts)
    train: dict[str, Examples] = {
        str(name): (inputs[mine], targets[mine]) for name, mine in zip(names, rows, strict=True)
    }
    columns = _columns("test", test, {"x": x, "y": y})
    return joined(train, {"all": (_numbers(columns[x], "x"), _targets(columns[y], y))})


def _columns(said: str, dataset: Any, wanted: dict[str, str]) -> dict[str, Any]:
    if not hasattr(dataset, "column_names"):
        raise ValueError(f"{said} must be a datasets.Dataset; got {type(dataset).__name__}")
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
    return array


def _targets(column: Any, name: str) -> np.ndarray:
    array = np.asarray(column)
    _check_none_missing("y", name, array)
    return _numbers(array, "y")


def _check_none_missing(argument: str, name: str, column: np.ndarray) -> None:
    """A missing one is None, or NaN where the others are numbers."""
    missing = sum(one is None for one in column) if column.dtype == object else 0
    if column.dtype.kind == "f":
        missing = int(np.isnan(column).sum())
    if missing:
        raise ValueError(
            f"{argument} must have a value in every example; {missing} of {len(column)} in "
            f"{name!r} have none"
        )
