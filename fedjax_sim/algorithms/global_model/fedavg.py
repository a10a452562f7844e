"""FedAvg: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
Decentralized Data" (arXiv 1602.05629).
"""

from __future__ import annotations

import optax

from fedjax_sim.algorithms.descent import averaged_descent
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import MEAN, Optimizer
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import declare
from fedjax_sim.core.types import FederatedAlgorithm, LocalTraining, LossFn


@declare(
    "local epochs, then the mean of the models (McMahan et al. 2017)",
    is_default=True,
    facts=Facts(
        "w <- w + sum a_k d_k / denominator",
        "E = 1 and B = infinity: FedSGD",
        "two readings of the mean, over the selected and over all K, are taken for one",
    ),
)
def fedavg(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    server_optimizer: optax.GradientTransformation = MEAN,
) -> FederatedAlgorithm:
    """Federated averaging: E local epochs, then the mean of the models.

    Client k starts from w_t and takes its `local` steps of `client_optimizer` on the mean
    loss of a block, to w_k. The server steps along the mean of `d_k = w_k - w_t`:

        w_{t+1} = w_t + server_optimizer(-sum_k a_k d_k / denominator)

    with coefficients from the aggregation rule. With the default server optimizer,
    `optax.sgd(1.0)`, that is the weighted mean of the models. An adaptive server
    optimizer gives FedAdam and its kin (Reddi et al. 2021, arXiv 2003.00295).

    Args:
      loss_fn: (params, batch, key) -> losses[B], or (losses[B], {name: values[B]}).
      client_optimizer: an optax transformation, or a function of the round (Int[])
        returning one, as `lambda round: optax.sgd(schedule(round))` with a learning-rate
        schedule of optax; the message then carries the round.
      local: E, B, shuffling and order.
      server_optimizer: an optax transformation on the pseudo-gradient.

    Raises:
      ValueError: for a `local` out of range or what is not an optimizer; from `fs.init`,
        if the loss or an optimizer does not fit params and data.

    >>> import fedjax_sim as fs, jax.numpy as jnp
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining(epochs=5))

    A learning rate that falls over 100 rounds:

    >>> schedule = optax.cosine_decay_schedule(0.1, decay_steps=100)
    >>> algorithm = fs.fedavg(loss_fn, lambda round: optax.sgd(schedule(round)), fs.LocalTraining())
    """
    return averaged_descent(loss_fn, client_optimizer, check_local(local), server_optimizer)
