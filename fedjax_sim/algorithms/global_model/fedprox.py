"""FedProx: Li et al. 2020, "Federated Optimization in Heterogeneous Networks"
(arXiv 1812.06127).
"""

from __future__ import annotations

from typing import Any

import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import averaged_descent
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import MEAN, Optimizer
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import AT_LEAST_0, Option, declare
from fedjax_sim.core.trees import axpy, difference
from fedjax_sim.core.types import FederatedAlgorithm, LocalTraining, LossFn, Params, PyTree


@declare(
    "FedAvg whose clients are held near the global model (Li et al. 2020)",
    Option("mu", "weight of the proximal term", default=0.01, range=AT_LEAST_0, traced=True),
    facts=Facts(
        "clients descend on F_k(w') + (mu / 2) |w' - w|^2",
        "`mu` = 0: FedAvg",
        "the square forgotten; the reference aliased, so that the term is zero",
    ),
)
def fedprox(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    mu: ArrayLike,
    server_optimizer: optax.GradientTransformation = MEAN,
) -> FederatedAlgorithm:
    """FedAvg whose clients are held near the global model.

    Client k descends on `F_k(w) + (mu / 2) |w - w_t|^2`: each step's gradient is
    `g + mu (w - w_t)`. A straggler's partial work counts (`Cohort.work`). With mu = 0 it
    is FedAvg.

    Args:
      loss_fn, client_optimizer, local, server_optimizer: as in `fedavg`.
      mu: Float[] >= 0, may be traced.

    Raises:
      ValueError: as `fedavg`, and for a negative mu.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedprox(loss_fn, optax.sgd(0.1), fs.LocalTraining(epochs=5), mu=0.01)
    """
    AT_LEAST_0.check("mu", mu)

    def adjust(grads: PyTree, params: Params, message: Any, client_state: PyTree) -> PyTree:
        return axpy(mu, difference(params, message.params), grads)

    return averaged_descent(loss_fn, client_optimizer, check_local(local), server_optimizer, adjust)
