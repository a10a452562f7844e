"""FedDF: Lin et al. 2020, "Ensemble Distillation for Robust Model Fusion in Federated Learning"
(arXiv 2006.07242).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Descent, Server, averaged_descent, checks
from fedjax_sim.algorithms.logits import classifier_of
from fedjax_sim.algorithms.optimizers import Optimizer
from fedjax_sim.algorithms.ratios import WithShare, with_share
from fedjax_sim.algorithms.rules import averages_alone
from fedjax_sim.core.checks import check_count
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import POSITIVE
from fedjax_sim.core.trees import cast, difference, scaled, weighted_sum, widened
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    Coefficients,
    FederatedAlgorithm,
    LocalTraining,
    LossFn,
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
    steps = check_count("steps", steps) if steps else 0
    classifier = classifier_of(loss_fn, "distilled")
    shapes = jax.tree.map(jnp.shape, unlabelled)
    sizes = {jnp.shape(x)[0] if jnp.ndim(x) else 0 for x in jax.tree.leaves(unlabelled)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"unlabelled must hold examples, leaves [U, ...]; got {shapes}")
    (number,) = sizes
    size = number if batch_size is None else min(check_count("batch_size", batch_size), number)
    base = averaged_descent(loss_fn, client_optimizer, check_local(local), optax.sgd(1.0))
    optimizer = optax.adam(lr)

    def distil(student: Any, teachers: Any, counted: Array, key: Array) -> Any:
        def divergence(params: Any, batch: Any) -> Array:
            several = jax.vmap(lambda w: classifier.logits(w, batch))(teachers)
            several, own = widened(several, classifier.logits(cast(params, teachers), batch))
            mean = jnp.mean(several, axis=0, where=counted.reshape(-1, *[1] * (several.ndim - 1)))
            return jnp.mean(optax.kl_divergence(jax.nn.log_softmax(own), jax.nn.softmax(mean)))

        def step(carry: Descent, place: Array) -> tuple[Descent, None]:
            drawn = jax.random.randint(jax.random.fold_in(key, place), (size,), 0, number)
            rows = drawn if size < number else jnp.arange(number)
            batch = jax.tree.map(lambda x: jnp.asarray(x)[rows], unlabelled)
            grads = jax.grad(divergence)(carry.params, batch)
            with jax.numpy_dtype_promotion("standard"):  # which optax's correction of bias needs
                updates, state = optimizer.update(grads, carry.optimizer, carry.params)
            return Descent(optax.apply_updates(carry.params, updates), state), None

        start = Descent(student, optimizer.init(student))
        return jax.lax.scan(step, start, jnp.arange(steps, dtype=jnp.int32))[0].params

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
        try:
            jax.eval_shape(classifier.logits, params, unlabelled)
        except Exception as error:  # a user's model may raise anything
            raise ValueError(f"unlabelled must fit the model; got {shapes}: {error}") from error

    return base._replace(
        client=base.client._replace(finish=finish),
        server_update=server_update,
        check=checks(base.check, check_unlabelled),
        check_rule=averages_alone("its server combines all models itself"),
        aggregation=ensemble,
        wire=lambda update, total: update.value,
    )
