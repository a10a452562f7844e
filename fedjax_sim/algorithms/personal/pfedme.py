"""pFedMe: Dinh, Tran and Nguyen 2020, "Personalized Federated Learning with Moreau Envelopes"
(arXiv 2006.08848).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Message, Stepped, averaged_descent, own_model
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.core.checks import check_count, check_number
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.loss import mean_gradient
from fedjax_sim.core.randomness import stream
from fedjax_sim.core.registry import AT_LEAST_1, POSITIVE, Option, declare
from fedjax_sim.core.types import Array, ClientOutput, FederatedAlgorithm, LocalTraining, LossFn


class Envelope(NamedTuple):
    """A client's carry: its local model w_k, and the personal one that was last found near it."""

    local: Any
    own: Any


@declare(
    "clients descend on the Moreau envelopes of their losses (Dinh et al. 2020)",
    Option("lam", "pull of the global model", default=15.0, range=POSITIVE, traced=True),
    Option("inner_lr", "rate of the personal steps", default=0.01, range=POSITIVE, traced=True),
    Option("inner_steps", "personal steps a block", default=5, kind=int, range=AT_LEAST_1),
    without=("schedule",),
    symbols={"client_lr": "eta", "server_lr": "beta"},
    facts=Facts(
        "theta ~ argmin F_k(theta) + (lam / 2) |theta - w_k|^2, w_k <- w_k - eta lam (w_k - theta)",
        "`inner_steps` = 1: FedAvg at the rate eta lam inner_lr",
    ),
)
def pfedme(
    loss_fn: LossFn,
    local: LocalTraining,
    lam: ArrayLike,
    inner_lr: ArrayLike,
    inner_steps: int,
    eta: ArrayLike,
    beta: ArrayLike = 1.0,
) -> FederatedAlgorithm:
    """Each client has a personal model near the local one; the global model is fit to be near all.

    The objective is `sum_k p_k min_theta (F_k(theta) + (lam / 2) |theta - w|^2)`. From w_k = w_t a
    client does in each local step, with F the mean loss of the block,

        theta <- w_k, and `inner_steps` times
            theta <- theta - inner_lr (grad F(theta) + lam (theta - w_k))
        w_k <- w_k - eta lam (w_k - theta)

    (a loss that draws, as by dropout, draws anew in each), and the server, with a_k of the rule,
    `w_{t+1} = w_t + beta sum_k a_k (w_k - w_t) / denominator` (the paper's
    `(1 - beta) w_t + beta mean w_k`). What client k uses is its last theta, at first the first
    global model. What travels is what FedAvg sends. A client keeps one model.

    Args:
      loss_fn, local: as in `fedavg`; a local step is the paper's local round.
      lam, inner_lr, eta, beta: Float[] > 0, may be traced.
      inner_steps: gradient steps towards the minimum, >= 1, the paper's K.

    Raises:
      ValueError: as `fedavg`, and for a number out of range; from `fs.run`, for a sampler with
        replacement, since a client keeps one state.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> local = fs.LocalTraining(epochs=5)
    >>> algorithm = fs.pfedme(loss_fn, local, lam=15.0, inner_lr=0.01, inner_steps=5, eta=0.01)
    """
    for name, number in {"lam": lam, "inner_lr": inner_lr, "eta": eta, "beta": beta}.items():
        check_number(name, number, lambda x: x > 0, "positive")
    inner_steps = check_count("inner_steps", inner_steps)
    # Its clients do not descend by this optimizer: of it are the message, the checks, the server.
    base = averaged_descent(loss_fn, optax.sgd(1.0), check_local(local), optax.sgd(beta))
    gradient = mean_gradient(loss_fn)

    def init(message: Message, own: Any, probed: Any, key: Array) -> Envelope:
        return Envelope(message.params, own)

    def step(
        carry: Envelope, message: Message, own: Any, batch: Any, mask: Array, key: Array
    ) -> Stepped:
        def move(theta: Array, g: Array, w: Array) -> Array:
            rate, near = (jnp.asarray(x, w.dtype) for x in (inner_lr, lam))
            return theta - rate * (g + near * (theta - w))

        def inner(theta: Any, number: Array) -> Stepped:
            # On one draw of the loss, as a dropout's, they would descend on that draw alone.
            grads, metrics = gradient(theta, batch, mask, stream(key, number))
            return jax.tree.map(move, theta, grads, carry.local), metrics

        numbers = jnp.arange(inner_steps, dtype=jnp.int32)
        theta, metrics = jax.lax.scan(inner, carry.local, numbers)

        def follow(w: Array, near: Array) -> Array:
            return w - jnp.asarray(eta, w.dtype) * jnp.asarray(lam, w.dtype) * (w - near)

        # What is told of training is the loss at w_k, where the first of the inner steps begins.
        first = jax.tree.map(lambda x: x[0], metrics)
        return Envelope(jax.tree.map(follow, carry.local, theta), theta), first

    def finish(carry: Envelope, message: Message, own: Any, *more: Array) -> ClientOutput:
        update = jax.tree.map(jnp.subtract, carry.local, message.params)
        return ClientOutput(update=update, client_state=carry.own)

    return base._replace(
        init_client=lambda params: params,
        client=base.client._replace(init=init, step=step, finish=finish),
        personal=own_model,
    )
