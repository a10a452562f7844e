"""FedSAM: Qu et al. 2022, "Generalized Federated Learning via Sharpness Aware Minimization"
(arXiv 2206.02618).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Stepped, averaged_descent
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import MEAN, Optimizer
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.loss import mean_gradient
from fedjax_sim.core.registry import AT_LEAST_0, Option, declare
from fedjax_sim.core.trees import axpy, global_norm
from fedjax_sim.core.types import FederatedAlgorithm, LocalTraining, LossFn


@declare(
    "FedAvg whose clients descend to flat minima (Qu et al. 2022)",
    Option("rho", "how far up the slope a step looks", default=0.05, range=AT_LEAST_0, traced=True),
    facts=Facts("clients step along the gradient at w + rho g(w) / |g(w)|", "`rho` = 0: FedAvg"),
)
def fedsam(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    rho: ArrayLike,
    server_optimizer: optax.GradientTransformation = MEAN,
) -> FederatedAlgorithm:
    """FedAvg whose clients take the gradient at the worst point near by.

    A local step on a block is `client_optimizer` on the gradient, of the same block and key, at

        w~ = w + rho g(w) / |g(w)|

    and at w itself where the norm, of all parameters together, is 0. What is reported of training
    is of w. With rho = 0 it is FedAvg. It costs two gradients a step.

    Args:
      loss_fn, client_optimizer, local, server_optimizer: as in `fedavg`.
      rho: Float[] >= 0, may be traced.

    Raises:
      ValueError: as `fedavg`, and for a negative rho.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedsam(loss_fn, optax.sgd(0.1), fs.LocalTraining(epochs=5), rho=0.05)
    """
    AT_LEAST_0.check("rho", rho)
    plain = mean_gradient(loss_fn)

    def gradient(params: Any, *block: Any) -> Stepped:
        grads, metrics = plain(params, *block)
        norm = global_norm(grads)
        distance = jnp.asarray(rho, norm.dtype) / jnp.where(norm > 0, norm, 1)
        return plain(axpy(distance, grads, params), *block)[0], metrics

    return averaged_descent(
        loss_fn, client_optimizer, check_local(local), server_optimizer, gradient=gradient
    )
