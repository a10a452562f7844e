"""FedDF: Lin et al. 2020, "Ensemble Distillation for Robust Model Fusion in Federated Learning"
(arXiv 2006.07242).
"""

from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Descent, Server, averaged_descent, checks
from fedjax_sim.algorithms.distillation import check_unlabelled_fits, distiller
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.logits import classifier_of
from fedjax_sim.algorithms.optimizers import Optimizer
from fedjax_sim.algorithms.ratios import WithShare, with_share
from fedjax_sim.algorithms.rules import averages_alone
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import AT_LEAST_0, AT_LEAST_1, POSITIVE, Option, declare
from fedjax_sim.core.trees import cast, difference, scaled, weighted_sum
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    Coefficients,
    FederatedAlgorithm,
    LocalTraining,
    LossFn,
)


@declare(
    "FedAvg whose server distils what the clients' models say together (Lin et al. 2020)",
    Option(
        "distill_steps",
        "the server's steps of Adam in a round",
        default=100,
        kind=int,
        range=AT_LEAST_0,
        parameter="steps",
    ),
    Option("distill_lr", "Adam's rate", default=1e-3, range=POSITIVE, traced=True, parameter="lr"),
    Option(
        "distill_batch",
        "examples of a step of the server's",
        default=128,
        kind=int,
        range=AT_LEAST_1,
        parameter="batch_size",
    ),
    facts=Facts(
        "w <- Adam on KL(mean_k logits(w_k) || logits(w)) from w = sum_k a_k w_k",
        "`distill_steps` = 0: FedAvg",
    ),
)
def feddf(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    unlabelled: Any,
    steps: int,
    lr: ArrayLike,
    batch_size: int | None = 128,
) -> FederatedAlgorithm:
    """FedAvg whose server distils what the clients' models say together into their mean.

    With w_k the clients' models and a_k the rule's coefficients over their sum, the server takes
    `steps` steps of Adam from `w = sum_k a_k w_k` down the mean over unlabelled examples of

        KL( softmax(mean_k logits(w_k, x)) || softmax(logits(w, x)) )

    with the mean over those that report, each counting once (the paper's equation 2). Then
    `w_{t+1} = w_t + s (w - w_t)`, s being the sum of the rule's coefficients over its
    denominator: 1, but n_V / n under `all_clients`. With no steps it is FedAvg. A round holds m
    models at once; what travels is FedAvg's.

    Args:
      loss_fn: from `fs.models.cross_entropy(apply)`, because logits are what is distilled.
      client_optimizer, local: as in `fedavg`.
      unlabelled: examples without labels, `{"x": Float[U, ...]}`, on the server.
      steps, lr: >= 0, of Adam; Float[] > 0, its rate, which may be traced.
      batch_size: examples of a step, drawn evenly; None for all of them.

    Raises:
      ValueError: as `fedavg`, for a number out of range, a loss without logits, unlabelled examples
        that do not fit, and a rule that combines all updates.

    >>> import fedjax_sim as fs, numpy as np
    >>> loss_fn = fs.models.cross_entropy(fs.models.logistic_regression((2,), 3).apply)
    >>> algorithm = fs.feddf(loss_fn, optax.sgd(0.1), fs.LocalTraining(),
    ...                      {"x": np.zeros((8, 2), np.float32)}, steps=5, lr=1e-3)
    """
    POSITIVE.check("lr", lr)
    classifier = classifier_of(loss_fn, "distilled")
    distil = distiller(classifier, unlabelled, steps, optax.adam(lr), batch_size)
    base = averaged_descent(loss_fn, client_optimizer, check_local(local), optax.sgd(1.0))

    def ensemble(coefficients: Coefficients) -> Coefficients:
        def combine(updates: WithShare, weights: Array, counted: Array, key: Array) -> WithShare:
            a = jnp.where(counted, weights, 0)
            total, teachers = jnp.sum(a), updates.value
            # In float32 or better: what keeps Adam from dividing by 0 is 0 in float16.
            student = weighted_sum(a / jnp.where(total > 0, total, 1), counted, teachers)
            share = total / coefficients.divisor(total)
            return WithShare(distil(student, teachers, counted, key), share)

        return coefficients._replace(combine=combine)

    def finish(carry: Descent, *_: Any) -> ClientOutput:
        return ClientOutput(with_share(carry.params))

    def server_update(server: Server, update: WithShare, total: Any, context: Any) -> Server:
        toward = difference(update.value, cast(server.params, update.value))
        return base.server_update(server, scaled(update.share, toward), total, context)

    def check_unlabelled(params: Any, examples: Any) -> None:
        check_unlabelled_fits(classifier, params, unlabelled)

    return base._replace(
        client=base.client._replace(finish=finish),
        server_update=server_update,
        check=checks(base.check, check_unlabelled),
        check_rule=averages_alone("its server combines all models itself"),
        aggregation=ensemble,
        wire=lambda update, total: update.value,
    )
