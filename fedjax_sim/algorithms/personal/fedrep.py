"""FedRep: Collins et al. 2021, "Exploiting Shared Representations for Personalized Federated
Learning" (arXiv 2102.07078).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fedjax_sim.algorithms.descent import Descent, Message, Stepped, averaged_descent
from fedjax_sim.algorithms.facts import PERSONAL_HEAD, Facts
from fedjax_sim.algorithms.optimizers import MEAN, Optimizer, optimizer_at
from fedjax_sim.core.batching import largest_of_batch
from fedjax_sim.core.checks import check_count
from fedjax_sim.core.local_training import check_local, num_blocks
from fedjax_sim.core.loss import mean_gradient
from fedjax_sim.core.paths import Chosen, are_chosen
from fedjax_sim.core.registry import AT_LEAST_1, Option, declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.trees import where
from fedjax_sim.core.types import Array, ClientOutput, FederatedAlgorithm, LocalTraining, LossFn
from fedjax_sim.transforms.sharing import partial


@one_line
class TwoPhases(NamedTuple):
    """A client's carry: its descent, the steps in which the head moves, and the steps done."""

    descent: Descent
    head_steps: Array
    steps: Array


@declare(
    "a shared representation, for which each client first fits its own head (Collins et al. 2021)",
    PERSONAL_HEAD,
    Option("head_epochs", "epochs that train the head", default=1, kind=int, range=AT_LEAST_1),
    facts=Facts(
        "v_k descends first, with u held; then u_k, with v_k held; u <- u + mean (u_k - u)",
        "all heads alike and held: FedBABU",
        options={"personal": "head"},
    ),
)
def fedrep(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    personal: Chosen,
    head_epochs: int,
    server_optimizer: optax.GradientTransformation = MEAN,
) -> FederatedAlgorithm:
    """FedAvg of a representation, for which each client first fits a head of its own.

    Of its E epochs client k trains its head v_k alone in the first `head_epochs`, on the
    representation u_t it was sent, and in those that are left the representation alone, under its
    new head. It keeps v_k and sends u_k:

        u_{t+1} = u_t + server_optimizer(-sum_k a_k (u_k - u_t) / denominator),   v_k <- v_k'

    The optimizer starts afresh with the second part. It is `fs.partial`, whose words on what is
    kept and counted hold here.

    Args:
      loss_fn, client_optimizer, server_optimizer: as in `fedavg`.
      local: as in `fedavg`, in the order of epochs; E > head_epochs.
      personal: which parameters are the head, as in `fs.partial`.
      head_epochs: >= 1.

    Raises:
      ValueError: as `fedavg` and `fs.partial`, and for epochs that leave the representation none.

    >>> import fedjax_sim as fs, jax
    >>> model = fs.models.mlp((4,), hidden=(8,), outputs=3)  # layers_1, and layers_3, the head
    >>> loss_fn = fs.models.cross_entropy(model.apply)
    >>> local = fs.LocalTraining(epochs=6)
    >>> algorithm = fs.fedrep(loss_fn, optax.sgd(0.1), local, "layers_3", head_epochs=5)
    """
    local, head_epochs = check_local(local), check_count("head_epochs", head_epochs)
    if head_epochs >= local.epochs:
        raise ValueError(
            f"head_epochs must be less than epochs, so that some are left to the representation; "
            f"got {head_epochs} of {local.epochs}"
        )
    if local.order != "epochs":
        raise ValueError(f'local must have the order "epochs"; got {local.order!r}')
    base = averaged_descent(loss_fn, client_optimizer, local, server_optimizer)
    gradient = mean_gradient(loss_fn)

    def of_head_alone(params: Any, batch: Any, key: Any) -> Any:
        is_head = are_chosen("personal", personal, params)
        held = jax.tree.map(lambda head, w: w if head else lax.stop_gradient(w), is_head, params)
        return loss_fn(held, batch, key)

    head_gradient = mean_gradient(of_head_alone)  # zeros for the rest, at no cost

    def count(message: Message, client_state: Any, batch: Any, mask: Array) -> Array:
        return jnp.sum(mask, dtype=jnp.int32)

    def init(message: Message, client_state: Any, num_examples: Array, key: Array) -> TwoPhases:
        descent = base.client.init(message, client_state, (), key)
        return TwoPhases(descent, head_epochs * num_blocks(local, num_examples), jnp.int32(0))

    def step(carry: TwoPhases, message: Message, client_state: Any, *block: Any) -> Stepped:
        params, of_head = carry.descent.params, carry.steps < carry.head_steps
        is_head = are_chosen("personal", personal, params)
        moves = jax.tree.map(lambda head: of_head if head else ~of_head, is_head)

        def moving(tree: Any) -> Any:
            return jax.tree.map(lambda m, x: jnp.where(m, x, jnp.zeros_like(x)), moves, tree)

        # Of clients side by side some may be past their heads: then all take the whole gradient.
        is_whole = largest_of_batch((~of_head).astype(jnp.int32)) > 0
        grads, metrics = lax.cond(is_whole, gradient, head_gradient, params, *block)
        optimizer = optimizer_at(client_optimizer, message.round)
        switches = carry.steps == carry.head_steps
        state = where(switches, optimizer.init(params), carry.descent.optimizer)
        updates, state = optimizer.update(moving(grads), state, params)
        moved = optax.apply_updates(params, moving(updates))
        return TwoPhases(Descent(moved, state), carry.head_steps, carry.steps + 1), metrics

    def finish(carry: TwoPhases, *rest: Any) -> ClientOutput:
        return base.client.finish(carry.descent, *rest)

    client = base.client._replace(init=init, step=step, finish=finish, probe=count)
    return partial(base._replace(client=client), personal)
