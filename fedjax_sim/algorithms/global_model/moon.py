"""MOON: Li, He and Song 2021, "Model-Contrastive Federated Learning" (arXiv 2103.16257)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Descent, LastModel, averaged_descent, checks, descend
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import MEAN, Optimizer
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.loss import per_example
from fedjax_sim.core.registry import AT_LEAST_0, POSITIVE, Option, declare
from fedjax_sim.core.trees import difference, shapes_with, widened
from fedjax_sim.core.types import Array, ClientOutput, FederatedAlgorithm, LocalTraining, LossFn

Features = Callable[[Any, Any], Array]  # (params, batch) -> Float[B, d]


@declare(
    "FedAvg whose clients are drawn to what the global model sees (Li et al. 2021)",
    Option("mu", "weight of the contrastive term", default=1.0, range=AT_LEAST_0, traced=True),
    Option(
        "temperature",
        "temperature of the contrastive term",
        default=0.5,
        range=POSITIVE,
        traced=True,
    ),
    facts=Facts(
        "descent on F_k + mu mean log(1 + exp((cos(z, z_before) - cos(z, z_w)) / temperature))",
        "`mu` = 0: FedAvg",
    ),
)
def moon(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    mu: ArrayLike = 1.0,
    temperature: ArrayLike = 0.5,
    features: Features | None = None,
    server_optimizer: optax.GradientTransformation = MEAN,
) -> FederatedAlgorithm:
    """FedAvg whose clients are drawn to what the global model sees, and from what they saw before.

    Client k keeps its last model w_k', at first the initial one. From w_t it descends on the mean
    of `loss_i(w) + mu c_i(w)`, with the representations z = features(w, x_i), z_t of the global
    model and z' of w_k', and cosines of the angles between them,

        c_i = -log( e^(cos(z, z_t) / temperature)
                    / (e^(cos(z, z_t) / temperature) + e^(cos(z, z') / temperature)) )

    The loss that clients report is that sum. With mu = 0 it is FedAvg. Features are
    computed of three models in every step. The memory is K models.

    Args:
      loss_fn, client_optimizer, local, server_optimizer: as in `fedavg`.
      mu, temperature: Float[] >= 0 and Float[] > 0, may be traced.
      features: (params, batch) -> Float[B, d], the representation of each example, which depends
        on that example alone: the paper's is a projection of what enters the last layer, which a
        loss does not tell. None for the model's outputs, of a loss from `fs.models.cross_entropy`.

    Raises:
      ValueError: as `fedavg`, for a number out of range, and without features for another loss;
        from `fs.init`, for features that are not `[B, d]`; from `fs.run`, for one drawn twice.

    >>> import fedjax_sim as fs
    >>> features = lambda w, batch: jnp.tanh(batch["x"] @ w["in"])
    >>> loss_fn = lambda w, batch, key: (features(w, batch) @ w["out"] - batch["y"]) ** 2
    >>> algorithm = fs.moon(loss_fn, optax.sgd(0.1), fs.LocalTraining(epochs=5), features=features)
    """
    AT_LEAST_0.check("mu", mu)
    POSITIVE.check("temperature", temperature)
    seen = _outputs(loss_fn) if features is None else features
    base = averaged_descent(loss_fn, client_optimizer, check_local(local), server_optimizer)

    def contrastive(of_global: Any, of_before: Any) -> LossFn:
        def loss(params: Any, batch: Any, key: Array | None) -> tuple[Array, dict[str, Array]]:
            values = per_example(loss_fn, params, batch, key)
            z, z_t, z_before = widened(*(seen(w, batch) for w in (params, of_global, of_before)))
            nearer = _cosine(z, z_before) - _cosine(z, z_t)
            term = jax.nn.softplus(nearer / jnp.asarray(temperature, nearer.dtype))
            plain = values.pop("loss")
            return plain + (jnp.asarray(mu, term.dtype) * term).astype(plain.dtype), values

        return loss

    def step(carry: Descent, message: Any, before: LastModel, *block: Any) -> Any:
        _, own_step = descend(contrastive(message.params, before.params), client_optimizer)
        return own_step(carry, message, before, *block)

    def finish(carry: Descent, message: Any, before: LastModel, *_: Any) -> ClientOutput:
        return ClientOutput(difference(carry.params, message.params), (), LastModel(carry.params))

    return base._replace(
        init_client=LastModel,
        client=base.client._replace(step=step, finish=finish),
        check=checks(base.check, partial(_check_features, seen)),
    )


def _cosine(x: Array, y: Array) -> Array:
    """Float[B], the cosines of the angles between rows; 0 where a row is all zeros."""
    of_x, of_y = jnp.sum(x * x, axis=1), jnp.sum(y * y, axis=1)
    has_angle = (of_x > 0) & (of_y > 0)
    over_x, over_y = (jax.lax.rsqrt(jnp.where(has_angle, s, 1)) for s in (of_x, of_y))
    return jnp.where(has_angle, jnp.sum(x * y, axis=1) * over_x * over_y, 0)


def _outputs(loss_fn: Any) -> Features:
    """The outputs of the loss's model, for each example one vector."""
    if not callable(getattr(loss_fn, "logits", None)):
        raise ValueError(
            "features must be given, (params, batch) -> [B, d], for a loss that is not from "
            f"fs.models.cross_entropy; got {loss_fn!r}"
        )
    return lambda params, batch: jax.vmap(jnp.ravel)(loss_fn.logits(params, batch))


def _check_features(features: Features, params: Any, examples: Any) -> None:
    batch = shapes_with(examples, 3)
    shape = jnp.shape(jax.eval_shape(features, params, batch))
    if len(shape) != 2 or shape[0] != 3:
        raise ValueError(f"features must return [B, d]; of 3 examples it returns {list(shape)}")
