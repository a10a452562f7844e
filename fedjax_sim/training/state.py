"""The state before the first round, and whether a state is of an algorithm and its data."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import check_same_spec
from fedjax_sim.core.client_states import numbers_of_clients
from fedjax_sim.core.types import FederatedAlgorithm, FederatedState, Params, PyTree
from fedjax_sim.data import FederatedData, Source, check_data
from fedjax_sim.execution.client import check_steps
from fedjax_sim.training.arguments import check_algorithm
from fedjax_sim.training.pending import check_pending, no_pending


def init(
    algorithm: FederatedAlgorithm,
    params: Params,
    data: FederatedData | Source,
    num_states: int | None = None,
) -> FederatedState:
    """The state before round 0, after checking that algorithm, params and data fit.

    Args:
      params: the initial model w_0, a pytree of floating arrays.
      data: the federation, whose K sizes the clients' states, `[K, ...]`; of a `Source` the
        examples of three clients are looked at.
      num_states: of how many clients there are states; None for all K.

    Raises:
      ValueError: if params hold anything but floating arrays, the loss does not return
        losses[B], an optimizer does not fit params, or labels do not fit the classes of
        a loss from `fs.models`.
    """
    algorithm = check_algorithm(algorithm)
    if isinstance(data, Source):
        examples, data = data.sample, data.without_examples
    else:
        examples = [check_data(data).examples]
    for exchange in algorithm.exchanges:
        check_steps(exchange.local, data)
    if inspect.isroutine(params):
        raise ValueError(
            "params must be a model's params, as model.init(key) returns; got the function "
            f"{params.__qualname__}"
        )
    # Copies, so that donating the state leaves the caller's arrays alone, and without the
    # weak type of a Python number, which would cost a second trace.
    params = jax.tree.map(lambda x: jnp.array(x, dtype=jnp.result_type(x), copy=True), params)
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                "params must be a pytree of floating arrays; got "
                f"{x.dtype} at params{jax.tree_util.keystr(path)}{_cure(params)}"
            )
    if algorithm.check is not None:
        for batch in examples:
            algorithm.check(params, batch)
    client_state = algorithm.init_client(params)
    number = data.num_clients if num_states is None else num_states
    return FederatedState(
        server=algorithm.init(params),
        clients=jax.tree.map(lambda x: jnp.broadcast_to(x, (number, *jnp.shape(x))), client_state),
        round=jnp.zeros((), jnp.int32),
        get_params=algorithm.params,
        pending=no_pending(algorithm, params, client_state, data),
    )


def _cure(params: Params) -> str:
    """What to do about the keys and counters of a flax nnx module among its params."""
    if not any(type(x).__module__.startswith("flax.nnx") for x in _nodes(params)):
        return ""
    return (
        ". nnx.split(module, nnx.Param, ...) keeps what is not trained apart: graph, params, rest; "
        "the loss merges all three, and draws dropout from its own key (docs/models.md)"
    )


def _nodes(tree: PyTree) -> list[Any]:
    """A pytree and what it holds at its first level."""
    return [tree, *jax.tree.leaves(tree, is_leaf=lambda x: x is not tree)]


def check_from_init(state: FederatedState) -> None:
    """Refuses what is no state.

    Raises:
      ValueError: with its type.
    """
    if not isinstance(state, FederatedState):
        raise ValueError(f"state must come from fs.init; got {type(state).__name__}")


def check_clients_of(state: FederatedState, data: FederatedData) -> None:
    """Refuses a state that holds those of another number of clients.

    Raises:
      ValueError: with both numbers.
    """
    for number in numbers_of_clients(state.clients):
        if number != data.num_clients:
            raise ValueError(
                f"state must come from fs.init with this federation of {data.num_clients} "
                f"clients; it holds states of {number}"
            )


def check_state(algorithm: FederatedAlgorithm, state: FederatedState, data: FederatedData) -> None:
    """Refuses a state of another algorithm or federation.

    Raises:
      ValueError: saying how it differs.
    """
    check_data(data)
    for exchange in algorithm.exchanges:
        check_steps(exchange.local, data)
    check_from_init(state)
    check_clients_of(state, data)
    check_pending(algorithm, state)
    another = ValueError(
        "state must come from fs.init with this algorithm: its server state has another "
        "structure (was it made with another algorithm, optimizer or model?)"
    )
    try:
        params = algorithm.params(state.server)
    except (AttributeError, TypeError, KeyError, IndexError):
        raise another from None
    try:
        expected = jax.eval_shape(algorithm.init, params)
    except Exception:  # an init that cannot be traced cannot be compared with
        return
    try:
        check_same_spec("", "", expected, state.server)
    except ValueError:
        raise another from None
