"""MIFA: Gu et al. 2021, "Fast Federated Learning in the Presence of Arbitrary Device
Unavailability" (arXiv 2106.04159).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import optax

from fedjax_sim.algorithms.descent import Descent, Message, averaged_descent
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import MEAN, Optimizer
from fedjax_sim.algorithms.rules import means_alone
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.trees import difference, plus, zeros_like
from fedjax_sim.core.types import ClientOutput, FederatedAlgorithm, LocalTraining, LossFn


@one_line
class MifaServer(NamedTuple):
    """The global model, its optimizer's state, and the mean of all clients' last updates."""

    params: Any
    optimizer: Any
    memory: Any


@declare(
    "FedAvg in which those not selected replay their last update (Gu et al. 2021)",
    facts=Facts(
        "G_k <- d_k of those that report, w <- w + sum p_k G_k over all K",
        "everybody reports: FedAvg",
    ),
)
def mifa(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    server_optimizer: optax.GradientTransformation = MEAN,
) -> FederatedAlgorithm:
    """FedAvg over all K clients, of whom those not selected replay their last update.

    Client k keeps its last update G_k, at first 0. One that reports trains from w_t to w_k and has
    G_k = w_k - w_t; all others keep theirs. Then

        w_{t+1} = w_t + server_optimizer(-sum_k p_k G_k),   the sum over all K

    with the fixed shares p_k of the aggregation rule: n_k / n under `fs.aggregation.selected`, and
    1/K under `uniform`, which is the paper's. That is a reading of its own of who was not selected,
    beside "is left out" and "holds w_t", so that a rule says nothing here but the shares; one with
    a denominator of its own is refused, and so is one that combines all updates. Where everybody
    reports it is FedAvg. The paper has all clients report in the first round; one that never has
    counts with an update of 0. So the server moves in a round in which nobody reports, too, by what
    all replay. Its updates are sums of gradients, to be taken times the round's
    rate: a schedule's rate is here that of the round in which an update was made. The memory is K
    models.

    Args:
      loss_fn, client_optimizer, local, server_optimizer: as in `fedavg`.

    Raises:
      ValueError: as `fedavg`; from `fs.make_round`, for another rule; from `fs.run`, for a sampler
        with replacement, since a client keeps one state.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.mifa(loss_fn, optax.sgd(0.1), fs.LocalTraining(epochs=5))
    >>> round_fn = fs.make_round(algorithm, fs.aggregation.uniform)
    """
    base = averaged_descent(loss_fn, client_optimizer, check_local(local), server_optimizer)

    def finish(carry: Descent, message: Message, last: Any, *_: Any) -> ClientOutput:
        d = difference(carry.params, message.params)
        return ClientOutput(d, total=difference(d, last), client_state=d)

    def server_update(server: MifaServer, update: Any, total: Any, *rest: Any) -> MifaServer:
        memory = plus(server.memory, total)
        moved = base.server_update(server, memory, (), *rest)
        return MifaServer(moved.params, moved.optimizer, memory)

    return base._replace(
        init=lambda params: MifaServer(params, server_optimizer.init(params), zeros_like(params)),
        init_client=zeros_like,
        client=base.client._replace(finish=finish),
        server_update=server_update,
        acts_when_empty=True,  # all replay their last update
        check_rule=means_alone("those not selected replay their last update"),
        wire=lambda update, total: total,  # the server reads the change of G_k alone
    )
