"""An attack on what malicious clients train on: their labels."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fedjax_sim.core.checks import check_count, has_values
from fedjax_sim.core.registry import declare
from fedjax_sim.core.types import Array


@declare("each trains on its examples with the labels in reverse order")
def flip_labels(data: Any, malicious: ArrayLike, num_classes: int, labels: str = "y") -> Any:
    """The federation whose malicious clients hold label `num_classes - 1 - y` in place of y.

    They train honestly on it, so that nothing else of a round changes. Fang et al. 2020, "Local
    Model Poisoning Attacks to Byzantine-Robust Federated Learning" (arXiv 1911.11815), section 5.

    Args:
      data: an `fs.FederatedData` in memory, whose examples are a dict.
      malicious: Bool[K], may be traced.
      num_classes: C; labels are whole numbers in [0, C).
      labels: the name of the leaf that is changed.

    Raises:
      ValueError: for data without such labels, labels that are known and out of range, or malicious
        clients of another number of them.

    >>> import fedjax_sim as fs, numpy as np
    >>> data = fs.FederatedData.from_clients([{"y": np.array([0, 1])}, {"y": np.array([2, 2])}])
    >>> flip_labels(data, np.array([False, True]), 3).examples["y"].tolist()
    [0, 1, 0, 0]
    """
    num_classes = check_count("num_classes", num_classes)
    examples = getattr(data, "examples", None)
    if not isinstance(examples, dict) or labels not in examples:
        raise ValueError(
            f"data must be a federation in memory whose examples have {labels!r}; got "
            f"{type(data).__name__}"
            + (f" with {', '.join(examples)}" if isinstance(examples, dict) else "")
        )
    y: Array = examples[labels]
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"{labels} must be labels, whole numbers; got {y.dtype}")
    _check_are_classes(labels, y, num_classes)
    malicious = jnp.asarray(malicious)
    if malicious.dtype != bool or malicious.shape != (data.num_clients,):
        raise ValueError(
            f"malicious must be Bool[K] of the {data.num_clients} clients; got "
            f"{malicious.dtype}{list(malicious.shape)}"
        )
    # A row is the last client's that begins at it or before; those without examples begin there,
    # too, and come first. Rows behind the last client's are padding.
    rows = jnp.arange(y.shape[0], dtype=jnp.int32)
    client = jnp.searchsorted(jnp.asarray(data.offsets), rows, side="right") - 1
    is_flipped = malicious[jnp.clip(client, 0, data.num_clients - 1)]
    is_flipped = is_flipped.reshape(-1, *[1] * (y.ndim - 1))
    flipped = jnp.where(is_flipped, (num_classes - 1 - y).astype(y.dtype), y)
    return replace(data, examples={**examples, labels: flipped})


def _check_are_classes(name: str, labels: Array, num_classes: int) -> None:
    """Refuses labels that are known and out of range, which would be flipped to none of a class.

    Raises:
      ValueError: with one of them.
    """
    if not has_values(labels):
        return
    values = np.asarray(labels)
    wrong = values[(values < 0) | (values >= num_classes)]
    if wrong.size:
        raise ValueError(f"{name} must lie in [0, {num_classes}), the classes; got {wrong[0]}")
