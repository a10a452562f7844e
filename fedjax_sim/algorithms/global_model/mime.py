"""Mime: Karimireddy et al. 2021, "Breaking the centralized barrier for cross-device federated
learning" (arXiv 2008.03606), with SGD with momentum.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Message, server_params, stateless
from fedjax_sim.algorithms.gradient import ONE_FULL_BATCH, full_gradient, pooled_gradient
from fedjax_sim.core.checks import check_number
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.loss import check_loss, mean_gradient
from fedjax_sim.core.registry import BELOW_1, Option, declare
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    ClientUpdate,
    Coefficients,
    Exchange,
    FederatedAlgorithm,
    LocalTraining,
    LossFn,
    Metrics,
    Params,
    PyTree,
    RoundContext,
)


class MimeServer(NamedTuple):
    """What the server keeps, and sends before the local steps: three times the model.

    Attributes:
      params: x, the global model.
      momentum: m, of the server's optimizer.
      gradient: c, the cohort's at x in this round; after it, that of the last round.
    """

    params: Params
    momentum: PyTree
    gradient: PyTree

    def __repr__(self) -> str:
        return fields_of(self)


@declare(
    "local steps with the server's momentum, corrected by the cohort's gradient "
    "(Karimireddy et al. 2021)",
    Option("momentum", "of the server", default=0.9, range=BELOW_1, traced=True),
    without=("schedule",),
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
      ValueError: for a `local`, a learning rate or a momentum out of range; from `fs.init`, if the
        loss does not fit params and data.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.mime(loss_fn, 0.1, fs.LocalTraining(epochs=5))
    >>> len(algorithm.exchanges)
    2
    """
    check_number("client_lr", client_lr, lambda x: x > 0, "positive")
    check_number("momentum", momentum, lambda x: 0 <= x < 1, "in [0, 1)")
    gradient = mean_gradient(loss_fn)

    def mean_of_those_that_report(coefficients: Coefficients) -> Coefficients:
        return coefficients._replace(denominator=None)

    def keep_gradient(
        server: MimeServer, update: PyTree, total: PyTree, context: RoundContext
    ) -> MimeServer:
        negative = jax.tree.map(lambda u, c: -u.astype(c.dtype), update, server.gradient)
        return server._replace(gradient=negative)

    def start(message: MimeServer, client_state: PyTree, probed: PyTree, key: Array) -> Params:
        return message.params

    def step(
        carry: Params,
        message: MimeServer,
        client_state: PyTree,
        batch: PyTree,
        mask: Array,
        key: Array,
    ) -> tuple[Params, Metrics]:
        here, metrics = gradient(carry, batch, mask, key)
        there, _ = gradient(message.params, batch, mask, key)

        def move(y: Array, g: Array, g_x: Array, c: Array, m: Array) -> Array:
            rate, beta = (jnp.asarray(x, y.dtype) for x in (client_lr, momentum))
            return y - rate * ((1 - beta) * (g - g_x + c) + beta * m)

        moved = jax.tree.map(move, carry, here, there, message.gradient, message.momentum)
        return moved, metrics

    def finish(
        carry: Params,
        message: MimeServer,
        client_state: PyTree,
        num_examples: Array,
        num_steps: Array,
        key: Array,
    ) -> ClientOutput:
        return ClientOutput(update=jax.tree.map(jnp.subtract, carry, message.params))

    def server_update(
        server: MimeServer, update: PyTree, total: PyTree, context: RoundContext
    ) -> MimeServer:
        def renew(m: Array, c: Array) -> Array:
            beta = jnp.asarray(momentum, m.dtype)
            return beta * m + (1 - beta) * c

        return MimeServer(
            params=jax.tree.map(lambda x, u: x + u.astype(x.dtype), server.params, update),
            momentum=jax.tree.map(renew, server.momentum, server.gradient),
            gradient=server.gradient,
        )

    def init(params: Params) -> MimeServer:
        def zeros() -> PyTree:  # two arrays, since one in two places cannot be donated
            return jax.tree.map(jnp.zeros_like, params)

        return MimeServer(params, zeros(), zeros())

    def check(params: Params, examples: PyTree) -> None:
        check_loss(loss_fn, params, examples)

    cohorts_gradient = Exchange(
        broadcast=lambda server, round: Message(server.params, ()),
        client=full_gradient(loss_fn),
        server_update=keep_gradient,
        local=ONE_FULL_BATCH,
        pooled_gradient=pooled_gradient(loss_fn),
        aggregation=mean_of_those_that_report,
    )
    return FederatedAlgorithm(
        init=init,
        params=server_params,
        init_client=stateless,
        broadcast=lambda server, round: server,
        client=ClientUpdate(start, step, finish),
        server_update=server_update,
        local=check_local(local),
        check=check,
        earlier=(cohorts_gradient,),
    )
