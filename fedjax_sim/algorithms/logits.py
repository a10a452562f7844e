"""Losses that tell their logits, as those from `fs.models.cross_entropy` do."""

import inspect
from collections.abc import Callable
from typing import Any

from fedjax_sim.core.types import Array, LossFn, Params, PyTree


def classifier_of(loss_fn: LossFn, why: str) -> Any:
    """The loss, which has `logits(params, batch)` and `of_logits(logits, batch)`.

    Args:
      why: what the logits are needed for.

    Raises:
      ValueError: for a loss that tells no logits.
    """
    if not all(callable(getattr(loss_fn, name, None)) for name in ("logits", "of_logits")):
        raise ValueError(
            "loss_fn must tell its logits, as fs.models.cross_entropy(apply) does, because they "
            f"are what is {why}, and a regression has none; got {loss_fn!r}"
        )
    return loss_fn


def training_logits(classifier: Any) -> Callable[[Params, PyTree, Array | None], Array]:
    """(params, batch, key) -> logits in a local step, with its dropout if it takes a key."""
    if len(inspect.signature(classifier.logits).parameters) > 2:
        return classifier.logits
    return lambda params, batch, key: classifier.logits(params, batch)
