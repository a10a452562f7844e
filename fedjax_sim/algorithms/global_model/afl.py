"""AFL: Mohri, Sivek and Suresh 2019, "Agnostic Federated Learning" (arXiv 1902.00146)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import averaged_descent, checks
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.probes import Probed, loss_probe, measures, probing
from fedjax_sim.algorithms.ratios import WithShare, ratio, with_share
from fedjax_sim.algorithms.rules import averages_alone
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import AT_LEAST_0, POSITIVE, Option, declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.trees import axpy, difference, scaled
from fedjax_sim.core.types import Array, ClientOutput, FederatedAlgorithm, LocalTraining, LossFn

_FURTHEST = 60.0  # of an exponent, so that e^60 times an update and its sum stay in float32


@one_line
class AflServer(NamedTuple):
    """The global model, and Float[], the logarithm of the clients' mean exp(lambda_lr S_k)."""

    params: Any
    log_mean: Array
    round: Any = ()


@declare(
    "FedAvg that weighs clients for the worst mixture of them (Mohri et al. 2019)",
    Option("lambda_lr", "rate of the mixture", default=0.1, range=AT_LEAST_0, traced=True),
    without=("schedule",),
    facts=Facts(
        "lambda_k = a_k exp(lambda_lr S_k), S_k <- S_k + F_k(w); w <- w + sum lambda_k d_k / "
        "sum lambda_k",
        "`lambda_lr` = 0: FedAvg",
    ),
)
def afl(
    loss_fn: LossFn, client_lr: ArrayLike, local: LocalTraining, lambda_lr: ArrayLike
) -> FederatedAlgorithm:
    """FedAvg for the mixture of clients on which the model is worst, found beside it.

    The objective is `min_w max_lambda sum_k lambda_k F_k(w)` over mixtures lambda of the clients,
    F_k being a client's mean loss. Client k keeps S_k, at first 0, and a round is

        lambda_k = a_k exp(lambda_lr S_k)
        w        <- w + s (sum_k lambda_k (w_k - w)) / (sum_k lambda_k)
        S_k      <- S_k + F_k(w_t)

    over those that report, with a_k the aggregation rule's coefficients, and s their sum over its
    denominator: 1, but n_V / n under `all_clients`. With lambda_lr = 0 it is FedAvg, and with one
    step of the full batch the paper's round, but for one thing: lambda ascends by exponentiated
    gradients (mirror ascent) from the rule's coefficients, where the paper projects
    `lambda + lambda_lr F` on the simplex, which takes all K clients' numbers at once. The saddle
    point is the same, and no client's weight is ever quite 0. S_k is of the rounds in which k
    reported, so that with few clients a round the mixture leans to who was asked often. Two
    numbers go up beside the update, one comes down, and a client passes over its examples once
    more; a model of float16 is sent in float32. The server keeps log sum_k p_k exp(lambda_lr S_k)
    of the last cohort, by which exponents are shortened; beyond 60 of it they are cut off.

    Args:
      loss_fn: (params, batch, key) -> losses[B], or (losses[B], {name: values[B]}). F_k is of `key`
        None.
      client_lr: Float[] > 0, may be traced.
      local: E, B, shuffling and order.
      lambda_lr: Float[] >= 0, may be traced.

    Raises:
      ValueError: for a number out of range; from `fs.init`, if the loss does not fit, or cannot be
        computed without a key; from `fs.make_round`, for a rule that combines all updates; from
        `fs.run`, for a sampler with replacement, since a client keeps one state.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.afl(loss_fn, 0.1, fs.LocalTraining(epochs=1), lambda_lr=0.1)
    """
    POSITIVE.check("client_lr", client_lr)
    AT_LEAST_0.check("lambda_lr", lambda_lr)
    base = averaged_descent(loss_fn, optax.sgd(client_lr), check_local(local), optax.sgd(1.0))

    def finish(carry: Probed, message: AflServer, losses: Array, *_: Any) -> ClientOutput:
        exponent = jnp.asarray(lambda_lr, losses.dtype) * losses - message.log_mean
        weight = jnp.exp(jnp.clip(exponent, -_FURTHEST, _FURTHEST))
        # Of float16, whose numbers end at 65504, the products are sent in float32.
        d = jax.tree.map(
            lambda x: x.astype(jnp.float32) if x.dtype == jnp.float16 else x,
            difference(carry.descent.params, message.params),
        )
        update = with_share((scaled(weight, d), weight))
        return ClientOutput(update, client_state=losses + carry.measured.astype(losses.dtype))

    def server_update(server: AflServer, update: WithShare, *_: Any) -> AflServer:
        weighted, weight = update.value
        params = axpy(update.share, ratio(weighted, weight), server.params)
        mean = ratio(weight, update.share)  # 0 where nothing is aggregated, and nothing kept
        return AflServer(params, server.log_mean + jnp.log(jnp.where(mean > 0, mean, 1)))

    def zero() -> Array:
        return jnp.zeros((), jnp.result_type(float))

    return base._replace(
        init=lambda params: AflServer(params, zero()),
        init_client=lambda params: zero(),
        broadcast=lambda server, round: server,
        client=probing(base.client, loss_probe(loss_fn), finish),
        server_update=server_update,
        check=checks(base.check, measures(loss_fn)),
        check_rule=averages_alone("a client's update is sent times its weight"),
    )
