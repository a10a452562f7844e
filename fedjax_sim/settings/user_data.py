"""Loads data sets, and derives the facts of a user's own from its arrays."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.randomness import PARTITION, stream
from fedjax_sim.core.registry import Declaration
from fedjax_sim.core.types import Array
from fedjax_sim.datasets import Dataset
from fedjax_sim.datasets.types import Facts, facts_from
from fedjax_sim.settings.rooms import declarations
from fedjax_sim.settings.user_files import called

_CLIENTS = 10  # given to a function that takes their number, where the user names none


def keys(seed: int) -> tuple[Array, Array]:
    """One key for the data and one for their split, of `partition_seed`.

    One split serves all seeds of a run, so that these differ in training only.
    """
    data_key, split_key = jax.random.split(stream(jax.random.key(seed), PARTITION))
    return data_key, split_key


def facts_of(dataset: Declaration, values: Mapping[str, Any]) -> Facts:
    """The declared facts; for a user's own data, which are loaded for that, derived ones.

    Raises:
      ValueError: if they cannot be loaded.
    """
    if dataset.facts is not None:
        return dataset.facts
    options = {o.name: values.get(o.name, o.default) for o in dataset.options}
    for option in dataset.options:
        if options[option.name] is not None:
            option.check(options[option.name])
    loaded = load(
        dataset,
        {name: value for name, value in options.items() if value is not None},
        values.get("clients"),
        values["partition_seed"],
    )
    return facts_from(loaded, fixed=not dataset.takes("num_clients", "num_regions"))


def load(
    dataset: Declaration, options: Mapping[str, Any], clients: int | None, seed: int
) -> Dataset:
    """Loads the examples; a user's own are cached for several settings.

    Raises:
      ValueError: if a user's own cannot be loaded.
      FileNotFoundError: if they must be fetched first; the message says how.
    """
    if dataset.name in declarations("dataset"):
        return _call(dataset, options, clients, seed)
    return _loaded(dataset, tuple(options.items()), clients, seed)


def _call(
    dataset: Declaration, options: Mapping[str, Any], clients: int | None, seed: int
) -> Dataset:
    count = _CLIENTS if clients is None else clients

    def call() -> Dataset:
        # Only where it is asked for, because a key starts JAX, before the cores are asked for.
        key = keys(seed)[0] if dataset.takes("key") else None
        return dataset.call(options, key=key, num_clients=count, num_regions=count)

    return called("dataset", dataset.name, call, Dataset, "an fs.datasets.Dataset")


@lru_cache(maxsize=4)
def _loaded(
    dataset: Declaration, options: tuple[tuple[str, Any], ...], clients: int | None, seed: int
) -> Dataset:
    loaded = _call(dataset, dict(options), clients, seed)
    for part in ("train", "test"):
        examples = getattr(loaded, part)
        lengths = {name: len(np.asarray(x)) for name, x in examples.items() if name in ("x", "y")}
        if len(lengths) != 2 or len({*lengths.values()}) != 1 or not lengths["y"]:
            raise ValueError(
                f"dataset {dataset.name} must have x and y of equally many examples in {part}; got "
                f"{lengths or 'neither'}"
            )
    return loaded
