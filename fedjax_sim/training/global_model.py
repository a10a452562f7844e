"""Whether the server's params are one whole model."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import FederatedAlgorithm, FederatedState
from fedjax_sim.data import FederatedData
from fedjax_sim.training.own_models import own_model
from fedjax_sim.transforms.sharing import WithPersonal


def has_global_model(
    algorithm: FederatedAlgorithm, state: FederatedState, data: FederatedData
) -> bool:
    """Whether `state.params` is a model that a client without one of its own could use.

    It is not where clients keep a part of it (`fs.partial`), whose place has the first model's
    values, nor where it is several models (`fs.ifca`), leaves `[C, ...]`. From shapes alone.
    """

    def is_kept(x: Any) -> bool:
        return isinstance(x, WithPersonal)

    if any(map(is_kept, jax.tree.leaves(state.clients, is_leaf=is_kept))):
        return False
    model = jax.eval_shape(lambda: own_model(algorithm, state, data, jnp.int32(0)))
    return _shapes(model) == _shapes(state.params)


def _shapes(tree: Any) -> Any:
    return jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]
