"""FedExP: Jhunjhunwala, Wang and Joshi 2023, "FedExP: Speeding up Federated Averaging via
Extrapolation" (arXiv 2301.09604).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Descent, Message, Server, averaged_descent
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import Optimizer
from fedjax_sim.algorithms.ratios import WithShare, ratio, with_share
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import POSITIVE, Option, declare
from fedjax_sim.core.trees import difference, scaled, squared_norm
from fedjax_sim.core.types import ClientOutput, FederatedAlgorithm, LocalTraining, LossFn


@declare(
    "FedAvg whose server steps further where clients disagree (Jhunjhunwala et al. 2023)",
    Option("eps", "added to the squared norm", default=1e-3, range=POSITIVE, traced=True),
    facts=Facts(
        "w <- w + max(1, mean |d_k|^2 / (2 (|mean d_k|^2 + eps))) mean d_k",
        "a large `eps`: FedAvg",
    ),
)
def fedexp(
    loss_fn: LossFn, client_optimizer: Optimizer, local: LocalTraining, eps: ArrayLike = 1e-3
) -> FederatedAlgorithm:
    """FedAvg whose server step is extrapolated by how much the clients' updates disagree.

    With d_k = w_k - w_t and p_k the aggregation rule's coefficients over their sum,

        eta = max(1, sum_k p_k |d_k|^2 / (2 (|sum_k p_k d_k|^2 + eps)))
        w_{t+1} = w_t + s eta sum_k p_k d_k

    over the clients that report; s is the coefficients' sum over the rule's denominator: 1, but
    n_V / n under `all_clients`. With a large eps it is FedAvg. It sends two numbers more. The paper
    reports the mean of the last two models, since an extrapolated run may swing.

    Args:
      loss_fn, client_optimizer, local: as in `fedavg`.
      eps: Float[] > 0, may be traced.

    Raises:
      ValueError: as `fedavg`, and for an eps out of range.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedexp(loss_fn, optax.sgd(0.1), fs.LocalTraining(epochs=5))
    """
    POSITIVE.check("eps", eps)
    base = averaged_descent(loss_fn, client_optimizer, check_local(local), optax.sgd(1.0))

    def finish(carry: Descent, message: Message, *_: Any) -> ClientOutput:
        d = difference(carry.params, message.params)
        return ClientOutput(with_share((d, squared_norm(d))))

    def server_update(server: Server, update: WithShare, *rest: Any) -> Server:
        mean, mean_square = ratio(update.value, update.share)
        square = squared_norm(mean)
        eta = jnp.maximum(1, mean_square / (2 * (square + jnp.asarray(eps, square.dtype))))
        return base.server_update(server, scaled(update.share * eta, mean), *rest)

    return base._replace(client=base.client._replace(finish=finish), server_update=server_update)
