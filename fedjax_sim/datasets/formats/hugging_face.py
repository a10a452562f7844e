"""Federations from Hugging Face's `datasets`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_sim.datasets.files import natural_order
from fedjax_sim.datasets.formats.by_client import Examples, check_task, joined
from fedjax_sim.datasets.types import Dataset


def hugging_face(
    dataset: Any,
    client_column: str,
    x: str = "image",
    y: str = "label",
    test: Any = None,
    *,
    validation: Any = None,
    task: str | None = None,
) -> Dataset:
    """A data set of Hugging Face, whose clients are the values of a column.

    Images (UInt8) become Float32 in [0, 1], grey ones [N, height, width, 1]; other columns are
    taken as Float32 or Int32. Clients in the order of their values, texts in the natural one (f2
    before f10); these values are their names. The data set must fit in memory.

    A y that is declared as a `ClassLabel` has its `num_classes`, also where some do not occur.

    Args:
      dataset: a `datasets.DatasetDict` with train and test, and perhaps validation, or a
        `datasets.Dataset` with which `test` is given.
      client_column: the column that says whose an example is.
      x, y: the columns of inputs and of labels or targets.
      test: a `datasets.Dataset`; where it has the client_column, its examples are their clients'.
      validation: likewise; None for none beside what a DatasetDict has.
      task: "classification" or "regression"; None: labels if every y is a whole number, be it
        written as a float, else a regression.

    Raises:
      ValueError: for a value that is no data set; for a column that does not exist (naming those
        that do), has several shapes, or lacks clients or labels; if y is not of the task, or its
        classes differ in test.
    """
    check_task(task)
    if test is None:
        if not hasattr(dataset, "keys") or not {"train", "test"} <= set(dataset.keys()):
            raise ValueError(
                "dataset must have the splits train and test, unless test is given; got "
                f"{type(dataset).__name__}"
            )
        if validation is None and "validation" in dataset:
            validation = dataset["validation"]
        dataset, test = dataset["train"], dataset["test"]
    parts = {"train": dataset, "test": test, "validation": validation}
    parts = {name: part for name, part in parts.items() if part is not None}
    clients, pooled = {}, []
    for name, part in parts.items():
        column_of = {"client_column": client_column, "x": x, "y": y}
        if name != "train" and client_column not in getattr(part, "column_names", ()):
            pooled.append(name)
            del column_of["client_column"]
        columns = _columns("dataset" if name == "train" else name, part, column_of)
        examples = _numbers(columns[x], "x"), _targets(columns[y], y)
        if name in pooled:
            clients[name] = {"all": examples}
        else:
            clients[name] = _by_client(client_column, np.asarray(columns[client_column]), examples)
    num_classes = _declared_classes(parts, y)
    return joined(**clients, task=task, num_classes=num_classes, pooled=pooled)


def _by_client(name: str, values: np.ndarray, examples: Examples) -> dict[str, Examples]:
    """The examples of each value of the client column, in the order of the values."""
    _check_none_missing("client_column", name, values)
    names, ids = _named(values)
    rows = np.split(np.argsort(ids, kind="stable"), np.cumsum(np.bincount(ids))[:-1])
    inputs, targets = examples
    return {name: (inputs[mine], targets[mine]) for name, mine in zip(names, rows, strict=True)}


def _named(clients: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The clients' names in their order, and Int[N], the place of each example's client there."""
    values, ids = np.unique(clients, return_inverse=True)
    names = [_text(value) for value in values]
    if values.dtype.kind in "biuf":
        return names, ids
    order = sorted(range(len(names)), key=lambda i: natural_order(names[i]))
    return [names[i] for i in order], np.argsort(order)[ids]


def _text(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _declared_classes(parts: Mapping[str, Any], y: str) -> int | None:
    """`num_classes` of the `ClassLabel` that y is declared as; None if it is not."""
    declared: dict[str, Any] = {}
    for name, part in parts.items():
        feature = (getattr(part, "features", None) or {}).get(y)
        feature = getattr(feature, "feature", feature)  # a sequence has its elements' feature
        if hasattr(feature, "num_classes"):
            declared[name] = feature
    names = {part: getattr(feature, "names", None) for part, feature in declared.items()}
    for part, classes in names.items():
        first = next(iter(names))
        if classes != names[first]:
            raise ValueError(
                f"y must have the same classes in {first} and {part}; got {names[first]} and "
                f"{classes}"
            )
    return next(iter(declared.values())).num_classes if declared else None


def _columns(argument_name: str, dataset: Any, column_of: dict[str, str]) -> dict[str, Any]:
    if not hasattr(dataset, "column_names"):
        raise ValueError(
            f"{argument_name} must be a datasets.Dataset; got {type(dataset).__name__}"
        )
    for argument, name in column_of.items():
        if name not in dataset.column_names:
            raise ValueError(
                f"{argument} must be one of {', '.join(dataset.column_names)}; got {name!r}"
            )
    columns = list(dict.fromkeys(column_of.values()))
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
    """Refuses a column with missing values: None, or NaN among numbers."""
    missing = sum(value is None for value in column) if column.dtype == object else 0
    if column.dtype.kind == "f":
        missing = int(np.isnan(column).sum())
    if missing:
        raise ValueError(
            f"{argument} must have a value in every example; {missing} of {len(column)} in "
            f"{name!r} have none"
        )
