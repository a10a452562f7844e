"""Training a client's own model further, on its own examples alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.algorithms.descent import (
    Descent,
    Message,
    averaged_descent,
)
from fedjax_sim.algorithms.optimizers import check_optimizer
from fedjax_sim.core.local_training import check_local, num_steps
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.tasks import Options, Tasks
from fedjax_sim.core.types import Array, ClientOutput, LocalTraining, LossFn, Params, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.execution import packed
from fedjax_sim.execution.client import Engine
from fedjax_sim.training.evaluation import Evaluation
from fedjax_sim.transforms.statistics import check_statistics, renewed_by_steps


class FineTuning(NamedTuple):
    """How a client trains its own model further before it is measured once more.

    Attributes:
      optimizer: an optax transformation.
      local: E, B, shuffling and order, on the client's training examples.
      loss_fn: what it descends on; None for what is measured.
      apply: of a model with batch norm, whose running statistics the steps renew, as those of
        `fs.with_statistics` do; None for that of a loss from `fs.models`.

    >>> FineTuning(optax.sgd(0.1), LocalTraining(epochs=1)).local.epochs
    1
    """

    optimizer: optax.GradientTransformation
    local: LocalTraining
    loss_fn: LossFn | None = None
    apply: Any = None

    def __repr__(self) -> str:
        return fields_of(self)


class FineTuned(NamedTuple):
    """Clients' own models, measured twice.

    Attributes:
      before: as the algorithm leaves them.
      after: behind `FineTuning`'s local steps; those of a client without a training example are as
        before.
    """

    before: Evaluation
    after: Evaluation

    def __repr__(self) -> str:
        return fields_of(self)


def check_fine_tuning(
    fine_tune: FineTuning, metric_fn: LossFn, params: Params, data: FederatedData
) -> FineTuning:
    """The same with its defaults filled in; refuses what a model cannot be trained with.

    Args:
      metric_fn: what it descends on where it has no loss of its own.
      params: the shapes of one client's model.

    Raises:
      ValueError: naming what is wrong with it.
    """
    if not isinstance(fine_tune, FineTuning):
        raise ValueError(
            "fine_tune must be fs.FineTuning(optimizer, local), or None; got "
            f"{type(fine_tune).__name__}"
        )
    check_optimizer("fine_tune.optimizer", fine_tune.optimizer)
    loss_fn = metric_fn if fine_tune.loss_fn is None else fine_tune.loss_fn
    apply = fine_tune.apply
    if apply is not None:
        check_statistics(apply, "fine_tune.apply")
    elif hasattr(getattr(loss_fn, "apply", None), "train"):
        apply = loss_fn.apply  # type: ignore[attr-defined]  # of a loss from fs.models
    fine_tune = FineTuning(fine_tune.optimizer, check_local(fine_tune.local), loss_fn, apply)
    descent = averaged_descent(loss_fn, fine_tune.optimizer, fine_tune.local, optax.sgd(1.0))
    assert descent.check is not None
    descent.check(params, data.examples)
    return fine_tune


def fine_tuned(
    fine_tune: FineTuning, data: FederatedData, key: Array, params: Params, client_id: Array
) -> Params:
    """One client's model after its local steps from `params`, as it is without an example.

    Args:
      client_id: Int[], of whose examples in `data`, and whose stream of the key.
    """
    loss_fn, optimizer = fine_tune.loss_fn, fine_tune.optimizer
    assert loss_fn is not None
    base = averaged_descent(loss_fn, optimizer, fine_tune.local, optax.sgd(1.0))

    def finish(carry: Descent, *rest: PyTree) -> ClientOutput:
        return ClientOutput(update=(), client_state=carry.params)

    # The state that a client hands back is its model; nothing is averaged.
    client = base.client._replace(finish=finish)
    if fine_tune.apply is not None:
        client = renewed_by_steps(client, fine_tune.apply)
    (exchange,) = base._replace(client=client).exchanges
    one_array = jnp.ones(1, jnp.result_type(float))
    ids = client_id[None]
    steps = num_steps(fine_tune.local, data.num_examples[ids])
    executed = packed(1)(
        Engine(exchange, data, key, Message(params, ())),
        jax.tree.map(lambda x: x[None], params),
        Tasks(ids, steps, weights=one_array, shares=one_array),
        Options(),
    )
    return jax.tree.map(
        lambda new, old: jnp.where(steps[0] > 0, new[0], old), executed.client_states, params
    )
