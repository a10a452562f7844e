"""Data sets in stores: folders of a data set's parts, each a `fs.data.FederatedStore`."""

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core.files import replace_file, to_json
from fedjax_sim.data import FederatedData, FederatedStore, Source
from fedjax_sim.datasets import Dataset
from fedjax_sim.execution.machine import loaded
from fedjax_sim.settings.resolved import DataChoice
from fedjax_sim.settings.splits import parts_of_clients, split

TRAIN = "train/manifest.json"  # by which such a folder is told; it is written last
_PARTS = ("train", "validation", "test")
_FACTS = "dataset.json"


def stored(directory: str | os.PathLike[str], *, task: str | None = None) -> Dataset:
    """A data set in a folder of stores: `train`, `test` and perhaps `validation`.

    The examples are mapped, {"x", "y"} of each part, and read where they are looked at.

    Args:
      task: "classification" or "regression"; None: what the folder says, or labels if y is of
        integers.

    Raises:
      ValueError: naming the folder or the file that is off.
    """
    folder = Path(directory).expanduser()
    parts = {p: _opened(folder / p) for p in _PARTS if p != "validation" or (folder / p).is_dir()}
    number = parts["train"].num_clients
    for part, store in parts.items():
        if not isinstance(store.spec, dict) or set(store.spec) != {"x", "y"}:
            raise ValueError(f"{store.folder} must have examples of x and y; it has {store.spec}")
        if store.num_clients != number:
            raise ValueError(
                f"{store.folder} must be of the {number} clients of {folder / 'train'}, in the "
                f"same places; it is of {store.num_clients}"
            )
        if store.spec != parts["train"].spec:
            raise ValueError(f"{store.folder} must have examples as those of train, {part} too")
    columns = {part: store.mapped() for part, store in parts.items()}
    ids = {
        part: np.repeat(np.arange(number, dtype=np.int32), store.num_examples)
        for part, store in parts.items()
    }
    return Dataset(
        train=columns["train"],
        test=columns["test"],
        num_classes=_num_classes(folder, columns, task),
        client_ids=ids["train"],
        client_names=parts["train"].client_names,
        validation=columns.get("validation"),
        test_client_ids=ids["test"],
        validation_client_ids=ids.get("validation"),
    )


def _num_classes(folder: Path, columns: dict[str, Any], task: str | None) -> int | None:
    """As `dataset.json` says, or by the largest label; None for a regression."""
    path = folder / _FACTS
    if task is None and path.exists():
        facts: dict[str, Any] = json.loads(path.read_text())
        classes: int | None = facts["num_classes"]
        return classes
    labels = columns["train"]["y"].dtype.kind in "iu"
    if task == "classification" and not labels:
        raise ValueError(f"task of {folder} must be regression, since y is no integer")
    if task == "regression" or not labels:
        return None
    return 1 + max(int(part["y"].max()) for part in columns.values())


@lru_cache(maxsize=16)
def _opened(folder: Path) -> FederatedStore:
    return FederatedStore.open(folder)


def federation(choice: DataChoice, dataset: Dataset, client_ids: np.ndarray) -> Any:
    """What a setting's clients train on: the store itself, where its own split is asked for.

    With another split, or with a part of the examples held out, it is in memory.
    """
    folder = Path(choice.dataset).expanduser()
    if dataset.client_ids is client_ids and (folder / TRAIN).is_file():
        return _opened(folder / "train")
    return FederatedData.from_arrays(dataset.train, client_ids, choice.clients)


def in_memory(data: FederatedData | Source) -> FederatedData:
    """The federation in memory, for what measures clients' own models within a program.

    Raises:
      ValueError: for a source that does not fit, with the figures.
    """
    because = "clients' own models, or baselines, need it within the program"
    return loaded(data, "dataset", because) if isinstance(data, Source) else data


def write(choice: DataChoice, folder: Path) -> FederatedStore:
    """Writes a setting's data and their split as a folder that `stored` reads; returns train.

    Each client has its own part of the other sets.

    Raises:
      ValueError: if the folder exists.
      SaveError: if it cannot be written.
    """
    if (folder / TRAIN).exists():
        raise ValueError(f"out {folder} holds a data set already; name another folder")
    dealt = split(choice)
    dataset = dealt.dataset
    own = parts_of_clients(choice)
    train = FederatedData.from_arrays(dataset.train, dealt.client_ids, choice.clients)
    parts = {"test": own.test, "validation": own.validation, "train": train}
    folder.mkdir(parents=True, exist_ok=True)
    facts = to_json({"num_classes": dataset.num_classes})
    replace_file(folder / _FACTS, lambda file: file.write(facts))
    for part, data in parts.items():
        if data is not None:
            FederatedStore.write(folder / part, data, client_names=own.client_names)
    return FederatedStore.open(folder / "train")
