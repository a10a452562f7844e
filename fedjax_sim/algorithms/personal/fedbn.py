"""FedBN: Li et al. 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization" (arXiv 2102.07623).
"""

from __future__ import annotations

import optax

from fedjax_sim.algorithms.descent import averaged_descent
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import MEAN, Optimizer
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.paths import Chosen, by_path
from fedjax_sim.core.registry import Option, declare
from fedjax_sim.core.types import FederatedAlgorithm, LocalTraining, LossFn, Params, PyTree
from fedjax_sim.transforms.sharing import partial


def is_of_a_norm(path: str) -> bool:
    """Whether a layer on the path is called a norm: "GroupNorm_0/scale", "norm1/bias", "bn/mean".

    >>> is_of_a_norm("block/BatchNorm_0/scale"), is_of_a_norm("Dense_0/bias")
    (True, False)
    """
    layers = path.lower().split("/")[:-1]
    return any("norm" in layer or layer.rstrip("0123456789_") == "bn" for layer in layers)


@declare(
    "FedAvg of all but the normalisation layers, which stay with each client (Li et al. 2021)",
    Option(
        "personal",
        "paths or patterns of the normalisation's parameters, with commas between several; those "
        "of layers called norm or bn unless it is given",
        kind=str,
        metavar="PATHS",
    ),
    facts=Facts(
        "u <- u + sum a_k (u_k - u) / denominator of all but the norms, which stay: v_k",
        "were the norms shared, too: FedAvg",
    ),
)
def fedbn(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    personal: Chosen = is_of_a_norm,
    server_optimizer: optax.GradientTransformation = MEAN,
) -> FederatedAlgorithm:
    """FedAvg of all but the normalisation layers, for clients whose features are shifted.

    A client trains all parameters and sends those that are no normalisation's:

        u_{t+1} = u_t + server_optimizer(-sum_k a_k (u_k - u_t) / denominator),   v_k <- v_k'

    It is `fs.partial` of FedAvg, with v the scales and offsets of the norms. The paper's norms are
    batch norms, whose statistics stay with the client, too.

    Args:
      loss_fn, client_optimizer, local, server_optimizer: as in `fedavg`.
      personal: which parameters are of norms, as in `fs.partial`; by default those of layers whose
        name has "norm" in it, in either case, or is "bn" with a number.

    Raises:
      ValueError: as `fedavg` and `fs.partial`, as from `fs.init` for a model without a norm.

    >>> import fedjax_sim as fs, jax
    >>> model = fs.models.resnet18()
    >>> loss_fn = fs.models.cross_entropy(model.apply)
    >>> algorithm = fs.fedbn(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    >>> params = jax.eval_shape(model.init, jax.random.key(0))
    >>> own = jax.eval_shape(algorithm.init_client, params).personal
    >>> {path.split("/")[-2].split("_")[0] for path in own}
    {'GroupNorm'}
    """
    base = averaged_descent(loss_fn, client_optimizer, check_local(local), server_optimizer)
    algorithm = partial(base, personal)

    def check(params: Params, batch: PyTree) -> None:
        paths = [*by_path(params)]
        if not any(map(is_of_a_norm, paths)):
            raise ValueError(
                "personal must name the normalisation's parameters, because no layer of this model "
                f"is called norm or bn; got none, and there are {', '.join(paths)}"
            )
        if algorithm.check is not None:
            algorithm.check(params, batch)

    return algorithm._replace(check=check) if personal is is_of_a_norm else algorithm
