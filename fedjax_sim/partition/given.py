"""Clients that are given with the data."""

from collections.abc import Hashable, Iterable

import numpy as np

from fedjax_sim.core.registry import declare


@declare("the clients that the data have of themselves")
def natural(ids: Iterable[Hashable]) -> np.ndarray:
    """Natural clients: writers, speakers, stations; any hashable ids as 0 to K - 1.

    Client k is the k-th id to appear, so `list(dict.fromkeys(ids))[k]` is its name.

    Args:
      ids: one for each example: numbers, strings, tuples, or an array of numbers or strings.

    Returns:
      Int[N], the client of each example.

    Raises:
      ValueError: if there is no id, one is not hashable, or one is NaN (which equals nothing).

    >>> natural(["Hamlet", "Ophelia", "Hamlet"]).tolist()
    [0, 1, 0]
    """
    number_of: dict[Hashable, int] = {}
    listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    client_ids = np.empty(len(listed), np.int32)
    for i, name in enumerate(listed):
        try:
            missing = bool(name != name)
            client_ids[i] = number_of.setdefault(name, len(number_of))
        except (TypeError, ValueError):
            raise ValueError(
                f"ids must be hashable, one for each example; got {type(name).__name__} at row {i}"
            ) from None
        if missing:
            raise ValueError(f"ids must not be missing; got {name!r} at row {i}")
    if not listed:
        raise ValueError("ids must hold at least one; got none")
    return client_ids
