"""Mime: Karimireddy et al. 2021, "Breaking the centralized barrier for cross-device federated
learning" (arXiv 2008.03606), with SGD with momentum.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Message, Stepped, server_params, stateless
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.gradient import ONE_FULL_BATCH, full_gradient, pooled_gradient
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.loss import check_loss, mean_gradient
from fedjax_sim.core.registry import BELOW_1, POSITIVE, Option, declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.trees import accumulators, cast, difference, moving_average, plus, widened
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    ClientUpdate,
    Exchange,
    FederatedAlgorithm,
    LocalTraining,
    LossFn,
)


@one_line
class MimeServer(NamedTuple):
    """What the server keeps, and sends before the local steps: three times the model."""

    params: Any  # x, the global model
    momentum: Any  # m, of the server's optimizer
    gradient: Any  # c, the cohort's at x in this round; after it, that of the last round


@declare(
    "local steps with the server's momentum, corrected by the cohort's gradient "
    "(Karimireddy et al. 2021)",
    Option("momentum", "the server's momentum", default=0.9, range=BELOW_1, traced=True),
    without=("schedule",),
    facts=Facts(
        "y <- y - client_lr ((1 - momentum) (g(y) - g(w) + c) + momentum m), c = mean grad F_k(w)",
        "one local step: SGD with momentum on c",
    ),
)
def mime(
    loss_fn: LossFn, client_lr: ArrayLike, local: LocalTraining, momentum: ArrayLike = 0.9
) -> FederatedAlgorithm:
    """FedAvg whose clients mimic the centralised method: its momentum, and its full gradient.

    A round has two exchanges. In the first each client sends its full gradient at x, and the
    server takes their mean c over those that report. In the second a client starts from y = x and
    takes the local steps, with g of the same block at both models,

        y <- y - client_lr ((1 - momentum) (g(y) - g(x) + c) + momentum m)

    and the server then moves, with the rule's coefficients,

        x <- x + sum_k a_k (y_k - x) / denominator
        m <- momentum m + (1 - momentum) c

    c is a mean whatever the rule's denominator, because clients correct a gradient by it. It costs
    one gradient at x more in every step, and in every round four models down and two up. A client
    that completes only part of its local steps still sends its whole gradient first.

    Args:
      loss_fn: (params, batch, key) -> losses[B], or (losses[B], {name: values[B]}).
      client_lr: Float[] > 0, may be traced.
      local: E, B, shuffling and order of the second exchange.
      momentum: Float[] in [0, 1), may be traced.

    Raises:
      ValueError: for a number out of range; from `fs.init`, if the loss does not fit.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> len(fs.mime(loss_fn, 0.1, fs.LocalTraining(epochs=5)).exchanges)
    2
    """
    POSITIVE.check("client_lr", client_lr)
    BELOW_1.check("momentum", momentum)
    gradient = mean_gradient(loss_fn)

    def keep_gradient(server: MimeServer, update: Any, *_: Any) -> MimeServer:
        return server._replace(gradient=jax.tree.map(jnp.negative, cast(update, server.gradient)))

    def step(carry: Any, message: MimeServer, client_state: Any, *block: Any) -> Stepped:
        (at_w, metrics), (at_server, _) = gradient(carry, *block), gradient(message.params, *block)

        def move(*leaves: Array) -> Array:
            y, g, g_x, c, m = widened(*leaves)  # in bfloat16 a momentum of 0.999 is 1
            rate, beta = (jnp.asarray(x, y.dtype) for x in (client_lr, momentum))
            return (y - rate * ((1 - beta) * (g - g_x + c) + beta * m)).astype(leaves[0].dtype)

        moved = jax.tree.map(move, carry, at_w, at_server, message.gradient, message.momentum)
        return moved, metrics

    def finish(carry: Any, message: MimeServer, *_: Any) -> ClientOutput:
        return ClientOutput(update=difference(carry, message.params))

    def server_update(server: MimeServer, update: Any, *_: Any) -> MimeServer:
        m = moving_average(momentum, server.momentum, server.gradient)
        return MimeServer(plus(server.params, update), m, server.gradient)

    cohorts_gradient = Exchange(
        broadcast=lambda server, round: Message(server.params, ()),
        client=full_gradient(loss_fn),
        server_update=keep_gradient,
        local=ONE_FULL_BATCH,
        pooled_gradient=pooled_gradient(loss_fn),
        aggregation=lambda coefficients: coefficients._replace(denominator=None),
    )
    return FederatedAlgorithm(
        # Two arrays of zeros, since one in two places cannot be donated.
        init=lambda params: MimeServer(params, accumulators(params), accumulators(params)),
        params=server_params,
        init_client=stateless,
        broadcast=lambda server, round: server,
        client=ClientUpdate(lambda message, *_: message.params, step, finish),
        server_update=server_update,
        local=check_local(local),
        check=partial(check_loss, loss_fn),
        earlier=(cohorts_gradient,),
    )
