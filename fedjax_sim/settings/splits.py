"""A setting's data, dealt to its clients: what they train on, and their part of the other sets."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim import partition
from fedjax_sim.core.randomness import HOLDOUT, TEST_PARTS, UNLABELLED, stream
from fedjax_sim.core.types import Array
from fedjax_sim.data import FederatedData
from fedjax_sim.datasets import Dataset
from fedjax_sim.settings.options import choose
from fedjax_sim.settings.resolved import DataChoice
from fedjax_sim.settings.user_data import keys, load


class Split(NamedTuple):
    """A data set, the client of each example that is trained on, and what no client trains on."""

    dataset: Dataset
    client_ids: np.ndarray  # Int[N]
    validation_ids: np.ndarray | None = None  # of the examples that are held out
    unlabelled: dict[str, np.ndarray] | None = None  # those of the server, without y


def split(choice: DataChoice) -> Split:
    """Loads and splits the data of a setting, its `data`.

    Raises:
      ValueError: if the split is impossible for the data.
      FileNotFoundError: if the data must be fetched first; the message says how.
    """
    options = dict(choice.options)
    seed = choice.partition_seed
    _, split_key = keys(seed)
    dataset = load(choose("dataset", choice.dataset), options, choice.clients, seed)
    client_ids = _client_ids(split_key, choice, options, dataset)
    unlabelled = None
    if choice.unlabelled is not None:
        rows = _held_out("unlabelled", UNLABELLED, client_ids, choice.unlabelled, seed)
        train, of_server = _parted(dataset.train, rows)
        unlabelled = {name: x for name, x in of_server.items() if name != "y"}
        dataset, client_ids = dataset._replace(train=train), client_ids[~rows]
    if choice.validation is None:
        return Split(dataset, client_ids, unlabelled=unlabelled)
    rows = _held_out("validation", HOLDOUT, client_ids, choice.validation, seed)
    train, validation = _parted(dataset.train, rows)
    dataset = dataset._replace(train=train, validation=validation)
    return Split(dataset, client_ids[~rows], client_ids[rows], unlabelled)


def _held_out(
    name: str, purpose: int, client_ids: np.ndarray, share: float, seed: int
) -> np.ndarray:
    """Bool[N], the share of each client's examples that it does not train on.

    Raises:
      ValueError: naming the setting, if no client can spare an example.
    """
    try:
        return partition.holdout(stream(jax.random.key(seed), purpose), client_ids, share)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _parted(
    examples: Mapping[str, np.ndarray], rows: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The examples without these rows, Bool[N], and these."""
    kept, taken = ({name: x[chosen] for name, x in examples.items()} for chosen in (~rows, rows))
    return kept, taken


def is_natural(choice: DataChoice, dataset: Dataset) -> bool:
    """Whether the clients are those that the data set itself has."""
    return choose("partition", choice.partition).takes("ids") and dataset.client_ids is not None


def _client_ids(
    key: Array, choice: DataChoice, options: Mapping[str, Any], dataset: Dataset
) -> np.ndarray:
    """Int[N], the client of each training example."""
    if is_natural(choice, dataset):
        # The split itself would number the clients anew, in order of their first appearance.
        assert dataset.client_ids is not None
        return dataset.client_ids
    labels = dataset.train["y"]
    return choose("partition", choice.partition).call(
        options, key=key, num_examples=len(labels), labels=labels, num_clients=choice.clients
    )


class Parts(NamedTuple):
    """Of each client its own part of what it does not train on.

    Attributes:
      test: the test set.
      validation: the validation set; None where there is none, or nobody says whose it is.
      has_own_test: whether the data set says whose each test example is; else they are dealt as
        those that are trained on.
      client_names: in the data set; None where a split has made the clients.
    """

    test: FederatedData
    validation: FederatedData | None
    has_own_test: bool
    client_names: tuple[str, ...] | None


@lru_cache(maxsize=4)  # few, because each entry holds a copy of the test set
def parts_of_clients(choice: DataChoice) -> Parts:
    """The test set split among the clients, and the validation set likewise if there is one.

    Natural clients have their own test examples if the data set says whose each is. Any other test
    set is split as the training set is, so that a client is tested on the classes it trains on.
    """
    with jax.ensure_compile_time_eval():  # a sweep may call this while it traces
        dealt = split(choice)
        dataset, validation_ids = dealt.dataset, dealt.validation_ids
        own_ids = _own_test_ids(choice, dataset)
        test_ids = _dealt_test_ids(choice, dealt) if own_ids is None else own_ids
        # A client that has test examples and no training examples has no model.
        has_model = test_ids < choice.clients
        test = {name: x[has_model] for name, x in dataset.test.items()}
        held_out = dataset.validation
        if validation_ids is None and held_out is not None:
            validation_ids = dataset.validation_client_ids
        validation = None
        if held_out is not None and validation_ids is not None:
            trains = validation_ids < choice.clients
            validation = FederatedData.from_arrays(
                {name: x[trains] for name, x in held_out.items()},
                validation_ids[trains],
                choice.clients,
            )
        names = dataset.client_names if is_natural(choice, dataset) else None
        return Parts(
            test=FederatedData.from_arrays(test, test_ids[has_model], choice.clients),
            validation=validation,
            has_own_test=own_ids is not None,
            client_names=None if names is None else tuple(names[: choice.clients]),
        )


def _own_test_ids(choice: DataChoice, dataset: Dataset) -> np.ndarray | None:
    """Int[N'], the client of each test example, where the data set says so and is split by that."""
    natural_ids = dataset.test_client_ids
    takes_ids = choose("partition", choice.partition).takes("ids")
    return np.asarray(natural_ids) if takes_ids and natural_ids is not None else None


def _dealt_test_ids(choice: DataChoice, dealt: Split) -> np.ndarray:
    """Int[N'], the client of each test example, as those that are trained on are dealt."""
    dataset = dealt.dataset
    labels, test_labels = dataset.train["y"], dataset.test["y"]
    of_classes = dataset.num_classes is not None and np.ndim(labels) == 1
    return partition.apply_to(
        stream(jax.random.key(choice.partition_seed), TEST_PARTS),
        dealt.client_ids,
        len(test_labels),
        labels=labels if of_classes else None,
        other_labels=test_labels if of_classes else None,
    )
