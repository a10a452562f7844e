"""APFL: Deng, Kamani and Mahdavi 2020, "Adaptive Personalized Federated Learning"
(arXiv 2003.13461).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Descent, Message, Stepped, averaged_descent
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.loss import mean_gradient
from fedjax_sim.core.registry import FROM_0_TO_1, POSITIVE, Option, declare
from fedjax_sim.core.trees import axpy, difference, moving_average
from fedjax_sim.core.types import Array, ClientOutput, FederatedAlgorithm, LocalTraining, LossFn


class Mixed(NamedTuple):
    """What a client keeps: its own model v_k and, Float[], its share alpha_k of the mixture."""

    own: Any
    alpha: Array


class MixedDescent(NamedTuple):
    """A client's carry: the copy w of the global model, what it keeps, and Int[], steps done."""

    copy: Descent
    kept: Mixed
    steps: Array


@declare(
    "each client uses a mixture of the global model and one of its own (Deng et al. 2020)",
    Option(
        "mixture", "share of the own model", 0.5, range=FROM_0_TO_1, traced=True, parameter="alpha"
    ),
    Option("adaptive", "whether each client learns its share", default=False, kind=bool),
    without=("schedule",),
    facts=Facts(
        "v_k <- v_k - client_lr alpha grad F_k(alpha v_k + (1 - alpha) w), w as FedAvg",
        "`mixture` = 0: FedAvg; 1: each client alone",
        "gradients not cleared between the two models; v_k overwritten by the mixture",
    ),
)
def apfl(
    loss_fn: LossFn,
    client_lr: ArrayLike,
    local: LocalTraining,
    alpha: ArrayLike,
    adaptive: bool = False,
) -> FederatedAlgorithm:
    """FedAvg, and a model v_k of each client's own that is trained as part of a mixture.

    In a local step, with w the client's copy of the global model, FedAvg's, and
    `u = alpha_k v_k + (1 - alpha_k) w` from before the step,

        w   <- w - client_lr grad F_k(w)
        v_k <- v_k - client_lr alpha_k grad F_k(u)

    and where it is adaptive, in the first step of a round and within [0, 1],

        alpha_k <- alpha_k - client_lr <grad F_k(u), v_k - w>

    v_k starts at the first global model. What client k uses is the mixture of v_k with the global
    model of now. With alpha = 0 that is FedAvg's, with 1 a client trains alone. A step costs two
    gradients; what travels is what FedAvg sends. A client keeps a model and a number.

    Args:
      loss_fn, local: as in `fedavg`.
      client_lr: Float[] > 0, may be traced.
      alpha: Float[] in [0, 1], may be traced; where it is adaptive, the first.
      adaptive: whether alpha_k is learned.

    Raises:
      ValueError: as `fedavg` and, since a client keeps one state, `scaffold`; for another alpha.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.apfl(loss_fn, 0.1, fs.LocalTraining(epochs=5), alpha=0.5, adaptive=True)
    """
    POSITIVE.check("client_lr", client_lr)
    FROM_0_TO_1.check("alpha", alpha)
    base = averaged_descent(loss_fn, optax.sgd(client_lr), check_local(local), optax.sgd(1.0))
    gradient = mean_gradient(loss_fn)

    def init(message: Message, kept: Mixed, probed: Any, key: Array) -> MixedDescent:
        return MixedDescent(base.client.init(message, kept, probed, key), kept, jnp.int32(0))

    def step(carry: MixedDescent, message: Message, kept: Mixed, *block: Any) -> Stepped:
        copy, metrics = base.client.step(carry.copy, message, kept, *block)
        own, share = carry.kept
        w = carry.copy.params
        grads, _ = gradient(moving_average(share, own, w), *block)

        rate = jnp.asarray(client_lr, share.dtype)
        moved = axpy(-rate * share, grads, own)
        if adaptive:
            apart = jax.tree.leaves(difference(own, w))
            slope = sum(map(jnp.vdot, jax.tree.leaves(grads), apart))
            learned = share - rate * jnp.asarray(slope, share.dtype)
            share = jnp.where(carry.steps == 0, jnp.clip(learned, 0, 1), share)
        return MixedDescent(copy, Mixed(moved, share), carry.steps + 1), metrics

    def finish(carry: MixedDescent, message: Message, kept: Mixed, *more: Array) -> ClientOutput:
        sent = base.client.finish(carry.copy, message, kept, *more)
        return sent._replace(client_state=carry.kept)

    return base._replace(
        init_client=lambda params: Mixed(params, jnp.asarray(alpha, jnp.result_type(float))),
        client=base.client._replace(init=init, step=step, finish=finish),
        personal=lambda server, kept, probed: moving_average(kept.alpha, kept.own, server.params),
    )
