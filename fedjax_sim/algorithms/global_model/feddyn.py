"""FedDyn: Acar et al. 2021, "Federated Learning Based on Dynamic Regularization"
(arXiv 2111.04263).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Descent, Message, averaged_descent
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import Optimizer
from fedjax_sim.algorithms.ratios import WithShare, with_share
from fedjax_sim.algorithms.rules import averages_alone
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import POSITIVE, Option, declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.trees import axpy, difference, plus, zeros_like
from fedjax_sim.core.types import ClientOutput, FederatedAlgorithm, LocalTraining, LossFn


@one_line
class FedDynServer(NamedTuple):
    """The global model w, and h, the mean of what all clients keep."""

    params: Any
    h: Any


@declare(
    "FedAvg whose clients' objectives are corrected until their optima agree (Acar et al. 2021)",
    Option(
        "feddyn_alpha",
        "strength of the correction",
        default=0.1,
        range=POSITIVE,
        traced=True,
        parameter="alpha",
    ),
    facts=Facts(
        "g_k <- g_k - alpha d_k, h <- h - alpha sum p_k d_k, w <- mean w_k - h / alpha",
        "all d_k = 0: a stationary point of sum p_k F_k",
        "the linear term's sign; the norm not squared; no quadratic term; sum w_k - w for sum "
        "(w_k - w)",
    ),
)
def feddyn(
    loss_fn: LossFn, client_optimizer: Optimizer, local: LocalTraining, alpha: ArrayLike
) -> FederatedAlgorithm:
    """FedAvg whose clients descend on objectives that are corrected until their optima agree.

    Client k keeps g_k, at first 0. From w_t it descends on
    `F_k(w) - <g_k, w> + (alpha / 2) |w - w_t|^2` to w_k. With d_k = w_k - w_t and h_0 = 0,

        g_k <- g_k - alpha d_k
        h   <- h - alpha sum_k p_k d_k
        w   <- w + s (mean_k d_k - h / alpha)

    over the clients that report. p_k is the client's fixed share, n_k / n, or 1/K under the
    `uniform` rule, which is the paper's; so `h = sum_k p_k g_k` after every round, under every
    rule. The mean has the rule's coefficients, and s is their sum over its denominator: 1, but
    n_V / n under `all_clients`, where those not selected still hold w_t. Where d_k = 0 for all k,
    the gradient of `sum_k p_k F_k` is 0. It sends one number more than FedAvg; the memory is K
    models.

    Args:
      loss_fn, client_optimizer, local: as in `fedavg`.
      alpha: Float[] > 0, may be traced.

    Raises:
      ValueError: as `fedavg`, and for an alpha out of range; from `fs.make_round`, for a rule that
        combines all updates, as the median; from `fs.run`, for a sampler with replacement, since
        a client keeps one state.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.feddyn(loss_fn, optax.sgd(0.1), fs.LocalTraining(epochs=5), alpha=0.1)
    """
    POSITIVE.check("alpha", alpha)

    def adjust(grads: Any, params: Any, message: Message, g_k: Any) -> Any:
        return axpy(alpha, difference(params, message.params), difference(grads, g_k))

    def finish(carry: Descent, message: Message, g_k: Any, *_: Any) -> ClientOutput:
        d = difference(carry.params, message.params)
        return ClientOutput(with_share(d), total=d, client_state=axpy(-jnp.asarray(alpha), d, g_k))

    def server_update(server: FedDynServer, update: WithShare, total: Any, *_: Any) -> FedDynServer:
        h = axpy(-jnp.asarray(alpha), total, server.h)
        scale = update.share / jnp.asarray(alpha, update.share.dtype)
        return FedDynServer(axpy(-scale, h, plus(server.params, update.value)), h)

    base = averaged_descent(loss_fn, client_optimizer, check_local(local), optax.sgd(1.0), adjust)
    return base._replace(
        init=lambda params: FedDynServer(params, zeros_like(params)),
        init_client=zeros_like,
        client=base.client._replace(finish=finish),
        server_update=server_update,
        check_rule=averages_alone("h moves by a mean, which one client can move freely"),
        wire=lambda update, total: update,  # d_k is sent once
    )
