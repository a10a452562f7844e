"""What benchmarks of attacks and of simulated time have in common: the digits and an MLP."""

from typing import Any, NamedTuple

import jax

import fedjax_sim as fs


class Problem(NamedTuple):
    """The digits of a Dirichlet split with alpha = 1, and an MLP of 32 hidden units."""

    data: fs.FederatedData
    test: fs.FederatedData
    model: fs.models.Model
    loss_fn: Any


def problem(num_clients: int) -> Problem:
    dataset = fs.datasets.digits()
    client_ids = fs.partition.dirichlet(
        jax.random.key(0), dataset.train["y"], num_clients, alpha=1.0
    )
    model = fs.models.mlp((8, 8), [32], 10)
    return Problem(
        fs.FederatedData.from_arrays(dataset.train, client_ids),
        fs.FederatedData.from_clients([dataset.test]),
        model,
        fs.models.cross_entropy(model.apply),
    )
