"""Per-FedAvg: Fallah, Mokhtari and Ozdaglar 2020, "Personalized Federated Learning with
Theoretical Guarantees: A Model-Agnostic Meta-Learning Approach" (arXiv 2002.07948).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import (
    Descent,
    Message,
    Server,
    Stepped,
    averaged_descent,
    checks,
)
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.probes import measures
from fedjax_sim.core.checks import check_known, check_number
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.loss import mean_gradient, mean_loss
from fedjax_sim.core.registry import AT_LEAST_0, Option, declare
from fedjax_sim.core.types import Array, FederatedAlgorithm, LocalTraining, LossFn

HESSIANS = ("exact", "first_order")


@declare(
    "a model from which one step on a client's examples leads far (Fallah et al. 2020)",
    Option("meta_lr", "rate of adapting", 0.01, range=AT_LEAST_0, traced=True, parameter="alpha"),
    Option("hessian", "derivative of adapting", default="exact", kind=str, choices=HESSIANS),
    without=("schedule",),
    symbols={"client_lr": "beta"},
    facts=Facts(
        "w <- w - beta (I - alpha Hess F(w)) grad F(w - alpha grad F(w))",
        "`meta_lr` = 0, full batches: FedAvg",
        "the second step from the wrong point, or on test data; trained twice",
    ),
)
def perfedavg(
    loss_fn: LossFn,
    alpha: ArrayLike,
    beta: ArrayLike,
    local: LocalTraining,
    hessian: str = "exact",
) -> FederatedAlgorithm:
    """A model that is good once a client has taken one step of its own from it.

    The objective is `sum_k p_k F_k(w - alpha grad F_k(w))`. A local step, on a block D, is

        w <- w - beta (I - alpha Hess F(w; D1)) grad F(w - alpha grad F(w; D1); D2)

    without the Hessian where it is "first_order". D1 and D2 are the block's examples of even and of
    odd places, which differ, since one sample in both would bias the step; a full batch
    (`batch_size=None`), and a block of one example, are both. The server averages as FedAvg's.
    What client k uses is `w - alpha grad F_k(w)`, over all its examples. With alpha = 0, full
    batches and `client_lr = beta` it is FedAvg. An exact step costs some four gradients.

    Args:
      loss_fn, local: as in `fedavg`; twice differentiable where it is exact.
      alpha: Float[] >= 0, the rate of a client's own step, may be traced.
      beta: Float[] > 0, the rate of local training, may be traced.
      hessian: "exact" or "first_order".

    Raises:
      ValueError: as `fedavg`, and for a number out of range or another word; from `fs.init`, too,
        if the loss cannot be computed without a key.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.perfedavg(loss_fn, 0.01, 0.1, fs.LocalTraining(epochs=5))
    """
    check_number("alpha", alpha, lambda x: x >= 0, "at least 0")
    check_number("beta", beta, lambda x: x > 0, "positive")
    check_known(hessian, HESSIANS, "hessian")
    base = averaged_descent(loss_fn, optax.sgd(beta), check_local(local), optax.sgd(1.0))
    value, gradient = mean_loss(loss_fn), mean_gradient(loss_fn)

    def adapt(params: Any, grads: Any) -> Any:
        return jax.tree.map(lambda w, g: w - jnp.asarray(alpha, w.dtype) * g, params, grads)

    def after_a_step(params: Any, batch: Any, masks: tuple[Array, Array], key: Array) -> Stepped:
        first, second = jax.random.split(key)
        grads, metrics = gradient(params, batch, masks[0], first)
        if hessian == "first_order":
            grads = jax.lax.stop_gradient(grads)
        return value(adapt(params, grads), batch, masks[1], second)[0], metrics

    def halves(mask: Array) -> tuple[Array, Array]:
        if local.batch_size is None:
            return mask, mask
        even = jnp.arange(len(mask)) % 2 == 0
        odd = mask & ~even
        several = jnp.any(odd)
        return mask & even, jnp.where(several, odd, mask)

    def step(
        carry: Descent, message: Message, state: Any, batch: Any, mask: Array, key: Array
    ) -> Stepped:
        meta_gradient = jax.grad(after_a_step, has_aux=True)
        grads, metrics = meta_gradient(carry.params, batch, halves(mask), key)

        def move(w: Array, g: Array) -> Array:
            return w - jnp.asarray(beta, w.dtype) * g

        return carry._replace(params=jax.tree.map(move, carry.params, grads)), metrics

    def probe(message: Message, state: Any, batch: Any, mask: Array) -> tuple[Any, Array]:
        grads, metrics = gradient(message.params, batch, mask, None)
        count = metrics["loss"][1]
        return jax.tree.map(lambda g: g * count.astype(g.dtype), grads), count

    def personal(server: Server, state: Any, probed: tuple[Any, Array]) -> Any:
        total, count = probed
        count_or_1 = jnp.maximum(count, 1)
        return adapt(server.params, jax.tree.map(lambda g: g / count_or_1.astype(g.dtype), total))

    return base._replace(
        client=base.client._replace(step=step),
        check=checks(base.check, measures(loss_fn)),
        personal=personal,
        personal_probe=probe,
    )
