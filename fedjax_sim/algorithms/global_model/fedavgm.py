"""FedAvgM: Hsu, Qi and Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification" (arXiv 1909.06335).
"""

from __future__ import annotations

from typing import Any

import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Server, averaged_descent
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import Optimizer
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import AT_LEAST_0, BELOW_1, Option, declare
from fedjax_sim.core.trees import accumulators, axpy, plus, scaled
from fedjax_sim.core.types import FederatedAlgorithm, LocalTraining, LossFn


@declare(
    "FedAvg with momentum at the server (Hsu et al. 2019)",
    Option("momentum", "the server's momentum", default=0.9, range=BELOW_1, traced=True),
    facts=Facts("v <- momentum v + u, w <- w + server_lr v", "`momentum` = 0: FedAvg"),
)
def fedavgm(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    server_lr: ArrayLike = 1.0,
    momentum: ArrayLike = 0.9,
) -> FederatedAlgorithm:
    """FedAvg with heavy-ball momentum at the server.

    With u the averaged update, `sum_k a_k d_k / denominator`, and v_0 = 0,

        v <- momentum v + u
        w <- w + server_lr v

    With momentum 0 it is FedAvg. From one state, u under `all_clients` is n_V / n times that under
    `selected`; the velocity of earlier rounds is not scaled.

    Args:
      loss_fn, client_optimizer, local: as in `fedavg`.
      server_lr: Float[] >= 0, may be traced.
      momentum: Float[] in [0, 1), may be traced.

    Raises:
      ValueError: as `fedavg`, and for a number out of range.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedavgm(loss_fn, optax.sgd(0.1), fs.LocalTraining(epochs=5), momentum=0.9)
    """
    AT_LEAST_0.check("server_lr", server_lr)
    BELOW_1.check("momentum", momentum)

    def server_update(server: Server, update: Any, *_: Any) -> Server:
        velocity = plus(scaled(momentum, server.optimizer), update)
        return Server(axpy(server_lr, velocity, server.params), velocity)

    base = averaged_descent(loss_fn, client_optimizer, check_local(local), optax.sgd(1.0))
    return base._replace(
        init=lambda params: Server(params, accumulators(params)), server_update=server_update
    )
