"""Joins the examples of several clients in one data set."""

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from fedjax_sim.datasets.types import Dataset

Examples = tuple[np.ndarray, np.ndarray]  # x[n, ...], y[n, ...]
Clients = Mapping[str, Examples]

TASKS = ("classification", "regression")
# Whole numbers that are written as floats may be labels, or targets such as prices. If they would
# make more classes than this and than there are examples, the user must say which they are.
_MANY_CLASSES = 1000
_TARGETS = 'targets of a regression need task="regression"'


def joined(
    train: Clients,
    test: Clients,
    validation: Clients | None = None,
    *,
    task: str | None = None,
    num_classes: int | None = None,
    pooled: Collection[str] = (),
) -> Dataset:
    """One data set of all clients, in the order of `train`, by whose keys they are named.

    A client that other parts alone have comes behind those of `train`.

    x is Int32 if it is of whole numbers in all parts, else Float32. Images x,
    UInt8[n, height, width] or with channels, become Float32[n, height, width, channels] in
    [0, 1]. y is Int32, labels, or Float32, targets of a regression.

    Args:
      train, test, validation: the examples of each client; None for no validation part.
      task: "classification" or "regression"; None: labels if every y is a whole number, be it
        written as a float (4.0), else a regression.
      num_classes: as declared with the labels; None for the largest label plus one.
      pooled: names of parts without clients, whose keys are then no clients' names.

    Raises:
      ValueError: if there are no examples, a client's x and y differ in number, or clients in
        shape, or train and test and their clients in whether images are of bytes; if `task` is
        not what y can be, or y does not tell which it is.
    """
    check_task(task)
    parts = {"train": train, "test": test}
    parts |= {} if validation is None else {"validation": validation}
    for part, clients in parts.items():
        _check(clients, part)
    _check_alike(parts)
    labels = task != "regression" and _are_labels(parts, task)
    whole = all(x.dtype.kind in "iub" for _, _, x in _arrays(parts, "x"))
    columns = {
        part: {"x": _inputs(clients, part, whole), "y": _column(clients, part, "y", labels)}
        for part, clients in parts.items()
    }
    of_clients = {part: clients for part, clients in parts.items() if part not in pooled}
    names = tuple(dict.fromkeys(name for clients in of_clients.values() for name in clients))
    place = {name: k for k, name in enumerate(names)}

    def client_ids(clients: Clients) -> np.ndarray:
        places = np.array([place[name] for name in clients], np.int32)
        return np.repeat(places, [len(y) for _, y in clients.values()])

    ids = {part: client_ids(clients) for part, clients in of_clients.items()}
    return Dataset(
        train=columns["train"],
        test=columns["test"],
        num_classes=_num_classes(parts, columns, task, num_classes) if labels else None,
        client_ids=ids["train"],
        client_names=names,
        validation=columns.get("validation"),
        test_client_ids=ids.get("test"),
        validation_client_ids=ids.get("validation"),
    )


def check_task(task: str | None) -> None:
    """Refuses a name that is no task.

    Raises:
      ValueError: saying what is allowed.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"task must be {' or '.join(TASKS)}, or None; got {task!r}")


def with_channel(x: np.ndarray) -> np.ndarray:
    """Images [n, height, width] as [n, height, width, 1]; other arrays unchanged."""
    return x[..., None] if x.ndim == 3 else x


def _arrays(parts: Mapping[str, Clients], name: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """The part, the client and the array of each client that has examples."""
    for part, clients in parts.items():
        for client, examples in clients.items():
            array = examples["xy".index(name)]
            if len(array):
                yield part, client, array


def _check(clients: Clients, part: str) -> None:
    """Refuses a part that is no federation; the parts are compared by `_check_alike`."""
    for client, (x, y) in clients.items():
        if not x.ndim or not y.ndim:
            raise ValueError(f"client {client} of {part} must have arrays; got a number")
        if len(x) != len(y):
            raise ValueError(
                f"client {client} of {part} must have an x for each y; got {len(x)} and {len(y)}"
            )
        for array in (x, y) if len(y) else ():
            if array.dtype.kind not in "fiub":
                raise ValueError(f"client {client} of {part} must have numbers; got {array.dtype}")
    if not any(len(y) for _, y in clients.values()):
        raise ValueError(f"{part} must hold at least one example; got none")


def _check_alike(parts: Mapping[str, Clients]) -> None:
    """Refuses clients whose examples have several shapes, or images of several kinds."""
    for name in "xy":
        first: dict[str, tuple[str, np.ndarray]] = {}
        for part, client, array in _arrays(parts, name):
            first_client, like = first.setdefault(part, (client, array))
            if array.shape[1:] != like.shape[1:]:
                raise ValueError(
                    f"clients of {part} must have examples of one shape; got "
                    f"{list(array.shape[1:])} of client {client}, and {list(like.shape[1:])}"
                    f" of client {first_client}"
                )
    images = [x for _, _, x in _arrays(parts, "x") if x.ndim > 2]
    if len({_are_bytes(x) for x in images}) > 1:
        types = sorted({str(x.dtype) for x in images})
        raise ValueError(
            f"images must be of bytes everywhere, or nowhere; got {' and '.join(types)}"
        )
    for name in "xy":
        shapes: dict[str, list[int]] = {}
        for part, _, array in _arrays(parts, name):
            shapes.setdefault(part, list(array.shape[1:]))
        for part, shape in shapes.items():
            if shape != shapes["train"]:
                raise ValueError(
                    f"{name} must be alike in train and {part}; got examples of shape "
                    f"{shapes['train']} and {shape}"
                )


def _are_labels(parts: Mapping[str, Clients], task: str | None) -> bool:
    """Whether y are labels: by `task` or, without one, if all are whole numbers."""
    for part, client, y in _arrays(parts, "y"):
        if y.dtype.kind == "f" and (broken := y[~np.isfinite(y) | (y != np.rint(y))]).size:
            if task is None:
                return False
            raise ValueError(
                f"y must be whole numbers, as task is classification; got {broken[0]} of client "
                f"{client} of {part}"
            )
    return True


def _num_classes(
    parts: Mapping[str, Clients],
    columns: Mapping[str, Mapping[str, np.ndarray]],
    task: str | None,
    declared: int | None,
) -> int:
    """The number of classes of labels, which are checked."""
    labels = [column["y"] for column in columns.values()]
    least, largest = min(int(y.min()) for y in labels), max(int(y.max()) for y in labels)
    if least < 0:
        raise ValueError(f"y must be labels from 0 up; got a negative one, {least} ({_TARGETS})")
    if declared is not None and largest >= declared:
        raise ValueError(f"y must be labels below the {declared} classes declared; got {largest}")
    floats = any(y.dtype.kind == "f" for _, _, y in _arrays(parts, "y"))
    if floats and task is None and largest >= max(_MANY_CLASSES, len(labels[0])):
        raise ValueError(
            f"y are whole numbers up to {largest}, written as floats, which may be labels or "
            'targets: say task="classification" or task="regression"'
        )
    return 1 + largest if declared is None else declared


def _are_bytes(x: np.ndarray) -> bool:
    """Whether x are images of bytes, which are then scaled to [0, 1]."""
    return x.dtype == np.uint8 and x.ndim > 2


def _inputs(clients: Clients, part: str, whole: bool) -> np.ndarray:
    images = [x for x, _ in clients.values() if len(x)]
    if not _are_bytes(images[0]):
        return _column(clients, part, "x", whole)
    scaled = np.concatenate(images).astype(np.float32) / np.float32(255)
    return with_channel(scaled)


def _column(clients: Clients, part: str, name: str, whole: bool) -> np.ndarray:
    """The clients' arrays one after another: Int32 of whole numbers, else Float32."""
    arrays = [examples["xy".index(name)] for examples in clients.values()]
    column = np.concatenate([array for array in arrays if len(array)])
    if not whole:
        return column.astype(np.float32)
    limits = np.iinfo(np.int32)
    for extreme in (column.max(), column.min()):
        if not limits.min <= int(extreme) <= limits.max:
            hint = f" ({_TARGETS})" if name == "y" else ""
            raise ValueError(f"{part} must hold whole numbers of 32 bits; got {extreme}{hint}")
    return column.astype(np.int32)
