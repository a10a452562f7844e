"""Where a message, a carry or a state has the model."""

from dataclasses import replace
from typing import Any

from fedjax_sim.core.types import Params


def model_of(tree: Any) -> Any:
    """The model of a message or a carry: its field `params`, or that of its `descent`; or None."""
    return getattr(
        tree if hasattr(tree, "params") else getattr(tree, "descent", None), "params", None
    )


def with_model(tree: Any, params: Params) -> Any:
    """A message or a carry with another model."""
    if hasattr(tree, "params"):
        return _replaced(tree, params=params)
    return _replaced(tree, descent=_replaced(tree.descent, params=params))


def _replaced(tree: Any, **fields: Any) -> Any:
    """A NamedTuple or a dataclass with other values of these fields."""
    return tree._replace(**fields) if hasattr(tree, "_replace") else replace(tree, **fields)
