"""IFCA: Ghosh et al. 2020, "An Efficient Framework for Clustered Federated Learning"
(arXiv 2006.04088); HypCluster of Mansour et al. 2020 (arXiv 2002.10619) is the same round.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_sim.algorithms.descent import (
    Descent,
    Message,
    averaged_descent,
    server_params,
    step_within,
)
from fedjax_sim.algorithms.facts import SeveralModels
from fedjax_sim.algorithms.optimizers import Optimizer
from fedjax_sim.algorithms.ratios import ratio
from fedjax_sim.core.checks import check_count, has_values
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.loss import check_measures, loss_total
from fedjax_sim.core.registry import AT_LEAST_1, Option, declare
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    ClientUpdate,
    FederatedAlgorithm,
    LocalTraining,
    LossFn,
    Params,
    PyTree,
    RoundContext,
)


class Clusters(NamedTuple):
    """The server's state: C models, leaves [C, ...]."""

    params: Params

    def __repr__(self) -> str:
        return fields_of(self)


class ClusterDescent(NamedTuple):
    """A client's carry: FedAvg's, on the model of its cluster, Int[]."""

    descent: Descent
    cluster: Array

    def __repr__(self) -> str:
        return fields_of(self)


class ClusterUpdate(NamedTuple):
    """What a client sends: 0 but at its own cluster.

    Attributes:
      change: leaves [C, ...], w_k - w_c.
      share: Float[C], 1: its average is the share of those that chose each cluster.
    """

    change: PyTree
    share: Array

    def __repr__(self) -> str:
        return fields_of(self)


@declare(
    "several models, of which each client trains the one that fits it best (Ghosh et al. 2020)",
    Option("num_models", "how many", default=2, kind=int, range=AT_LEAST_1, metavar="C"),
    facts=SeveralModels("num_models"),
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
    denominator: 1, but n_V / n under `all_clients`. With C = 1 it is FedAvg. A rule that combines
    all updates at once, as `fs.aggregation.median`, is not for it: of a model that fewer than half
    of the clients chose, the median of what all of them send is 0.

    The models to begin with must differ, and well, since a model that fits nobody best is never
    trained. They are params with an axis in front, leaves `[C, ...]`, as `jax.vmap` of a model's
    own `init` over C keys gives them:

        fs.init(algorithm, jax.vmap(draw)(jax.random.split(key, C)), data)

    and so are `state.params`, of which `jax.tree.map(lambda w: w[c], state.params)` is model c.
    `fs.evaluate_clients` measures each client by the model that it would choose now.
    Each round passes over a client's examples once more than FedAvg, with all C models. Down go C
    models. A client would send one model and its number; the update that is averaged here, and
    that `fs.communication` counts, is C models, all 0 but one.

    Args:
      loss_fn: (params, batch, key) -> losses[B], or (losses[B], {name: values[B]}), of one model.
        F_k is of `key` None, as in evaluation. A model whose F_k is NaN is chosen last.
      client_optimizer: an optax transformation, or a function of the round (Int[]) returning one.
      local: E, B, shuffling and order.
      num_models: C >= 1.

    Raises:
      ValueError: for a `local` or `num_models` out of range, or what is not an optimizer; from
        `fs.init`, for params without an axis of C models in front or, where they have values,
        with equal models, and if the loss or the optimizer does not fit one of them, or the loss
        cannot be computed without a key.

    >>> import fedjax_sim as fs, numpy as np
    >>> loss_fn = lambda w, batch, key: (w - batch) ** 2
    >>> data = fs.FederatedData.from_clients([np.full(3, y) for y in (-1.0, 2.0, 4.0)])
    >>> algorithm = fs.ifca(loss_fn, optax.sgd(0.5), fs.LocalTraining(), num_models=2)
    >>> state = fs.init(algorithm, np.array([-0.1, 0.1]), data)
    >>> round_fn = jax.jit(fs.make_round(algorithm))
    >>> state, _ = round_fn(jax.random.key(0), state, data, fs.Cohort([0, 1, 2]))
    >>> [round(w, 3) for w in state.params.tolist()]
    [-1.0, 3.0]
    """
    num_models = check_count("num_models", num_models)
    base = averaged_descent(loss_fn, client_optimizer, check_local(local), optax.sgd(1.0))

    def probe(
        message: Message, client_state: PyTree, batch: PyTree, mask: Array
    ) -> tuple[Array, Array]:
        return jax.vmap(lambda params: loss_total(loss_fn, params, batch, mask))(message.params)

    def init(
        message: Message, client_state: PyTree, probed: tuple[Array, Array], key: Array
    ) -> ClusterDescent:
        cluster = _best(probed)
        chosen = message._replace(params=_model(message.params, cluster))
        return ClusterDescent(base.client.init(chosen, client_state, (), key), cluster)

    def personal(server: Clusters, client_state: PyTree, probed: tuple[Array, Array]) -> Params:
        return _model(server.params, _best(probed))

    def finish(
        carry: ClusterDescent,
        message: Message,
        client_state: PyTree,
        num_examples: Array,
        num_steps: Array,
        key: Array,
    ) -> ClientOutput:
        def at_its_place(w: Array, models: Array) -> Array:
            change = w - models[carry.cluster]
            return jnp.zeros_like(models).at[carry.cluster].set(change)

        change = jax.tree.map(at_its_place, carry.descent.params, message.params)
        nobody = jnp.zeros(num_models, jnp.result_type(float))
        return ClientOutput(update=ClusterUpdate(change, nobody.at[carry.cluster].set(1)))

    def server_update(
        server: Clusters, update: ClusterUpdate, total: PyTree, context: RoundContext
    ) -> Clusters:
        all_shares = jnp.sum(update.share)

        def move(models: Array, change: Array) -> Array:
            share = update.share.reshape(-1, *[1] * (models.ndim - 1))
            step = all_shares.astype(change.dtype) * ratio(change, share)
            return models + step.astype(models.dtype)

        return Clusters(jax.tree.map(move, server.params, update.change))

    def check(params: Params, examples: PyTree) -> None:
        _check_models(params, num_models)
        single_model = jax.eval_shape(lambda tree: _model(tree, 0), params)
        if base.check is not None:
            base.check(single_model, examples)
        check_measures(loss_fn, single_model, examples)

    return base._replace(
        init=Clusters,
        params=server_params,
        # FedAvg's step reads the round of a message, and not its models.
        client=ClientUpdate(init, step_within(base.client.step), finish, probe),
        server_update=server_update,
        check=check,
        personal=personal,
    )


def _best(probed: tuple[Array, Array]) -> Array:
    """Int[], the cluster of a client whose losses of the C models are these sums."""
    totals, _ = probed  # of the same examples, so that their order is that of the means
    return jnp.argmin(jnp.where(jnp.isnan(totals), jnp.inf, totals))


def _model(params: Params, cluster: Array | int) -> Params:
    """The model of one cluster."""
    return jax.tree.map(lambda models: models[cluster], params)


def _check_models(params: Params, num_models: int) -> None:
    """Refuses params that are not C models, or C of which two are equal; of traced ones the shapes.

    Raises:
      ValueError: saying what they are.
    """
    leaves = jax.tree.leaves(params)
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        if x.shape[:1] != (num_models,):
            raise ValueError(
                f"params must hold num_models = {num_models} models, leaves [{num_models}, ...], "
                "as jax.vmap of a model's init over as many keys gives them; got "
                f"{x.dtype}{list(x.shape)} at params{jax.tree_util.keystr(path)}"
            )
    if not all(has_values(x) for x in leaves):
        return
    values = [np.asarray(x).reshape(num_models, -1) for x in leaves]
    first: dict[bytes, int] = {}
    for number in range(num_models):
        bits = b"".join(x[number].tobytes() for x in values)
        if first.setdefault(bits, number) != number:
            raise ValueError(
                f"params must hold {num_models} models that differ, since of equal ones the first "
                f"is always chosen; models {first[bits]} and {number} are equal"
            )
