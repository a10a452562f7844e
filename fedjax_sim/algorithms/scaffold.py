"""SCAFFOLD: Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning" (arXiv 1910.06378).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.base import (
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
from fedjax_sim.checks import check_number
from fedjax_sim.descent import Descent, check_fit, descend, server_params
from fedjax_sim.local import check_local
from fedjax_sim.loss import check_loss


class ScaffoldServer(NamedTuple):
    """The global model x and the server's control variate c."""

    params: Params
    control: PyTree


class ScaffoldMessage(NamedTuple):
    """What a client is sent: x and c, twice FedAvg's downlink."""

    params: Params
    control: PyTree
    round: tuple[()] = ()


def scaffold(
    loss_fn: LossFn,
    client_lr: ArrayLike,
    local: LocalTraining,
    server_lr: ArrayLike = 1.0,
) -> FederatedAlgorithm:
    """FedAvg whose clients correct their drift with control variates (option II).

    Client k keeps c_k, at first 0. From y = x it takes S local steps

        y <- y - client_lr (g(y) - c_k + c)

    and then, with `c_k+ = c_k - c + (x - y) / (S client_lr)`,

        x <- x + server_lr sum_k a_k (y_k - x) / denominator
        c <- c + sum_k p_k (c_k+ - c_k)

    where p_k is the client's fixed share, n_k / n, or 1/K under the `uniform` rule, which
    is the paper's. So `c = sum_k p_k c_k` after every round, under every rule. It costs
    twice FedAvg's bytes, both ways. In bfloat16 the sum drifts with the rounding of c.

    Args:
      loss_fn: (params, batch, key) -> losses[B], or (losses[B], {name: values[B]}).
      client_lr: Float[] > 0, may be traced.
      local: E, B, shuffling and order.
      server_lr: Float[], may be traced.

    Raises:
      ValueError: for a `local` or a learning rate out of range; from `fs.init`, if the
        loss does not fit params and data; from `fs.run`, for a sampler with replacement;
        from the round, for a concrete cohort that repeats a client (inside a trace the
        second slot is padding), since a client keeps one state.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.scaffold(loss_fn, 0.1, fs.LocalTraining(epochs=5))
    """
    check_number("client_lr", client_lr, lambda x: x > 0, "positive")
    check_number("server_lr", server_lr, lambda x: x >= 0, "at least 0")
    optimizer = optax.sgd(client_lr)

    def correct(grads: PyTree, params: Params, message: Any, control: PyTree) -> PyTree:
        return jax.tree.map(lambda g, c_k, c: g - c_k + c, grads, control, message.control)

    def finish(
        carry: Descent, message: ScaffoldMessage, control: PyTree,
        num_examples: Array, num_steps: Array, key: Array,
    ) -> ClientOutput:  # fmt: skip
        delta = jax.tree.map(jnp.subtract, carry.params, message.params)

        def renew(c_k: Array, c: Array, d: Array) -> Array:
            return c_k - c - d / (num_steps.astype(d.dtype) * jnp.asarray(client_lr, d.dtype))

        renewed = jax.tree.map(renew, control, message.control, delta)
        change = jax.tree.map(jnp.subtract, renewed, control)
        return ClientOutput(update=delta, total=change, client_state=renewed)

    def server_update(
        server: ScaffoldServer, update: PyTree, total: PyTree, context: RoundContext
    ) -> ScaffoldServer:
        def move(x: Array, u: Array) -> Array:
            return x + jnp.asarray(server_lr, x.dtype) * u.astype(x.dtype)

        return ScaffoldServer(
            jax.tree.map(move, server.params, update),
            jax.tree.map(lambda c, d: c + d.astype(c.dtype), server.control, total),
        )

    def check(params: Params, examples: PyTree) -> None:
        check_loss(loss_fn, params, examples)
        check_fit("client_lr", optimizer, params)

    def zeros(params: Params) -> PyTree:
        return jax.tree.map(jnp.zeros_like, params)

    init, step = descend(loss_fn, optimizer, correct)
    return FederatedAlgorithm(
        init=lambda params: ScaffoldServer(params, zeros(params)),
        params=server_params,
        init_client=zeros,
        broadcast=lambda server, round: ScaffoldMessage(server.params, server.control),
        client=ClientUpdate(init, step, finish),
        server_update=server_update,
        local=check_local(local),
        check=check,
    )
