"""FedSGD: McMahan et al. 2017 (arXiv 1602.05629), E = 1 and B = infinity."""

from __future__ import annotations

import optax

from fedjax_sim.algorithms.descent import averaged_descent
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.gradient import ONE_FULL_BATCH, full_gradient, pooled_gradient
from fedjax_sim.core.registry import SameAs, declare
from fedjax_sim.core.types import FederatedAlgorithm, LossFn


@declare(
    "one gradient of each client, and a step at the server (McMahan et al. 2017)",
    defaults={"server_lr": SameAs("client_lr")},
    facts=Facts(
        "w <- w - server_lr sum a_k grad F_k(w) / denominator",
        "FedAvg of E = 1 and B = infinity",
    ),
)
def fedsgd(loss_fn: LossFn, server_optimizer: optax.GradientTransformation) -> FederatedAlgorithm:
    """Each client sends one full-batch gradient; the server takes the step.

        g_k = (1/n_k) sum_i grad loss_i(w_t)
        w_{t+1} = w_t + server_optimizer(sum_k a_k g_k / denominator)

    With `optax.sgd(eta)` the result is that of `fedavg` with `optax.sgd(eta)` clients,
    E = 1 and B = infinity. The sum is computed as one weighted gradient over the cohort's
    examples, without a model for each client; a loss that uses its key then draws for
    each example on its own. `make_round(nonfinite="drop")` needs the clients' gradients
    one by one and takes them so. Kept, a sum that is not finite though every loss is counts all
    its clients in `nonfinite`: under `sharded`, those of its device alone.

    Args:
      loss_fn: (params, batch, key) -> losses[B], or (losses[B], {name: values[B]}).
      server_optimizer: an optax transformation on the mean gradient.

    Raises:
      ValueError: for what is not an optimizer; from `fs.init`, if the loss or the
        optimizer does not fit params and data.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedsgd(loss_fn, optax.sgd(0.1))
    """
    # The clients' optimizer is not used, since a client sends its gradient as it is.
    base = averaged_descent(loss_fn, optax.sgd(1.0), ONE_FULL_BATCH, server_optimizer)
    return base._replace(client=full_gradient(loss_fn), pooled_gradient=pooled_gradient(loss_fn))
