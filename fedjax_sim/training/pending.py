"""The results of clients in training: before the first round, and whether a state has its own."""

import jax
import jax.numpy as jnp

from fedjax_sim.core.asynchrony import Pending
from fedjax_sim.core.checks import check_same_spec
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    FederatedAlgorithm,
    FederatedState,
    Params,
    PyTree,
)
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.client import Engine


def no_pending(
    algorithm: FederatedAlgorithm, params: Params, client_state: PyTree, data: FederatedData
) -> Pending | tuple[()]:
    """What is pending before round 0, when nobody trains; () of an algorithm that is synchronous.

    Args:
      client_state: of one client.

    Raises:
      ValueError: if models are mixed, and what a client sends is not of the model's shapes.
    """
    asynchrony = algorithm.asynchrony
    if asynchrony is None:
        return ()
    output = _shapes(algorithm, params, client_state, data)
    if asynchrony.mixes_models:
        check_is_difference(params, output.update)
    number = asynchrony.concurrency

    def zeros(tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x: jnp.broadcast_to(jnp.zeros((), x.dtype), (number, *x.shape)), tree
        )

    def ids() -> Array:
        return jnp.zeros(number, jnp.int32)

    def none() -> Array:
        return jnp.zeros(number, bool)

    return Pending(
        update=zeros(output.update),
        total=zeros(output.total),
        client_state=jax.tree.map(
            lambda x: jnp.broadcast_to(x, (number, *jnp.shape(x))), client_state
        ),
        client_ids=ids(),
        version=ids(),
        seconds=jnp.zeros(number, asynchrony.clock.step_seconds.dtype),
        counted=none(),
        finite=none(),
        in_flight=none(),
    )


def check_pending(algorithm: FederatedAlgorithm, state: FederatedState) -> None:
    """Refuses a state whose pending results are not of the algorithm.

    Raises:
      ValueError: saying how it differs.
    """
    number = 0 if algorithm.asynchrony is None else algorithm.asynchrony.concurrency
    held = len(state.pending.in_flight) if isinstance(state.pending, Pending) else 0
    if held != number:
        raise ValueError(
            "state must come from fs.init with this algorithm, which holds the results of "
            f"{number} clients in training; it holds those of {held}"
        )


def check_is_difference(params: Params, update: PyTree) -> None:
    """Refuses updates that are no difference of two models, by their shapes.

    Raises:
      ValueError: with the shapes of both.
    """
    try:
        check_same_spec("", "", params, update)
    except ValueError:
        raise ValueError(
            "algorithm must send the difference of two models to fedasync, which mixes models; its "
            f"update has leaves {_leaves(update)}, and the model {_leaves(params)}"
        ) from None


def _leaves(tree: PyTree) -> str:
    return ", ".join(f"{jnp.result_type(x)}{list(jnp.shape(x))}" for x in jax.tree.leaves(tree))


def _shapes(
    algorithm: FederatedAlgorithm, params: Params, client_state: PyTree, data: FederatedData
) -> ClientOutput:
    """The shapes of what a client hands over; computes nothing."""
    (exchange,) = algorithm.exchanges

    def output(key: Array, params: Params, client_state: PyTree, data: FederatedData) -> PyTree:
        message = exchange.broadcast(algorithm.init(params), jnp.zeros((), jnp.int32))
        engine = Engine(exchange, data, key, message)
        client = engine.client(jnp.zeros((), jnp.int32))
        carry = engine.start(client, client_state)
        sent = engine.finish(client, carry, client_state, jnp.ones((), jnp.int32))
        return sent.update, sent.total

    update, total = jax.eval_shape(output, jax.random.key(0), params, client_state, data)
    return ClientOutput(update, total)
