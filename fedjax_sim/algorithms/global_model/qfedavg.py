"""q-FedAvg: Li et al. 2020, "Fair Resource Allocation in Federated Learning"
(arXiv 1905.10497).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Descent, Message, Server, averaged_descent, checks
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.probes import loss_probe, measures, probing
from fedjax_sim.algorithms.ratios import ratio
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import AT_LEAST_0, POSITIVE, Option, declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.trees import scaled, squared_norm
from fedjax_sim.core.types import Array, ClientOutput, FederatedAlgorithm, LocalTraining, LossFn


@one_line
class FairDescent(NamedTuple):
    """A client's carry: FedAvg's, and its loss F_k(w_t) before the first step, Float[]."""

    descent: Descent
    loss: Array


@one_line
class FairUpdate(NamedTuple):
    """What a client sends."""

    gradient: Any  # F_k^q (w_t - w_k) / client_lr; in float32 of float16, which ends at 65504
    slope: Array  # Float[], h_k
    share: Array  # Float[], 1: its average is the scale that the rule has given to the other two


@declare(
    "FedAvg in which clients with a larger loss weigh more (Li et al. 2020)",
    Option(
        "q",
        "how much more clients of high loss weigh, 0 for alike",
        default=1.0,
        range=AT_LEAST_0,
        traced=True,
    ),
    without=("schedule",),
    facts=Facts(
        "w <- w - sum p_k F_k^q g_k / sum p_k (q F_k^(q-1) |g_k|^2 + F_k^q / client_lr), g_k "
        "= -d_k / client_lr",
        "`q` = 0: FedAvg",
        "the norm squared twice",
    ),
)
def qfedavg(
    loss_fn: LossFn, client_lr: ArrayLike, local: LocalTraining, q: ArrayLike
) -> FederatedAlgorithm:
    """FedAvg in which clients weigh more the larger their loss is, for fairness.

    The objective is `sum_k p_k F_k(w)^(q + 1) / (q + 1)`, with F_k the mean loss of client k. A
    client computes F_k = F_k(w_t), takes its local steps of SGD to w_k, and sends, with
    `g_k = (w_t - w_k) / client_lr`,

        F_k^q g_k   and   h_k = q F_k^(q - 1) |g_k|^2 + F_k^q / client_lr

    of which the server, with the means over those that report, makes

        w_{t+1} = w_t - (sum_k p_k F_k^q g_k) / (sum_k p_k h_k)

    where p_k are the aggregation rule's coefficients over their sum, and the step is times that
    sum (n_V / n under `all_clients`). The paper's experiments have `fs.aggregation.uniform`, over
    clients drawn by weight. With q = 0 it is FedAvg. h_k bounds how fast the objective's gradient
    changes, given that F_k's does so at most at 1 / client_lr: so the rate that is good for q = 0
    serves every q. It costs one more pass over a client's examples, to compute F_k, and sends two
    numbers more than FedAvg, and a model of float16 in float32.

    Args:
      loss_fn: (params, batch, key) -> losses[B], or (losses[B], {name: values[B]}), losses not
        negative, since a power of a negative one may be NaN. F_k is of `key` None.
      client_lr: Float[] > 0, the paper's 1 / L, may be traced.
      local: E, B, shuffling and order.
      q: Float[] >= 0, may be traced: the larger, the more equal are the clients' losses.

    Raises:
      ValueError: for a `local` or a number out of range; from `fs.init`, if the loss does not fit
        params and data, or cannot be computed without a key.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.qfedavg(loss_fn, 0.1, fs.LocalTraining(epochs=5), q=2.0)
    """
    POSITIVE.check("client_lr", client_lr)
    AT_LEAST_0.check("q", q)
    base = averaged_descent(loss_fn, optax.sgd(client_lr), check_local(local), optax.sgd(1.0))

    def finish(carry: FairDescent, message: Message, *_: Any) -> ClientOutput:
        loss, dtype = carry.loss, carry.loss.dtype
        exponent, rate = jnp.asarray(q, dtype), jnp.asarray(client_lr, dtype)
        # A loss of 0 has no power below 0; its client is at its best, and its gradient is 0.
        is_positive = loss != 0
        base_of_power = jnp.where(is_positive, loss, 1)
        weight = jnp.where(is_positive, base_of_power**exponent, jnp.where(exponent == 0, 1.0, 0.0))
        bend = jnp.where(is_positive, exponent * base_of_power ** (exponent - 1), 0)

        def slope_of(w: Array, w_t: Array) -> Array:
            dtype = jnp.float32 if w.dtype == jnp.float16 else w.dtype
            return (w_t.astype(dtype) - w.astype(dtype)) / jnp.asarray(client_lr, dtype)

        gradient = jax.tree.map(slope_of, carry.descent.params, message.params)
        slope = bend * squared_norm(gradient).astype(dtype) + weight / rate
        return ClientOutput(FairUpdate(scaled(weight, gradient), slope, jnp.ones_like(slope)))

    def server_update(server: Server, update: FairUpdate, *rest: Any) -> Server:
        # Of two averages that are divided the rule's scale is gone, and the step has to have it.
        quotient = ratio(update.gradient, update.slope)
        return base.server_update(server, scaled(-update.share, quotient), *rest)

    return base._replace(
        client=probing(base.client, loss_probe(loss_fn), finish, carry=FairDescent),
        server_update=server_update,
        check=checks(base.check, measures(loss_fn)),
    )
