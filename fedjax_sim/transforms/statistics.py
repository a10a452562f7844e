"""Training a model that keeps running statistics, as batch norm does."""

from typing import Any

from fedjax_sim.core.loss import TRAINING_MASK
from fedjax_sim.core.types import Array, FederatedAlgorithm, Metrics, PyTree
from fedjax_sim.transforms.sharing import partial
from fedjax_sim.transforms.sharing.shared_part import model_of, with_model

_STATISTICS = "batch_stats"


def with_statistics(
    algorithm: FederatedAlgorithm, apply: Any, averaged: bool = False
) -> FederatedAlgorithm:
    """The algorithm whose local steps norm by a block's own statistics, and renew the running ones.

    In a local step at w the outputs are normed by mean and variance of the block's examples,
    padding left out, and the running statistics s, which have no gradient, become

        s <- m s + (1 - m) (mean, variance of the block)

    with the module's momentum m. Wherever a model is measured, the running ones are used. They
    stay with each client, as `fs.partial(algorithm, "batch_stats")` keeps them, or are averaged as
    the parameters are. An algorithm with personal parameters keeps those that it names: with
    `fs.fedbn` that is all of batch norm.

    Args:
      algorithm: one whose clients carry one model, with a loss of `fs.models` of this `apply`. (A
        loss of one's own finds the mask in `batch["training_mask"]`, Bool[B], which is there in
        training alone, and calls `apply.train(params, x, mask)`, which returns the outputs first.)
      apply: of `fs.models.from_flax` of a module with batch norm.
      averaged: whether the server averages the statistics. A server's optimizer other than plain
        SGD is not for that, since an adaptive step makes no variance of variances.

    Raises:
      ValueError: for an `apply` without statistics, an algorithm of several exchanges or of one
        gradient, and what `fs.partial` refuses; from the round of an algorithm with a loss of
        `fs.models` of such an `apply` that was not given to this.

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
    train = getattr(apply, "train", None)
    if train is None:
        raise ValueError(
            "apply must be of fs.models.from_flax of a module with batch norm, which takes train "
            f"and mask; got {apply!r}"
        )
    if not isinstance(averaged, bool):
        raise ValueError(f"averaged must be True or False; got {averaged!r}")
    if not averaged and getattr(algorithm, "personal", None) is None:
        algorithm = partial(algorithm, _STATISTICS)
    if algorithm.earlier or algorithm.pooled_gradient is not None:
        raise ValueError(
            "algorithm must have one exchange in a round, in which clients train a model, since "
            "the statistics are renewed by its local steps"
        )
    inner = algorithm.client

    def step(
        carry: PyTree, message: PyTree, state: PyTree, batch: PyTree, mask: Array, key: Array
    ) -> tuple[PyTree, Metrics]:
        before = model_of(carry)
        if before is None:
            raise ValueError(
                "algorithm must have the model as the field `params` of its clients' carry (or of "
                "the carry's `descent`), for its statistics to be renewed"
            )
        block = {**batch, TRAINING_MASK: mask}
        # At the same parameters as the step's own forward pass, which XLA then computes once.
        _, renewed = train(before, batch["x"], mask)
        stepped, metrics = inner.step(carry, message, state, block, mask, key)
        return with_model(stepped, {**model_of(stepped), _STATISTICS: renewed}), metrics

    return algorithm._replace(client=inner._replace(step=step))
