"""IFCA: Ghosh et al. 2020, "An Efficient Framework for Clustered Federated Learning"
(arXiv 2006.04088); HypCluster of Mansour et al. 2020 (arXiv 2002.10619) is the same round.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.algorithms.descent import Descent, Message, averaged_descent, checks, step_within
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import Optimizer
from fedjax_sim.algorithms.probes import measures
from fedjax_sim.algorithms.ratios import ratio
from fedjax_sim.algorithms.rules import averages_alone
from fedjax_sim.algorithms.several_models import best_of, check_models, model_of, one_with_number
from fedjax_sim.core.checks import check_count
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.loss import loss_total
from fedjax_sim.core.registry import AT_LEAST_1, Option, declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.types import Array, ClientOutput, FederatedAlgorithm, LocalTraining, LossFn


@one_line
class Clusters(NamedTuple):
    """The server's state: C models, leaves [C, ...]."""

    params: Any


@one_line
class ClusterDescent(NamedTuple):
    """A client's carry: FedAvg's, on the model of its cluster, Int[]."""

    descent: Descent
    cluster: Array


@one_line
class ClusterUpdate(NamedTuple):
    """What a client sends: 0 but at its own cluster."""

    change: Any  # leaves [C, ...], w_k - w_c
    share: Array  # Float[C], 1: its average is the share of those that chose each cluster


@declare(
    "several models, of which each client trains the one that fits it best (Ghosh et al. 2020)",
    Option("num_models", "models in all", default=2, kind=int, range=AT_LEAST_1, metavar="C"),
    facts=Facts(
        "c_k = argmin_c F_k(w_c), w_c <- w_c + mean d_k of those that chose c",
        "`num_models` = 1: FedAvg",
        several_models="num_models",
    ),
)
def ifca(
    loss_fn: LossFn, client_optimizer: Optimizer, local: LocalTraining, num_models: int
) -> FederatedAlgorithm:
    """Several models: each client trains the one that fits its examples best.

    The server sends C models w_1 .. w_C. Client k chooses `c = argmin_c F_k(w_c)`, the first of
    equals, with F_k the mean loss over all its examples, and takes its local steps from w_c to w_k.
    Each model moves to the mean of those that chose it, and one that nobody chose stays:

        w_c <- w_c + s (sum_{k chose c} a_k (w_k - w_c)) / (sum_{k chose c} a_k)

    with a_k the aggregation rule's coefficients, and s their sum over all that report, over the
    denominator: 1, but n_V / n under `all_clients`. With C = 1 it is FedAvg. The models to begin
    with are params with an axis in front, leaves `[C, ...]`, as `jax.vmap` of a model's `init` over
    C keys gives them, and so are `state.params`. They must differ, and well, since a model that
    fits nobody best is never trained. `fs.evaluate_clients` measures a client by the model it would
    choose now. A round probes all C models first; C models go down, and one with its number up.

    Args:
      loss_fn: (params, batch, key) -> losses[B], or (losses[B], {name: values[B]}), of one model.
        F_k is of `key` None, as in evaluation. A model whose F_k is NaN is chosen last.
      client_optimizer, local: as in `fedavg`; num_models: C >= 1.

    Raises:
      ValueError: as `fedavg`; from `fs.make_round`, for a rule that combines all updates; from
        `fs.init`, for params that are not C models or equal ones, and for a loss that needs a key.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.ifca(loss_fn, optax.sgd(0.1), fs.LocalTraining(), num_models=2)
    """
    num_models = check_count("num_models", num_models)
    base = averaged_descent(loss_fn, client_optimizer, check_local(local), optax.sgd(1.0))

    def probe(message: Message, client_state: Any, *block: Any) -> tuple[Array, Array]:
        return jax.vmap(lambda params: loss_total(loss_fn, params, *block))(message.params)

    def init(message: Message, client_state: Any, probed: Any, key: Array) -> ClusterDescent:
        cluster = best_of(probed)
        chosen = message._replace(params=model_of(message.params, cluster))
        return ClusterDescent(base.client.init(chosen, client_state, (), key), cluster)

    def finish(carry: ClusterDescent, message: Message, *_: Any) -> ClientOutput:
        own, moved, models = carry.cluster, carry.descent.params, message.params
        change = jax.tree.map(lambda w, x: jnp.zeros_like(x).at[own].set(w - x[own]), moved, models)
        return ClientOutput(ClusterUpdate(change, jax.nn.one_hot(own, num_models)))

    def server_update(server: Clusters, update: ClusterUpdate, *_: Any) -> Clusters:
        def move(models: Array, change: Array) -> Array:
            share = update.share.reshape(-1, *[1] * (models.ndim - 1))
            step = jnp.sum(update.share).astype(change.dtype) * ratio(change, share)
            return models + step.astype(models.dtype)

        return Clusters(jax.tree.map(move, server.params, update.change))

    def check(params: Any, examples: Any) -> None:
        check_models(params, num_models)
        single_model = jax.eval_shape(lambda tree: model_of(tree, 0), params)
        checks(base.check, measures(loss_fn))(single_model, examples)

    # FedAvg's step reads the round of a message, and not its models.
    step = step_within(base.client.step)
    return base._replace(
        init=Clusters,
        client=base.client._replace(init=init, step=step, finish=finish, probe=probe),
        server_update=server_update,
        check=check,
        personal=lambda server, client_state, probed: model_of(server.params, best_of(probed)),
        check_rule=averages_alone("what a client sends is 0 but for its own model"),
        wire=lambda update, total: jax.eval_shape(one_with_number, update.change),
    )
