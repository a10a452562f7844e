"""SCAFFOLD: Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning" (arXiv 1910.06378).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Descent, check_fit, descend, server_params
from fedjax_sim.core.checks import check_number
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.loss import check_loss
from fedjax_sim.core.registry import declare
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    ClientUpdate,
    FederatedAlgorithm,
    LocalTraining,
    LossFn,
    Params,
    PyTree,
    RoundContext,
)


class ScaffoldServer(NamedTuple):
    """The global model x and the server's control variate c."""

    params: Params
    control: PyTree

    def __repr__(self) -> str:
        return fields_of(self)


class ScaffoldMessage(NamedTuple):
    """What a client is sent: x and c, twice FedAvg's downlink; the round, if its rate needs it."""

    params: Params
    control: PyTree
    round: PyTree = ()  # Int[], or () and not sent

    def __repr__(self) -> str:
        return fields_of(self)


@declare("FedAvg with control variates against drift (Karimireddy et al. 2020)")
def scaffold(
    loss_fn: LossFn,
    client_lr: ArrayLike | Callable[[Array], ArrayLike],
    local: LocalTraining,
    server_lr: ArrayLike = 1.0,
) -> FederatedAlgorithm:
    """FedAvg whose clients correct their drift with control variates (option II).

    Client k keeps c_k, at first 0. From y = x it takes S local steps

        y <- y - client_lr (g(y) - c_k + c)

    and then, with `c_k+ = c_k - c + (x - y) / (S client_lr)`,

        x <- x + server_lr sum_k a_k (y_k - x) / denominator
        c <- c + sum_k p_k (c_k+ - c_k)

    where p_k is the client's fixed share, n_k / n, or 1/K under the `uniform` rule, which
    is the paper's. So `c = sum_k p_k c_k` after every round, under every rule. It costs
    twice FedAvg's bytes, both ways. In bfloat16 the sum drifts with the rounding of c.

    With a learning rate that is a function of the round, all of this has the rate of that round.
    Where it is 0, or so small that a client's steps are lost in the rounding of w, nothing moves
    and c_k+ = c_k, for the quotient says nothing of gradients. (Just above, c_k+ is off by half a
    unit in the last place of w over client_lr, which is at most about the gradient itself.)

    Args:
      loss_fn: (params, batch, key) -> losses[B], or (losses[B], {name: values[B]}).
      client_lr: Float[] > 0, may be traced; or a function of the round (Int[]) returning a
        Float[] >= 0, as a learning-rate schedule of optax; the message then carries the round.
      local: E, B, shuffling and order.
      server_lr: Float[], may be traced.

    Raises:
      ValueError: for a `local` or a learning rate out of range; from `fs.init`, if the
        loss does not fit params and data, or a function of the round returns no rate; from
        `fs.run`, for a sampler with replacement; from the round, for a concrete cohort that
        repeats a client (inside a trace the second slot is padding), since a client keeps one
        state.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.scaffold(loss_fn, 0.1, fs.LocalTraining(epochs=5))

    A learning rate that falls over 100 rounds:

    >>> schedule = optax.cosine_decay_schedule(0.1, decay_steps=100)
    >>> algorithm = fs.scaffold(loss_fn, schedule, fs.LocalTraining(epochs=5))
    """
    scheduled = callable(client_lr)
    if not scheduled:
        check_number("client_lr", cast(ArrayLike, client_lr), lambda x: x > 0, "positive")
    check_number("server_lr", server_lr, lambda x: x >= 0, "at least 0")

    def rate_at(round: PyTree) -> ArrayLike:
        return client_lr(round) if callable(client_lr) else client_lr

    def optimizer(round: PyTree) -> optax.GradientTransformation:
        return optax.sgd(rate_at(round))

    def correct(grads: PyTree, params: Params, message: Any, control: PyTree) -> PyTree:
        return jax.tree.map(lambda g, c_k, c: g - c_k + c, grads, control, message.control)

    def finish(
        carry: Descent,
        message: ScaffoldMessage,
        control: PyTree,
        num_examples: Array,
        num_steps: Array,
        key: Array,
    ) -> ClientOutput:
        delta = jax.tree.map(jnp.subtract, carry.params, message.params)
        rate = rate_at(message.round)

        def renew(c_k: Array, c: Array, d: Array) -> Array:
            distance = num_steps.astype(d.dtype) * jnp.asarray(rate, d.dtype)
            if not scheduled:
                return c_k - c - d / distance
            # Without c the quotient of 0 is right, and has a derivative.
            moves = (distance != 0) & ((d != 0) | (c == 0))
            return jnp.where(moves, c_k - c - d / jnp.where(moves, distance, 1), c_k)

        renewed = jax.tree.map(renew, control, message.control, delta)
        change = jax.tree.map(jnp.subtract, renewed, control)
        return ClientOutput(update=delta, total=change, client_state=renewed)

    def server_update(
        server: ScaffoldServer, update: PyTree, total: PyTree, context: RoundContext
    ) -> ScaffoldServer:
        def move(x: Array, u: Array) -> Array:
            return x + jnp.asarray(server_lr, x.dtype) * u.astype(x.dtype)

        return ScaffoldServer(
            jax.tree.map(move, server.params, update),
            jax.tree.map(lambda c, d: c + d.astype(c.dtype), server.control, total),
        )

    def check(params: Params, examples: PyTree) -> None:
        check_loss(loss_fn, params, examples)
        if callable(client_lr):
            _check_schedule(client_lr)
        check_fit("client_lr", optimizer, params)

    def zeros(params: Params) -> PyTree:
        return jax.tree.map(jnp.zeros_like, params)

    def broadcast(server: ScaffoldServer, round: Array) -> ScaffoldMessage:
        return ScaffoldMessage(server.params, server.control, round if scheduled else ())

    init, step = descend(loss_fn, optimizer, correct)
    return FederatedAlgorithm(
        init=lambda params: ScaffoldServer(params, zeros(params)),
        params=server_params,
        init_client=zeros,
        broadcast=broadcast,
        client=ClientUpdate(init, step, finish),
        server_update=server_update,
        local=check_local(local),
        check=check,
    )


def _check_schedule(client_lr: Callable[[Array], ArrayLike]) -> None:
    """Refuses a function of the round that does not give a learning rate; computes nothing.

    Raises:
      ValueError: saying what it gives.
    """
    allowed = "client_lr must be a number, or a function of the round that returns one"
    try:
        rate: Any = jax.eval_shape(client_lr, jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:
        raise ValueError(f"{allowed}; of round 0 it says: {error}") from error
    if getattr(rate, "shape", None) != () or not jnp.issubdtype(rate.dtype, jnp.floating):
        given = f"{rate.dtype}{list(rate.shape)}" if hasattr(rate, "shape") else type(rate).__name__
        raise ValueError(f"{allowed}; it returns {given}")
