"""One full-batch gradient of a client at the model it is sent: FedSGD's exchange, and Mime's first.

The message has the model as its `params`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.loss import mean_gradient, per_example, uses_key
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    ClientUpdate,
    LocalTraining,
    LossFn,
    Metrics,
    Params,
    PyTree,
)

ONE_FULL_BATCH = LocalTraining(epochs=1, batch_size=None, shuffle=False)


def full_gradient(loss_fn: LossFn) -> ClientUpdate:
    """A client that sends `-(1/n_k) sum_i grad loss_i(w_t)`, of `ONE_FULL_BATCH`."""
    gradient = mean_gradient(loss_fn)

    def init(message: Any, client_state: PyTree, probed: PyTree, key: Array) -> PyTree:
        return jax.tree.map(jnp.zeros_like, message.params)

    def step(
        carry: PyTree, message: Any, client_state: PyTree, *block: Any
    ) -> tuple[PyTree, Metrics]:
        return gradient(message.params, *block)

    def finish(carry: PyTree, message: Any, client_state: PyTree, *_: Any) -> ClientOutput:
        return ClientOutput(update=jax.tree.map(jnp.negative, carry), client_state=client_state)

    return ClientUpdate(init, step, finish)


def pooled_gradient(loss_fn: LossFn) -> Callable[..., tuple[PyTree, dict[str, Array]]]:
    """`FederatedAlgorithm.pooled_gradient` of clients that send what `full_gradient` says."""

    def pooled(
        message: Any, batch: PyTree, weights: Array, keys: Array
    ) -> tuple[PyTree, dict[str, Array]]:
        # One example and one key at a time, so that an example's draws depend on no other example.
        def values_of_example(params: Params, example: PyTree, key: Array) -> dict[str, Array]:
            batch = jax.tree.map(lambda x: x[None], example)
            values = per_example(loss_fn, params, batch, key)
            return {name: value[0] for name, value in values.items()}

        def objective(params: Params) -> tuple[Array, dict[str, Array]]:
            if not uses_key(loss_fn, params, batch, keys[0]):
                values = per_example(loss_fn, params, batch, keys[0])
            else:
                values = jax.vmap(values_of_example, (None, 0, 0))(params, batch, keys)
            return -jnp.sum(weights.astype(values["loss"].dtype) * values["loss"]), values

        return jax.grad(objective, has_aux=True)(message.params)

    return pooled
