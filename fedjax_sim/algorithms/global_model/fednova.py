"""FedNova: Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization" (arXiv 2007.07481).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Message, Server, Stepped, averaged_descent
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.ratios import ratio
from fedjax_sim.core.checks import is_concrete
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.loss import mean_gradient
from fedjax_sim.core.registry import AT_LEAST_0, BELOW_1, POSITIVE, Option, declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.trees import accumulators, axpy, cast, difference, scaled
from fedjax_sim.core.types import Array, ClientOutput, FederatedAlgorithm, LocalTraining, LossFn


@one_line
class NormalisedDescent(NamedTuple):
    """A client's carry."""

    params: Any  # w
    velocity: Any  # v, with the structure of params
    newest: Array  # Float[], what v would be if every gradient so far had been 1
    norm: Array  # Float[], |a|_1, what (w_t - w) / client_lr would be then


@one_line
class NormalisedUpdate(NamedTuple):
    """What a client sends."""

    direction: Any  # (w_k - w_t) / |a_k|_1, with the structure of params
    norm: Array  # Float[], |a_k|_1
    share: Array  # Float[], 1: its average is the scale that the rule has given to the other two


@declare(
    "FedAvg of updates normalised by the clients' own steps (Wang et al. 2020)",
    Option("momentum", "momentum of the clients' steps", default=0.0, range=BELOW_1, traced=True),
    Option("mu", "weight of the proximal term", default=0.0, range=AT_LEAST_0, traced=True),
    without=("schedule",),
    facts=Facts(
        "w <- w + (sum p_k t_k) sum p_k d_k / t_k, t_k the weight of k's steps",
        "as many steps for all: FedAvg",
        "weights that do not sum to one on whole models; t_k of momentum forgotten",
    ),
)
def fednova(
    loss_fn: LossFn,
    client_lr: ArrayLike,
    local: LocalTraining,
    momentum: ArrayLike = 0.0,
    mu: ArrayLike = 0.0,
    server_lr: ArrayLike = 1.0,
) -> FederatedAlgorithm:
    """FedAvg whose clients' updates are normalised by how far their steps could take them.

    From w = w_t and v = 0, client k takes S_k local steps

        v <- momentum v + g(w),   w <- w - client_lr (v + mu (w - w_t))

    so that `w_t - w_k = client_lr sum_j a_kj g_j`. FedAvg of clients with more steps descends on
    another objective, which has p_k |a_k|_1 in the place of p_k; FedNova takes the mean direction:

        w_{t+1} = w_t + server_lr (sum_k p_k |a_k|_1) (sum_k p_k (w_k - w_t) / |a_k|_1)

    with p_k the aggregation rule's coefficients over their sum, the whole times that sum (n_V / n
    under `all_clients`). |a_k|_1 is S_k where momentum and mu are 0. Where all clients take as many
    steps it is FedAvg, and it sends two numbers more. The authors' code goes further where mu > 0.

    Args:
      loss_fn, local: as in `fedavg`.
      client_lr, server_lr: Float[] > 0 and >= 0, may be traced as the others may.
      momentum: Float[] in [0, 1), of heavy-ball steps; v starts at 0 each round.
      mu: Float[] in [0, 1 / client_lr], of the proximal term; beyond, the a_kj change signs.

    Raises:
      ValueError: for a number out of range; from `fs.init`, if the loss does not fit.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fednova(loss_fn, 0.1, fs.LocalTraining(epochs=5), momentum=0.9)
    """
    POSITIVE.check("client_lr", client_lr)
    BELOW_1.check("momentum", momentum)
    AT_LEAST_0.check("mu", mu)
    AT_LEAST_0.check("server_lr", server_lr)
    if is_concrete(mu) and is_concrete(client_lr):
        most = 1 / float(np.asarray(client_lr))
        if np.asarray(mu) > (1 + 1e-6) * most:  # a float32 of it may be rounded up
            raise ValueError(
                f"mu must be at most 1 / client_lr = {most:g}, or a step leaps over w_t; got {mu}"
            )
    base = averaged_descent(loss_fn, optax.sgd(client_lr), check_local(local), optax.sgd(server_lr))
    gradient = mean_gradient(loss_fn)

    def init(message: Message, *_: Any) -> NormalisedDescent:
        zero = jnp.zeros((), jnp.result_type(float))
        return NormalisedDescent(message.params, accumulators(message.params), zero, zero)

    def step(carry: NormalisedDescent, message: Message, state: Any, *block: Any) -> Stepped:
        grads, metrics = gradient(carry.params, *block)
        velocity = axpy(momentum, carry.velocity, cast(grads, carry.velocity))
        direction = axpy(mu, difference(carry.params, message.params), velocity)
        params = axpy(-jnp.asarray(client_lr), direction, carry.params)
        # The same steps from 0, of a model of one weight whose gradient is always -1 / client_lr.
        rate, near, again = (jnp.asarray(x, carry.norm.dtype) for x in (client_lr, mu, momentum))
        newest = again * carry.newest + 1
        norm = (1 - rate * near) * carry.norm + newest
        return NormalisedDescent(params, velocity, newest, norm), metrics

    def finish(carry: NormalisedDescent, message: Message, *_: Any) -> ClientOutput:
        direction = ratio(difference(carry.params, message.params), carry.norm)  # 0 of no step
        return ClientOutput(NormalisedUpdate(direction, carry.norm, jnp.ones_like(carry.norm)))

    def server_update(server: Server, update: NormalisedUpdate, *rest: Any) -> Server:
        # Of two averages that are multiplied, one must lose the rule's scale.
        mean_norm = ratio(update.norm, update.share)
        return base.server_update(server, scaled(mean_norm, update.direction), *rest)

    client = base.client._replace(init=init, step=step, finish=finish)
    return base._replace(client=client, server_update=server_update)
