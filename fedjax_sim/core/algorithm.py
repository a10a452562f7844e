"""An algorithm as an argument, and one of its clients before its first step."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import ClientOutput, FederatedAlgorithm, Params, PyTree, unpooled


class Start(NamedTuple):
    """A client of the first round that has taken no step: what it was sent, keeps and carries."""

    message: PyTree
    client_state: PyTree
    carry: PyTree


def as_algorithm(algorithm: Any) -> FederatedAlgorithm:
    """The algorithm; refuses a value that is none.

    Raises:
      ValueError: saying what was given, and of a factory that it must be called.
    """
    if not isinstance(algorithm, FederatedAlgorithm):
        algorithm_text = f"{algorithm!r}"
        if inspect.isfunction(algorithm):
            algorithm_text = f"the function {algorithm.__name__} itself: call it, as "
            algorithm_text += "fs.fedavg(loss_fn, client_optimizer, local)"
        raise ValueError(f"algorithm must be made by fs.fedavg or a sibling; got {algorithm_text}")
    return algorithm


def each_seen(algorithm: FederatedAlgorithm) -> FederatedAlgorithm:
    """The algorithm whose every client trains, because each one's own update must be seen.

    That its clients send a gradient, if they do, is still to be known.
    """
    if algorithm.pooled_gradient is None:
        return algorithm
    return algorithm._replace(pooled_gradient=unpooled)


def first_start(algorithm: FederatedAlgorithm, params: Params, examples: PyTree) -> Start:
    """A client that is sent the first model; its probe, where it has one, sees the first example.

    For shapes, under `jax.eval_shape`.

    Args:
      examples: leaves [N, ...]; () where no client probes.
    """
    message = algorithm.broadcast(algorithm.init(params), jnp.zeros((), jnp.int32))
    state, client = algorithm.init_client(params), algorithm.client
    probed: PyTree = ()
    if client.probe is not None:
        first = jax.tree.map(lambda x: x[:1], examples)
        probed = client.probe(message, state, first, jnp.ones(1, bool))
    return Start(message, state, client.init(message, state, probed, jax.random.key(0)))


def first_output(algorithm: FederatedAlgorithm, params: Params, examples: PyTree) -> ClientOutput:
    """What the client of `first_start` hands over; for shapes, as that."""
    message, state, carry = first_start(algorithm, params, examples)
    key, one_array = jax.random.key(0), jnp.ones((), jnp.int32)
    return algorithm.client.finish(carry, message, state, one_array, one_array, key)
