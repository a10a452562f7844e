"""Params that are C models, leaves [C, ...]."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.checks import has_values
from fedjax_sim.core.types import Array, Params


def model_of(params: Params, number: Array | int) -> Params:
    """One of the models."""
    return jax.tree.map(lambda models: models[number], params)


def one_with_number(params: Params) -> tuple[Params, Array]:
    """What travels of C models that are 0 but for one: that one, and which it is; for shapes."""
    return model_of(params, 0), jnp.int32(0)


def best_of(losses: tuple[Array, Array]) -> Array:
    """Int[], the model of the least loss, by the sums [C] that a client has probed."""
    totals, _ = losses  # of the same examples, so that their order is that of the means
    return jnp.argmin(jnp.where(jnp.isnan(totals), jnp.inf, totals))


def check_models(params: Params, num_models: int) -> None:
    """Refuses params that are not C models, or C of which two are equal; of traced ones the shapes.

    Raises:
      ValueError: saying what they are.
    """
    leaves = jax.tree.leaves(params)
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        if x.shape[:1] != (num_models,):
            raise ValueError(
                f"params must hold num_models = {num_models} models, leaves [{num_models}, ...], "
                "as jax.vmap of a model's init over as many keys gives them; got "
                f"{x.dtype}{list(x.shape)} at params{jax.tree_util.keystr(path)}"
            )
    if not all(has_values(x) for x in leaves):
        return
    values = [np.asarray(x).reshape(num_models, -1) for x in leaves]
    first: dict[bytes, int] = {}
    for number in range(num_models):
        bits = b"".join(x[number].tobytes() for x in values)
        if first.setdefault(bits, number) != number:
            raise ValueError(
                f"params must hold {num_models} models that differ, since of equal ones the first "
                f"is always chosen; models {first[bits]} and {number} are equal"
            )
