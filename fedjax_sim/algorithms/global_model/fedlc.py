"""FedLC: Zhang et al. 2022, "Federated Learning with Label Distribution Skew via Logits
Calibration" (arXiv 2209.00189).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Stepped, averaged_descent, descend, model_difference
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.logits import classifier_of, training_logits
from fedjax_sim.algorithms.optimizers import MEAN, Optimizer
from fedjax_sim.algorithms.probes import Probed, probing
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import AT_LEAST_0, Option, declare
from fedjax_sim.core.types import Array, ClientOutput, FederatedAlgorithm, LocalTraining, LossFn

_ABSENT = 1e-8  # examples that a class counts as which a client has none of


@declare(
    "FedAvg whose clients calibrate logits by what they have of each class (Zhang et al. 2022)",
    Option("tau", "strength of the calibration", default=1.0, range=AT_LEAST_0, traced=True),
    facts=Facts(
        "clients descend on the cross-entropy of logits_c - tau n_c^(-1/4)",
        "`tau` = 0: FedAvg",
    ),
)
def fedlc(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    tau: ArrayLike,
    server_optimizer: optax.GradientTransformation = MEAN,
) -> FederatedAlgorithm:
    """FedAvg whose clients calibrate their logits by how many examples of each class they have.

    Client k has n_c examples of class c, and descends on the cross-entropy of

        logits_c - tau n_c^(-1/4)

    in the place of the logits, so that a class of few must be told from the others by a margin. A
    class of which it has none counts as 1e-8 examples, a margin of 100 tau, and is then all but out
    of its softmax. (The paper's formula leaves the class itself out of the softmax's denominator,
    where its derivation from pairwise margins, and popular code, have it.) With tau = 0 it is
    FedAvg. The loss that clients report is the calibrated one, the accuracy that of the logits as
    they are. A client passes over its labels once more; nothing more is sent.

    Args:
      loss_fn: from `fs.models.cross_entropy(apply)`, with any model's `apply`, because the
        calibration is of logits, which a loss of one's own does not tell.
      client_optimizer, local, server_optimizer: as in `fedavg`.
      tau: Float[] >= 0, may be traced.

    Raises:
      ValueError: as `fedavg`, for a negative tau, and for a loss that tells no logits.

    >>> import fedjax_sim as fs
    >>> loss_fn = fs.models.cross_entropy(fs.models.logistic_regression((2,), 3).apply)
    >>> algorithm = fs.fedlc(loss_fn, optax.sgd(0.1), fs.LocalTraining(epochs=5), tau=1.0)
    """
    AT_LEAST_0.check("tau", tau)
    classifier = classifier_of(loss_fn, "calibrated")
    logits_of = training_logits(classifier)
    base = averaged_descent(loss_fn, client_optimizer, check_local(local), server_optimizer)

    def probe(message: Any, client_state: Any, batch: Any, mask: Array) -> Array:
        shape = jax.eval_shape(classifier.logits, message.params, batch).shape
        labels = batch["y"].reshape(len(mask), -1)
        present = jnp.broadcast_to(mask[:, None], labels.shape)
        counts = jnp.zeros(shape[-1], jnp.result_type(float))
        return counts.at[labels].add(present.astype(counts.dtype))

    def calibrated(counts: Array) -> LossFn:
        margin = jnp.asarray(tau, counts.dtype) * jnp.maximum(counts, _ABSENT) ** -0.25

        def loss(params: Any, batch: Any, key: Array | None) -> tuple[Array, dict[str, Array]]:
            logits = logits_of(params, batch, key)
            shape = (1,) * (logits.ndim - 1) + margin.shape
            losses, _ = classifier.of_logits(
                logits - margin.reshape(shape).astype(logits.dtype), batch
            )
            return losses, classifier.of_logits(logits, batch)[1]

        return loss

    def step(carry: Probed, message: Any, client_state: Any, *block: Any) -> Stepped:
        _, own_step = descend(calibrated(carry.measured), client_optimizer)
        descent, metrics = own_step(carry.descent, message, client_state, *block)
        return carry._replace(descent=descent), metrics

    def finish(carry: Probed, *rest: Any) -> ClientOutput:
        return model_difference(carry.descent, *rest)

    client = probing(base.client, probe, finish, measure=lambda counts: counts)
    return base._replace(client=client._replace(step=step))
