"""Ditto: Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization"
(arXiv 2012.04221).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import (
    Descent,
    Message,
    Stepped,
    averaged_descent,
    descend,
    own_model,
)
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import (
    MEAN,
    Optimizer,
    check_fit,
    check_optimizer,
    is_schedule,
)
from fedjax_sim.core.checks import check_number
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import AT_LEAST_0, Option, declare
from fedjax_sim.core.trees import axpy, difference
from fedjax_sim.core.types import Array, ClientOutput, FederatedAlgorithm, LocalTraining, LossFn


class TwoDescents(NamedTuple):
    """A client's carry: the copy of the global model, and the client's own model."""

    copy: Descent
    own: Descent


@declare(
    "FedAvg, and a model of each client's own that is drawn to the global one (Li et al. 2021)",
    Option("lam", "pull of the global model", default=0.1, range=AT_LEAST_0, traced=True),
    facts=Facts(
        "v_k descends on F_k(v) + (lam / 2) |v - w|^2, w as FedAvg",
        "`lam` = 0: each client alone",
        "drawn to the model that the client trained, not to the one received",
    ),
)
def ditto(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    lam: ArrayLike,
    personal_optimizer: Optimizer | None = None,
    server_optimizer: optax.GradientTransformation = MEAN,
) -> FederatedAlgorithm:
    """FedAvg, and beside it a personal model of each client that is drawn to the global one.

    The global model w is FedAvg's. In the same local steps, on the same blocks, client k moves its
    own model v_k, which it keeps, down the gradient of

        F_k(v) + (lam / 2) |v - w_t|^2

    where w_t is the model as it was received, and not the copy that the client trains (the
    paper's Algorithm 1). v_k starts at the first global model. With lam = 0 a client trains alone.
    A step costs two gradients; what travels is FedAvg's. A client keeps one model.

    Args:
      loss_fn, client_optimizer, local, server_optimizer: as in `fedavg`.
      lam: Float[] >= 0, may be traced.
      personal_optimizer: of v_k, started afresh each round; None for the `client_optimizer`.

    Raises:
      ValueError: as `fedavg`, and for a negative lam; from `fs.run`, for a sampler with
        replacement, since a client keeps one state.

    >>> import fedjax_sim as fs, jax, numpy as np
    >>> loss_fn = lambda w, batch, key: (w - batch) ** 2
    >>> data = fs.FederatedData.from_clients([np.full(1, 1.0), np.full(1, 3.0)])
    >>> algorithm = fs.ditto(loss_fn, optax.sgd(0.1), fs.LocalTraining(epochs=5), lam=2.0)
    >>> state = fs.init(algorithm, 0.0, data)
    >>> round_fn = jax.jit(fs.make_round(algorithm))
    >>> for _ in range(20):
    ...     state, _ = round_fn(jax.random.key(0), state, data, fs.Cohort([0, 1]))
    >>> [round(v, 2) for v in fs.personal_params(algorithm, state).tolist()]  # the global one: 2
    [1.5, 2.5]
    """
    check_number("lam", lam, lambda x: x >= 0, "at least 0")
    base = averaged_descent(loss_fn, client_optimizer, check_local(local), server_optimizer)
    optimizer = client_optimizer if personal_optimizer is None else personal_optimizer
    check_optimizer("personal_optimizer", optimizer, may_be_schedule=True)
    sends_round = is_schedule(client_optimizer) or is_schedule(optimizer)

    def draw(grads: Any, own: Any, message: Message, kept: Any) -> Any:
        return axpy(lam, difference(own, message.params), grads)

    own_init, own_step = descend(loss_fn, optimizer, draw)

    def init(message: Message, own: Any, probed: Any, key: Array) -> TwoDescents:
        start = message._replace(params=own)
        copy = base.client.init(message, own, probed, key)
        return TwoDescents(copy, own_init(start, own, probed, key))

    def step(carry: TwoDescents, message: Message, own: Any, *block: Any) -> Stepped:
        copy, metrics = base.client.step(carry.copy, message, own, *block)
        moved, _ = own_step(carry.own, message, own, *block)
        return TwoDescents(copy, moved), metrics

    def finish(carry: TwoDescents, message: Message, own: Any, *more: Array) -> ClientOutput:
        sent = base.client.finish(carry.copy, message, own, *more)
        return sent._replace(client_state=carry.own.params)

    def check(params: Any, examples: Any) -> None:
        if base.check is not None:
            base.check(params, examples)
        check_fit("personal_optimizer", optimizer, params)

    return base._replace(
        init_client=lambda params: params,
        broadcast=lambda server, round: Message(server.params, round if sends_round else ()),
        client=base.client._replace(init=init, step=step, finish=finish),
        check=check,
        personal=own_model,
    )
