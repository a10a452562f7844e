"""Training a model that keeps running statistics, as batch norm does."""

from collections.abc import Callable
from typing import Any

import jax

from fedjax_sim.core.loss import TRAINING_MASK
from fedjax_sim.core.models import model_of, with_model
from fedjax_sim.core.trees import cast
from fedjax_sim.core.types import (
    Array,
    ClientUpdate,
    FederatedAlgorithm,
    Metrics,
    Params,
    PyTree,
    no_probe,
)
from fedjax_sim.transforms.averaged_statistics import with_averages
from fedjax_sim.transforms.sharing import WithPersonal, partial
from fedjax_sim.transforms.sharing.refusals import shapes_of_models
from fedjax_sim.transforms.sharing.shared_part import (
    STATISTICS,
    statistics_of,
)


def with_statistics(
    algorithm: FederatedAlgorithm, apply: Any, averaged: bool = False
) -> FederatedAlgorithm:
    """The algorithm whose local steps norm by a block's own statistics, and renew the running ones.

    In a local step at w the outputs are normed by mean and variance of the block's examples,
    padding left out, and the running statistics s, which have no gradient, become

        s <- m s + (1 - m) (mean, variance of the block)

    with the module's momentum m. Wherever a model is measured, the running ones are used; what
    clients measure to train by, as SCAFFOLD's gradient of option 1, is normed as in a step. They
    stay with each client, as `fs.partial(algorithm, "batch_stats")` keeps them: an algorithm with
    personal parameters must name them, too, as `fs.fedbn` does. Or they are averaged: with s_k
    client k's after training,

        s <- s + sum_k a_k (s_k - s) / denominator

    beside what the algorithm makes of the parameters, of which it sees none of s: no momentum, step
    size or correction makes other than means of means and of variances.

    Args:
      algorithm: one whose clients carry one model, with a loss of `fs.models` of this `apply`. (A
        loss of one's own finds the mask in `batch["training_mask"]`, Bool[B], which is there in
        training alone, and calls `apply.train(params, x, mask)`, which returns the outputs first.)
      apply: of `fs.models.from_flax` of a module with batch norm.
      averaged: whether the server averages the statistics.

    Raises:
      ValueError: for an `apply` without statistics, an algorithm of several exchanges or of one
        gradient, and what `fs.partial` refuses; to average, for one that is compressed (compress
        the result) or makes something else of the rule, as FedDF; from `fs.init`, for one whose
        clients train no one model, or whose own do not hold the statistics and are to; from the
        round of an algorithm with a loss of `fs.models` of such an `apply` that was not given to
        this.

    >>> import fedjax_sim as fs, optax
    >>> from flax import linen as nn
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train=False, mask=None):
    ...         norm = nn.BatchNorm(use_running_average=not train)
    ...         return nn.Dense(2)(norm(x, mask=None if mask is None else mask[:, None]))
    >>> model = fs.models.from_flax(Net(), (3,))
    >>> loss_fn = fs.models.cross_entropy(model.apply)
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    >>> algorithm = fs.with_statistics(algorithm, model.apply)
    """
    check_statistics(apply)
    if not isinstance(averaged, bool):
        raise ValueError(f"averaged must be True or False; got {averaged!r}")
    if not averaged and getattr(algorithm, "personal", None) is None:
        algorithm = partial(algorithm, STATISTICS)
    if algorithm.earlier or algorithm.pooled_gradient is not None:
        raise ValueError(
            "algorithm must have one exchange in a round, in which clients train a model, since "
            "the statistics are renewed by its local steps"
        )
    renewing = algorithm._replace(
        client=renewed_by_steps(algorithm.client, apply),
        personal_probe=_in_training(algorithm.personal_probe),
    )

    def check(params: Params, examples: PyTree) -> None:
        if algorithm.check is not None:
            algorithm.check(params, examples)
        if shapes_of_models(renewing, params, examples)["clients' carry"] is None:
            raise ValueError(
                "algorithm must have the model as the field `params` of its clients' carry (or of "
                "the carry's `descent`), for its statistics to be renewed"
            )
        _check_kept(algorithm, params, averaged)

    renewing = renewing._replace(check=check)
    return with_averages(renewing) if averaged else renewing


def renewed_by_steps(client: ClientUpdate, apply: Any) -> ClientUpdate:
    """A client whose steps norm by a block's own statistics, and renew the running ones.

    Args:
      client: whose carry has the model as `params`, or as its `descent`'s.
      apply: that `check_statistics` takes.
    """

    def step(
        carry: PyTree, message: PyTree, state: PyTree, batch: PyTree, mask: Array, key: Array
    ) -> tuple[PyTree, Metrics]:
        before = model_of(carry)
        block = {**batch, TRAINING_MASK: mask}
        # At the same parameters as the step's own forward pass, which XLA then computes once.
        _, renewed = apply.train(before, batch["x"], mask)
        stepped, metrics = client.step(carry, message, state, block, mask, key)
        renewed = cast(renewed, before[STATISTICS])  # which flax computes in float32 at least
        return with_model(stepped, {**model_of(stepped), STATISTICS: renewed}), metrics

    return client._replace(step=step, probe=_in_training(client.probe))


def check_statistics(apply: Any, name: str = "apply") -> None:
    """Refuses an `apply` of a model that keeps no running statistics.

    Args:
      name: of the argument.

    Raises:
      ValueError: naming what is allowed.
    """
    if not hasattr(apply, "train"):
        raise ValueError(
            f"{name} must be of fs.models.from_flax of a module with batch norm, which takes train "
            f"and mask; got {apply!r}"
        )


def _in_training(probe: Callable[..., PyTree] | None) -> Callable[..., PyTree] | None:
    """A probe that norms by a block's own statistics, as a local step does."""
    if probe is None or probe is no_probe:
        return probe

    def training(message: PyTree, state: PyTree, batch: PyTree, mask: Array) -> PyTree:
        return probe(message, state, {**batch, TRAINING_MASK: mask}, mask)

    return training


def _check_kept(algorithm: FederatedAlgorithm, params: Params, averaged: bool) -> None:
    """Refuses clients that do not keep the statistics and should, or keep what is to be averaged.

    Raises:
      ValueError: naming one.
    """

    def keeps(x: Any) -> bool:
        return isinstance(x, WithPersonal)

    states = jax.tree.leaves(jax.eval_shape(algorithm.init_client, params), is_leaf=keeps)
    kept = {path for state in states if keeps(state) for path in state.personal}
    for path in statistics_of(params):
        if averaged and path in kept:
            raise ValueError(f"averaged must be False for an algorithm whose clients keep {path!r}")
        if not averaged and path not in kept:
            raise ValueError(
                f"algorithm must name {path!r} among its personal parameters, since its clients "
                "keep models of their own; or averaged be True, for the server to average it"
            )
