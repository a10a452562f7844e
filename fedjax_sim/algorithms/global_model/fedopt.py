"""FedAdagrad, FedAdam, FedYogi: Reddi et al. 2021, "Adaptive Federated Optimization"
(arXiv 2003.00295), Algorithm 2. Their servers are in `fs.server_optimizers`.
"""

from __future__ import annotations

from jax.typing import ArrayLike

from fedjax_sim.algorithms import server_optimizers
from fedjax_sim.algorithms.descent import averaged_descent
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import Optimizer
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import BELOW_1, POSITIVE, Option, declare
from fedjax_sim.core.types import FederatedAlgorithm, LocalTraining, LossFn

_B1 = Option("b1", "decay of the server's first moment", default=0.9, range=BELOW_1, traced=True)
_B2 = Option("b2", "decay of the server's second moment", default=0.99, range=BELOW_1, traced=True)
_TAU = Option("tau", "the larger, the less adaptive", default=1e-3, range=POSITIVE, traced=True)
_ADAPTIVE = (_B1, _B2, _TAU)
_LR = {"server_lr": 0.01}
_ADAGRAD = (Option("b1", _B1.help, default=0.0, range=BELOW_1, traced=True), _TAU)


@declare(
    "FedAvg whose server is Adagrad (Reddi et al. 2021)",
    *_ADAGRAD,
    defaults=_LR,
    facts=Facts(
        "m <- b1 m + (1 - b1) u, v <- v + u^2, w <- w + server_lr m / (sqrt(v) + tau)",
        "`b1` = 0 and a large `tau`: FedAvg at the rate server_lr / (2 tau)",
    ),
)
def fedadagrad(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    server_lr: ArrayLike = 0.01,
    b1: ArrayLike = 0.0,
    tau: ArrayLike = 1e-3,
) -> FederatedAlgorithm:
    """FedAvg whose server takes the averaged update u for a gradient of Adagrad.

        m <- b1 m + (1 - b1) u,   v <- v + u^2,   w <- w + server_lr m / (sqrt(v) + tau)

    from m = 0 and v = tau^2, without correction of bias. The paper's experiments have b1 = 0 here.
    From one state, u (and not the step) under `all_clients` is n_V / n times that under `selected`.

    Args:
      loss_fn, client_optimizer, local: as in `fedavg`.
      server_lr, tau: Float[] > 0, may be traced; b1: Float[] in [0, 1), may be traced.

    Raises:
      ValueError: as `fedavg`, and for a number out of range.

    >>> import fedjax_sim as fs, optax
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedadagrad(loss_fn, optax.sgd(0.1), fs.LocalTraining(epochs=5))
    """
    POSITIVE.check("server_lr", server_lr)
    server = server_optimizers.adagrad(server_lr, b1, tau)
    return averaged_descent(loss_fn, client_optimizer, check_local(local), server)


@declare(
    "FedAvg whose server is Adam (Reddi et al. 2021)",
    *_ADAPTIVE,
    defaults=_LR,
    facts=Facts(
        "as FedAdagrad, but v <- b2 v + (1 - b2) u^2",
        "`b1` = `b2` = 0: steps of server_lr u / (|u| + tau)",
        "debiased with another exponent; v_0 = 0; m^2 for u^2",
    ),
)
def fedadam(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    server_lr: ArrayLike = 0.01,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    tau: ArrayLike = 1e-3,
) -> FederatedAlgorithm:
    """FedAvg whose server takes the averaged update u for a gradient of Adam: as `fedadagrad`, with

        v <- b2 v + (1 - b2) u^2

    Args:
      loss_fn, client_optimizer, local, server_lr, b1, tau: as in `fedadagrad`.
      b2: Float[] in [0, 1), may be traced.

    Raises:
      ValueError: as `fedadagrad`.
    """
    POSITIVE.check("server_lr", server_lr)
    server = server_optimizers.adam(server_lr, b1, b2, tau)
    return averaged_descent(loss_fn, client_optimizer, check_local(local), server)


@declare(
    "FedAvg whose server is Yogi (Reddi et al. 2021)",
    *_ADAPTIVE,
    defaults=_LR,
    facts=Facts(
        "as FedAdagrad, but v <- v - (1 - b2) u^2 sign(v - u^2)",
        "`b1` = 0 and a large `tau`: FedAvg at the rate server_lr / (2 tau)",
    ),
)
def fedyogi(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    server_lr: ArrayLike = 0.01,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    tau: ArrayLike = 1e-3,
) -> FederatedAlgorithm:
    """FedAvg whose server takes the averaged update u for a gradient of Yogi: as `fedadagrad`, with

        v <- v - (1 - b2) u^2 sign(v - u^2)

    Args:
      loss_fn, client_optimizer, local, server_lr, b1, b2, tau: as in `fedadam`.

    Raises:
      ValueError: as `fedadagrad`.
    """
    POSITIVE.check("server_lr", server_lr)
    server = server_optimizers.yogi(server_lr, b1, b2, tau)
    return averaged_descent(loss_fn, client_optimizer, check_local(local), server)
