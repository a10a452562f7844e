"""FedBABU: Oh, Kim and Yun 2022, "FedBABU: Toward Enhanced Representation for Federated Image
Classification" (arXiv 2106.06042).
"""

from __future__ import annotations

from typing import Any

import optax

from fedjax_sim.algorithms.descent import averaged_descent
from fedjax_sim.algorithms.facts import PERSONAL_HEAD, Facts
from fedjax_sim.algorithms.optimizers import (
    MEAN,
    Optimizer,
    check_optimizer,
    is_schedule,
    optimizer_at,
)
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.paths import Chosen, are_chosen
from fedjax_sim.core.registry import declare
from fedjax_sim.core.types import FederatedAlgorithm, LocalTraining, LossFn
from fedjax_sim.transforms.sharing import partial


@declare(
    "FedAvg of the body, under a head that is never trained together (Oh et al. 2022)",
    PERSONAL_HEAD,
    facts=Facts(
        "u <- u + mean (u_k - u) of the body; the first head stays, and is fine-tuned at the end",
        "were the head trained and shared: FedAvg",
        options={"personal": "head"},
    ),
)
def fedbabu(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    personal: Chosen,
    server_optimizer: optax.GradientTransformation = MEAN,
) -> FederatedAlgorithm:
    """FedAvg of a model's body, while its head stays as it was drawn, the same for all clients.

    With the first head v a client trains and sends its body alone:

        u_{t+1} = u_t + server_optimizer(-sum_k a_k (u_k - u_t) / denominator),   v stays

    and what a client uses is the whole model, fine-tuned on its own examples once federated
    training has ended: `fs.evaluate_clients(..., fine_tune=...)` measures before and after. It is
    `fs.partial` of FedAvg whose heads do not move, so the head does not travel; clients hold K
    copies of it.

    Args:
      loss_fn, client_optimizer, local, server_optimizer: as in `fedavg`.
      personal: which parameters are the head, as in `fs.partial`.

    Raises:
      ValueError: as `fedavg` and `fs.partial`.

    >>> import fedjax_sim as fs, jax
    >>> model = fs.models.mlp((4,), hidden=(8,), outputs=3)  # layers_1, and layers_3, the head
    >>> loss_fn = fs.models.cross_entropy(model.apply)
    >>> algorithm = fs.fedbabu(loss_fn, optax.sgd(0.1), fs.LocalTraining(), "layers_3")
    """
    check_optimizer("client_optimizer", client_optimizer, may_be_schedule=True)

    def frozen(params: Any) -> Any:
        return are_chosen("personal", personal, params)

    def of_body(round: Any) -> optax.GradientTransformation:
        whole = optimizer_at(client_optimizer, round)
        return optax.chain(whole, optax.masked(optax.set_to_zero(), frozen))

    optimizer: Any = of_body if is_schedule(client_optimizer) else of_body(())
    base = averaged_descent(loss_fn, optimizer, check_local(local), server_optimizer)
    return partial(base, personal)
