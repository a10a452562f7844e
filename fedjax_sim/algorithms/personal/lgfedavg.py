"""LG-FedAvg: Liang et al. 2020, "Think Locally, Act Globally: Federated Learning with Local and
Global Representations" (arXiv 2001.01523).
"""

from __future__ import annotations

import optax

from fedjax_sim.algorithms.descent import averaged_descent
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import MEAN, Optimizer
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.paths import Chosen
from fedjax_sim.core.registry import Option, declare
from fedjax_sim.core.types import FederatedAlgorithm, LocalTraining, LossFn
from fedjax_sim.transforms.sharing import partial


@declare(
    "FedAvg of the head, on a representation that stays with each client (Liang et al. 2020)",
    Option(
        "personal",
        "paths or patterns of the representation's parameters, as layers_1 of mlp, with commas "
        "between several",
        kind=str,
        metavar="PATHS",
    ),
    facts=Facts(
        "u <- u + sum a_k (u_k - u) / denominator of the head; representations stay: v_k",
        "were all shared: FedAvg",
        options={"personal": ("body", "norm")},
    ),
)
def lgfedavg(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    personal: Chosen,
    server_optimizer: optax.GradientTransformation = MEAN,
) -> FederatedAlgorithm:
    """FedAvg of a model's last layers, while the first, the representation, stay with each client.

    A client trains its representation v_k and the global u together, by the same steps, and
    sends u_k alone:

        u_{t+1} = u_t + server_optimizer(-sum_k a_k (u_k - u_t) / denominator),   v_k <- v_k'

    It is `fs.partial` of FedAvg, FedPer the other way up. (The authors begin with a model that
    FedAvg has trained: `params` of `fs.init`. A client that was never trained on has that model's
    representation; the paper's ensemble of all clients' models is not built. Its auxiliary losses
    are for `loss_fn` to add.)

    Args:
      loss_fn, client_optimizer, local, server_optimizer: as in `fedavg`.
      personal: which parameters are the representation, as in `fs.partial`.

    Raises:
      ValueError: as `fedavg` and `fs.partial`.

    >>> import fedjax_sim as fs, jax, numpy as np
    >>> model = fs.models.mlp((4,), hidden=(8,), outputs=3)  # layers_1, and layers_3, the head
    >>> loss_fn = fs.models.cross_entropy(model.apply)
    >>> algorithm = fs.lgfedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining(), "layers_1")
    >>> examples = {"x": np.ones((2, 4), np.float32), "y": np.zeros(2, np.int32)}
    >>> data = fs.FederatedData.from_clients([examples])
    >>> fs.communication(algorithm, model.init(jax.random.key(0)), data)  # the head: 8 x 3 and 3
    Communication(down=108, up=108)
    """
    base = averaged_descent(loss_fn, client_optimizer, check_local(local), server_optimizer)
    return partial(base, personal)
