"""What algorithms share: clients that descend with an optax optimizer, and a server
that takes their mean update for a (negative) gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.base import (
    Array,
    ClientOutput,
    ClientUpdate,
    FederatedAlgorithm,
    LocalTraining,
    LossFn,
    Metrics,
    Params,
    PyTree,
    RoundContext,
)
from fedjax_sim.checks import check_same_spec
from fedjax_sim.loss import check_loss, mean_gradient

# An optax transformation, or a function of the round returning one.
Optimizer: TypeAlias = optax.GradientTransformation | Callable[[Array], Any]
# (gradient, w, message, client_state) -> gradient
Adjust: TypeAlias = Callable[[PyTree, Params, Any, PyTree], PyTree]


class Message(NamedTuple):
    """What the server sends: the model, and the round if the clients' optimizer needs it."""

    params: Params
    round: PyTree  # Int[], or () and not sent


class Descent(NamedTuple):
    """A client's carry: its model w_k and its optimizer's state."""

    params: Params
    optimizer: PyTree


class Server(NamedTuple):
    """The server's state: the global model w_t and its optimizer's state."""

    params: Params
    optimizer: PyTree


def server_params(server: Any) -> Params:
    """The global model of a server state that has `params`."""
    return server.params


def stateless(params: Params) -> PyTree:
    """`init_client` of an algorithm whose clients keep nothing."""
    return ()


def _is_schedule(optimizer: Optimizer) -> bool:
    return not isinstance(optimizer, optax.GradientTransformation)


def _at(optimizer: Optimizer, round: PyTree) -> optax.GradientTransformation:
    if _is_schedule(optimizer):
        return cast(Callable[[Array], Any], optimizer)(round)
    return cast(optax.GradientTransformation, optimizer)


def descend(
    loss_fn: LossFn, optimizer: Optimizer, adjust: Adjust | None = None
) -> tuple[Callable[..., Descent], Callable[..., tuple[Descent, Metrics]]]:
    """`init` and `step` of a client that descends on its loss.

    A step is `w <- w + optimizer(g)`, with g the gradient of the block's mean loss, or
    `adjust(g, w, message, client_state)`. The optimizer's state starts afresh each
    round. The message has the fields of `Message`.
    """
    gradient = mean_gradient(loss_fn)

    def init(message: Any, client_state: PyTree, probed: PyTree, key: Array) -> Descent:
        return Descent(message.params, _at(optimizer, message.round).init(message.params))

    def step(
        carry: Descent, message: Any, client_state: PyTree, batch: PyTree, mask: Array, key: Array
    ) -> tuple[Descent, Metrics]:
        grads, metrics = gradient(carry.params, batch, mask, key)
        if adjust is not None:
            grads = adjust(grads, carry.params, message, client_state)
        updates, state = _at(optimizer, message.round).update(grads, carry.optimizer, carry.params)
        return Descent(optax.apply_updates(carry.params, updates), state), metrics

    return init, step


def model_difference(
    carry: Descent,
    message: Any,
    client_state: PyTree,
    num_examples: Array,
    num_steps: Array,
    key: Array,
) -> ClientOutput:
    """`finish` of a client that sends `d_k = w_k - w_t`."""
    return ClientOutput(update=jax.tree.map(jnp.subtract, carry.params, message.params))


def server_init(optimizer: optax.GradientTransformation) -> Callable[[Params], Server]:
    """A server that starts from the given model and a fresh optimizer."""
    return lambda params: Server(params, optimizer.init(params))


def server_step(optimizer: optax.GradientTransformation) -> Callable[..., Server]:
    """`w_{t+1} = w_t + optimizer(-update)`; with `optax.sgd(1.0)`, `w_t + update`.

    The mean update as a pseudo-gradient: Reddi et al. 2021 (arXiv 2003.00295).
    """

    def update(server: Server, update: PyTree, total: PyTree, context: RoundContext) -> Server:
        grads = jax.tree.map(lambda u, w: -u.astype(w.dtype), update, server.params)
        updates, state = optimizer.update(grads, server.optimizer, server.params)
        return Server(optax.apply_updates(server.params, updates), state)

    return update


def averaged_descent(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    server_optimizer: optax.GradientTransformation,
    adjust: Adjust | None = None,
) -> FederatedAlgorithm:
    """FedAvg with a place to adjust the clients' gradients."""
    check_optimizer("client_optimizer", client_optimizer, may_be_schedule=True)
    check_optimizer("server_optimizer", server_optimizer)
    scheduled = _is_schedule(client_optimizer)

    def check(params: Params, examples: PyTree) -> None:
        check_loss(loss_fn, params, examples)
        check_fit("client_optimizer", client_optimizer, params)
        check_fit("server_optimizer", server_optimizer, params)

    init, step = descend(loss_fn, client_optimizer, adjust)
    return FederatedAlgorithm(
        init=server_init(server_optimizer),
        params=server_params,
        init_client=stateless,
        broadcast=lambda server, round: Message(server.params, round if scheduled else ()),
        client=ClientUpdate(init, step, model_difference),
        server_update=server_step(server_optimizer),
        local=local,
        check=check,
    )


def check_optimizer(name: str, optimizer: Any, may_be_schedule: bool = False) -> None:
    """Refuses what is not an optax transformation (or a function of the round).

    Raises:
      ValueError: naming the argument and what was given.
    """
    if isinstance(optimizer, optax.GradientTransformation):
        return
    if getattr(optimizer, "__module__", "").startswith("optax"):
        name_given = f"optax.{getattr(optimizer, '__name__', '')}"
        raise ValueError(f"{name} must be an optimizer; got {name_given} itself: call it")
    if may_be_schedule and callable(optimizer):
        return
    allowed = "an optax transformation, as optax.sgd(0.1)"
    if may_be_schedule:
        allowed += ", or a function of the round returning one"
    raise ValueError(f"{name} must be {allowed}; got {optimizer!r}")


def check_fit(name: str, optimizer: Optimizer, params: Params) -> None:
    """Refuses an optimizer that cannot step on these params; computes nothing.

    Raises:
      ValueError: if its state or its update does not keep structure, shapes and dtypes.
    """

    def once(params: Params) -> tuple[Params, PyTree, PyTree]:
        transformation = _at(optimizer, jnp.zeros((), jnp.int32))
        check_optimizer(f"what {name} returns", transformation)
        state = transformation.init(params)
        updates, new_state = transformation.update(params, state, params)
        return optax.apply_updates(params, updates), state, new_state

    try:
        new, state, new_state = jax.eval_shape(once, params)
    except Exception as error:
        raise ValueError(f"{name} does not fit params: {error}") from error
    check_same_spec(name, "params", params, new)
    check_same_spec(name, "its state", state, new_state)
