"""What algorithms share: clients that descend with an optax optimizer, and a server
that takes their mean update for a (negative) gradient.

An algorithm is `averaged_descent` with what its paper changes, by `_replace`. Of a function that
is given more than it reads the rest is `*_`: `finish(carry, message, client_state, *_)`, and
`step(carry, message, client_state, *block)`, whose block is (batch, mask, key).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import optax

from fedjax_sim.algorithms.optimizers import (
    LearningRate,
    Optimizer,
    check_fit,
    check_optimizer,
    is_schedule,
    optimizer_at,
    rate_at,
)
from fedjax_sim.core.loss import check_loss, mean_gradient
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.trees import difference
from fedjax_sim.core.types import (
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

# (gradient, w, message, client_state) -> gradient
Adjust: TypeAlias = Callable[[PyTree, Params, Any, PyTree], PyTree]
# (params, batch, mask, key) -> (gradient, metrics)
Gradient: TypeAlias = Callable[[Params, PyTree, Array, Array], tuple[PyTree, Metrics]]
# What a client's step returns: its carry and its metrics.
Stepped: TypeAlias = tuple[Any, Metrics]
# (params, examples) -> None, or a ValueError
Check: TypeAlias = Callable[[Params, PyTree], None]


@one_line
class Message(NamedTuple):
    """What the server sends: the model, and the round if the clients' optimizer needs it."""

    params: Params
    round: PyTree  # Int[], or () and not sent


@one_line
class Descent(NamedTuple):
    """A client's carry: its model w_k and its optimizer's state."""

    params: Params
    optimizer: PyTree


@one_line
class LastModel(NamedTuple):
    """What a client keeps: the model w_k with which it last ended."""

    params: Params


@one_line
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


def own_model(server: PyTree, client_state: Params, probed: PyTree) -> Params:
    """`personal` of an algorithm whose clients keep a model and nothing else."""
    return client_state


def descend(
    loss_fn: LossFn,
    optimizer: Optimizer,
    adjust: Adjust | None = None,
    gradient: Gradient | None = None,
) -> tuple[Callable[..., Descent], Callable[..., tuple[Descent, Metrics]]]:
    """`init` and `step` of a client that descends on its loss.

    A step is `w <- w + optimizer(g)`, with g the gradient of the block's mean loss, or
    `adjust(g, w, message, client_state)`. The optimizer's state starts afresh each
    round. The message has the fields of `Message`.

    Args:
      gradient: in the place of the mean loss's.
    """
    gradient = mean_gradient(loss_fn) if gradient is None else gradient

    def init(message: Any, client_state: PyTree, probed: PyTree, key: Array) -> Descent:
        start = optimizer_at(optimizer, message.round).init(message.params)
        return Descent(message.params, start)

    def step(
        carry: Descent, message: Any, client_state: PyTree, *block: Any
    ) -> tuple[Descent, Metrics]:
        grads, metrics = gradient(carry.params, *block)
        if adjust is not None:
            grads = adjust(grads, carry.params, message, client_state)
        round_optimizer = optimizer_at(optimizer, message.round)
        updates, state = round_optimizer.update(grads, carry.optimizer, carry.params)
        return Descent(optax.apply_updates(carry.params, updates), state), metrics

    return init, step


def model_difference(carry: Descent, message: Any, client_state: PyTree, *_: Any) -> ClientOutput:
    """`finish` of a client that sends `d_k = w_k - w_t`."""
    return ClientOutput(update=difference(carry.params, message.params))


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
    gradient: Gradient | None = None,
) -> FederatedAlgorithm:
    """FedAvg with a place to adjust the clients' gradients, or to take others."""
    check_optimizer("client_optimizer", client_optimizer, may_be_schedule=True)
    check_optimizer("server_optimizer", server_optimizer)
    scheduled = is_schedule(client_optimizer)
    init, step = descend(loss_fn, client_optimizer, adjust, gradient)
    return FederatedAlgorithm(
        init=server_init(server_optimizer),
        params=server_params,
        init_client=stateless,
        broadcast=lambda server, round: Message(server.params, round if scheduled else ()),
        client=ClientUpdate(init, step, model_difference),
        server_update=server_step(server_optimizer),
        local=local,
        check=checks(
            partial(check_loss, loss_fn),
            lambda params, examples: check_fit("client_optimizer", client_optimizer, params),
            lambda params, examples: check_fit("server_optimizer", server_optimizer, params),
        ),
    )


def sgd_at(rate: LearningRate) -> Callable[[Array], optax.GradientTransformation]:
    """SGD at the rate of a round, constant or not, as a function of the round."""
    return lambda round: optax.sgd(rate_at(rate, round))


def checks(*several: Check | None) -> Check:
    """One `check(params, examples)` of several, in their order."""

    def check(params: Params, examples: PyTree) -> None:
        for optimizer in several:
            if optimizer is not None:
                optimizer(params, examples)

    return check


def step_within(step: Callable[..., tuple[PyTree, Metrics]]) -> Callable[..., Any]:
    """A client's step where `step`'s own carry is the field `descent` of a larger one.

    Args:
      step: of `ClientUpdate`.
    """

    def within(carry: Any, message: Any, client_state: PyTree, *block: Any) -> Stepped:
        descent, metrics = step(carry.descent, message, client_state, *block)
        return carry._replace(descent=descent), metrics

    return within
