"""SCAFFOLD: Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning" (arXiv 1910.06378).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import Descent, averaged_descent, checks, sgd_at
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.optimizers import LearningRate, check_rate, check_schedule, rate_at
from fedjax_sim.algorithms.probes import Probed, gradient_probe, measures, probing
from fedjax_sim.algorithms.rules import averages_alone
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import AT_LEAST_0, Option, Range, declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.trees import axpy, difference, plus, zeros_like
from fedjax_sim.core.types import Array, ClientOutput, FederatedAlgorithm, LocalTraining, LossFn

_HOW = "how a client renews its control variate: by its gradient, or by its steps"
_ONE_OR_TWO = Range("1 or 2", lambda x: x in (1, 2))


@one_line
class ScaffoldServer(NamedTuple):
    """The global model x and the server's control variate c."""

    params: Any
    control: Any


@one_line
class ScaffoldMessage(NamedTuple):
    """What a client is sent: x and c, twice FedAvg's downlink; the round, if its rate needs it."""

    params: Any
    control: Any
    round: Any = ()  # Int[], or () and not sent


@declare(
    "FedAvg with control variates against drift (Karimireddy et al. 2020)",
    Option("scaffold_option", _HOW, default=2, kind=int, range=_ONE_OR_TWO, parameter="option"),
    facts=Facts(
        "y <- y - client_lr (g(y) - c_k + c), w <- w + server_lr mean d_k, c = sum p_k c_k",
        "its first round: FedAvg's",
        "random first c_k; E minibatches for E epochs; whole models scaled; unequal steps refused",
    ),
)
def scaffold(
    loss_fn: LossFn,
    client_lr: LearningRate,
    local: LocalTraining,
    server_lr: ArrayLike = 1.0,
    option: int = 2,
) -> FederatedAlgorithm:
    """FedAvg whose clients correct their drift with control variates.

    Client k keeps c_k, at first 0. From y = x it takes S local steps
    `y <- y - client_lr (g(y) - c_k + c)`. Then, with F_k the mean loss of its examples,

        c_k+ = grad F_k(x) (option 1), or c_k - c + (x - y) / (S client_lr) (option 2)
        x <- x + server_lr sum_k a_k (y_k - x) / denominator
        c <- c + sum_k p_k (c_k+ - c_k)

    where p_k is the client's fixed share, n_k / n, or under the `uniform` rule the paper's 1/K. So
    `c = sum_k p_k c_k` after every round, under every rule; in bfloat16 the sum drifts. It costs
    twice FedAvg's bytes, and option 1 one more pass, with the loss of no key. Under a schedule
    option 2 keeps c_k+ = c_k where the rate is 0, or the steps are lost in the rounding of w.

    Args:
      loss_fn, local: as in `fedavg`.
      client_lr: Float[] > 0, may be traced; or a function of the round (Int[]) returning a
        Float[] >= 0, as a learning-rate schedule of optax; the message then carries the round.
      server_lr, option: Float[] >= 0, may be traced; 1 or 2, static.

    Raises:
      ValueError: for a number out of range; from `fs.init`, if loss or schedule do not fit; for a
        rule that combines all updates; for a sampler or a cohort that may repeat a client.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.scaffold(loss_fn, 0.1, fs.LocalTraining(epochs=5))
    """
    check_rate("client_lr", client_lr)
    AT_LEAST_0.check("server_lr", server_lr)
    if option not in (1, 2):
        raise ValueError(f"option must be 1 or 2; got {option!r}")
    scheduled = callable(client_lr)

    def correct(grads: Any, params: Any, message: Any, control: Any) -> Any:
        return jax.tree.map(lambda g, c_k, c: g - c_k + c, grads, control, message.control)

    def finish_with_gradient(carry: Probed, message: Any, control: Any, *_: Any) -> ClientOutput:
        delta, renewed = difference(carry.descent.params, message.params), carry.measured
        return ClientOutput(delta, difference(renewed, control), renewed)

    def finish(carry: Descent, message: Any, control: Any, *last: Any) -> ClientOutput:
        delta, rate = difference(carry.params, message.params), rate_at(client_lr, message.round)

        def renew(c_k: Array, c: Array, d: Array) -> Array:
            distance = last[1].astype(d.dtype) * jnp.asarray(rate, d.dtype)  # n_k, S, the key
            if not scheduled:
                return c_k - c - d / distance
            # Without c the quotient of 0 is right, and has a derivative.
            moves = (distance != 0) & ((d != 0) | (c == 0))
            return jnp.where(moves, c_k - c - d / jnp.where(moves, distance, 1), c_k)

        renewed = jax.tree.map(renew, control, message.control, delta)
        return ClientOutput(delta, difference(renewed, control), renewed)

    base = averaged_descent(loss_fn, sgd_at(client_lr), check_local(local), optax.sgd(1.0), correct)
    with_probe = probing(base.client, gradient_probe(loss_fn), finish_with_gradient)
    return base._replace(
        init=lambda params: ScaffoldServer(params, zeros_like(params)),
        init_client=zeros_like,
        broadcast=lambda server, round: ScaffoldMessage(*server, *([round] if scheduled else [])),
        client=with_probe if option == 1 else base.client._replace(finish=finish),
        server_update=lambda server, update, total, *_: ScaffoldServer(
            axpy(server_lr, update, server.params), plus(server.control, total)
        ),
        check=checks(check_schedule(client_lr), base.check, measures(loss_fn, option == 1)),
        check_rule=averages_alone("c moves by a mean, which one client can move freely"),
    )
