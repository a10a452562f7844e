"""FedPer: Arivazhagan et al. 2019, "Federated Learning with Personalization Layers"
(arXiv 1912.00818).
"""

from __future__ import annotations

import optax

from fedjax_sim.algorithms.descent import averaged_descent
from fedjax_sim.algorithms.facts import PERSONAL_HEAD, Facts
from fedjax_sim.algorithms.optimizers import MEAN, Optimizer
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.paths import Chosen
from fedjax_sim.core.registry import declare
from fedjax_sim.core.types import FederatedAlgorithm, LocalTraining, LossFn
from fedjax_sim.transforms.sharing import partial


@declare(
    "FedAvg of the base, under a head that stays with each client (Arivazhagan et al. 2019)",
    PERSONAL_HEAD,
    facts=Facts(
        "u <- u + sum a_k (u_k - u) / denominator of the base; heads stay: v_k",
        "were the head shared, too: FedAvg",
        options={"personal": "head"},
    ),
)
def fedper(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    personal: Chosen,
    server_optimizer: optax.GradientTransformation = MEAN,
) -> FederatedAlgorithm:
    """FedAvg of a model's base, while its last layers, the head, stay with each client.

    A client trains base u and its head v_k together, by the same steps, and sends u_k alone:

        u_{t+1} = u_t + server_optimizer(-sum_k a_k (u_k - u_t) / denominator),   v_k <- v_k'

    It is `fs.partial` of FedAvg, whose words on what is kept and counted hold here; a head of
    other shapes than its neighbours' is not possible, since all models have one structure. (In
    the paper all clients take part in every round.)

    Args:
      loss_fn, client_optimizer, local, server_optimizer: as in `fedavg`.
      personal: which parameters are the head, as in `fs.partial`.

    Raises:
      ValueError: as `fedavg` and `fs.partial`.

    >>> import fedjax_sim as fs, jax
    >>> model = fs.models.mlp((4,), hidden=(8,), outputs=3)  # layers_1, and layers_3, the head
    >>> loss_fn = fs.models.cross_entropy(model.apply)
    >>> algorithm = fs.fedper(loss_fn, optax.sgd(0.1), fs.LocalTraining(), "layers_3")
    >>> state = algorithm.init_client(model.init(jax.random.key(0)))
    >>> {path: x.shape for path, x in state.personal.items()}
    {'layers_3/bias': (3,), 'layers_3/kernel': (8, 3)}
    """
    base = averaged_descent(loss_fn, client_optimizer, check_local(local), server_optimizer)
    return partial(base, personal)
