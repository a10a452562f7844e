"""FedNova: Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization" (arXiv 2007.07481).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import (
    Message,
    Server,
    ratio,
    server_init,
    server_params,
    server_step,
    stateless,
)
from fedjax_sim.core.checks import check_number, is_concrete
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.loss import check_loss, mean_gradient
from fedjax_sim.core.registry import AT_LEAST_0, BELOW_1, Option, declare
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    ClientUpdate,
    FederatedAlgorithm,
    LocalTraining,
    LossFn,
    Metrics,
    Params,
    PyTree,
    RoundContext,
)


class NormalisedDescent(NamedTuple):
    """A client's carry.

    Attributes:
      params: the client's model w.
      velocity: v, with the structure of params.
      newest: Float[], what v would be if every gradient so far had been 1.
      norm: Float[], |a|_1, what (w_t - w) / client_lr would be then.
    """

    params: Params
    velocity: PyTree
    newest: Array
    norm: Array

    def __repr__(self) -> str:
        return fields_of(self)


class NormalisedUpdate(NamedTuple):
    """What a client sends.

    Attributes:
      direction: (w_k - w_t) / |a_k|_1, with the structure of params.
      norm: Float[], |a_k|_1.
      share: Float[], 1: its average is the scale that the rule has given to the other two.
    """

    direction: PyTree
    norm: Array
    share: Array

    def __repr__(self) -> str:
        return fields_of(self)


@declare(
    "FedAvg of updates normalised by the clients' own steps (Wang et al. 2020)",
    Option("momentum", "of the clients' steps", default=0.0, range=BELOW_1, traced=True),
    Option("mu", "weight of the proximal term", default=0.0, range=AT_LEAST_0, traced=True),
    without=("schedule",),
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

        v <- momentum v + g(w)
        w <- w - client_lr (v + mu (w - w_t))

    so that `w_t - w_k = client_lr sum_j a_kj g_j`, with weights a_kj that depend on S_k, momentum
    and mu alone. FedAvg of clients with more steps thereby descends on another objective, which
    has p_k |a_k|_1 in the place of p_k. FedNova takes the mean of directions instead, as far as
    FedAvg goes on average:

        w_{t+1} = w_t + server_lr (sum_k p_k |a_k|_1) (sum_k p_k (w_k - w_t) / |a_k|_1)

    with p_k the aggregation rule's coefficients over their sum, the whole times that sum (n_V / n
    under `all_clients`). |a_k|_1 is S_k where momentum and mu are 0; for mu alone
    `(1 - (1 - client_lr mu)^S_k) / (client_lr mu)`; for momentum alone
    `(S_k - momentum (1 - momentum^S_k) / (1 - momentum)) / (1 - momentum)`. Where all clients take
    as many steps it is FedAvg. It sends two numbers more than FedAvg.

    The authors' code (2020) differs where mu > 0: it takes the mean of S_k for how far to go, which
    moves further than the clients did; with momentum, too, it adds up both weights.

    Args:
      loss_fn: (params, batch, key) -> losses[B], or (losses[B], {name: values[B]}).
      client_lr: Float[] > 0, may be traced as the others may.
      local: E, B, shuffling and order.
      momentum: Float[] in [0, 1), of heavy-ball steps; v starts at 0 each round.
      mu: Float[] in [0, 1 / client_lr], the weight of the proximal term of FedProx; beyond, a step
        leaps over w_t and the a_kj change signs. Of traced numbers that is not checked.
      server_lr: Float[] >= 0.

    Raises:
      ValueError: for a `local` or a number out of range; from `fs.init`, if the loss does not fit
        params and data.

    >>> import fedjax_sim as fs, numpy as np
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> data = fs.FederatedData.from_clients(
    ...     [{"x": np.ones(n), "y": np.full(n, y)} for n, y in ((1, 0.0), (9, 1.0))]
    ... )
    >>> local = fs.LocalTraining(epochs=1, batch_size=1)  # one step, and nine
    >>> algorithm = fs.fednova(loss_fn, 1e-3, local, server_lr=100.0)
    >>> round_fn = jax.jit(fs.make_round(algorithm, fs.aggregation.uniform))
    >>> state = fs.init(algorithm, 0.0, data)
    >>> for _ in range(30):
    ...     state, _ = round_fn(jax.random.key(0), state, data, fs.Cohort([0, 1]))
    >>> round(float(state.params), 2)  # of FedAvg 0.9: nine steps to 1 for each to 0
    0.5
    """
    check_number("client_lr", client_lr, lambda x: x > 0, "positive")
    check_number("momentum", momentum, lambda x: 0 <= x < 1, "in [0, 1)")
    check_number("mu", mu, lambda x: x >= 0, "at least 0")
    check_number("server_lr", server_lr, lambda x: x >= 0, "at least 0")
    if is_concrete(mu) and is_concrete(client_lr):
        _check_pull(float(np.asarray(mu)), float(np.asarray(client_lr)))
    gradient = mean_gradient(loss_fn)
    step_server = server_step(optax.sgd(server_lr))

    def init(
        message: Message, client_state: PyTree, probed: PyTree, key: Array
    ) -> NormalisedDescent:
        zero = jnp.zeros((), jnp.result_type(float))
        still = jax.tree.map(jnp.zeros_like, message.params)
        return NormalisedDescent(message.params, still, newest=zero, norm=zero)

    def step(
        carry: NormalisedDescent,
        message: Message,
        client_state: PyTree,
        batch: PyTree,
        mask: Array,
        key: Array,
    ) -> tuple[NormalisedDescent, Metrics]:
        grads, metrics = gradient(carry.params, batch, mask, key)

        def accelerate(v: Array, g: Array) -> Array:
            return jnp.asarray(momentum, v.dtype) * v + g

        def move(w: Array, v: Array, w_t: Array) -> Array:
            pull = jnp.asarray(mu, w.dtype) * (w - w_t)
            return w - jnp.asarray(client_lr, w.dtype) * (v + pull)

        velocity = jax.tree.map(accelerate, carry.velocity, grads)
        params = jax.tree.map(move, carry.params, velocity, message.params)
        # The same steps from 0, of a model of one weight whose gradient is always -1 / client_lr.
        dtype = carry.norm.dtype
        keep = 1 - jnp.asarray(client_lr, dtype) * jnp.asarray(mu, dtype)
        newest = jnp.asarray(momentum, dtype) * carry.newest + 1
        norm = keep * carry.norm + newest
        return NormalisedDescent(params, velocity, newest, norm), metrics

    def finish(
        carry: NormalisedDescent,
        message: Message,
        client_state: PyTree,
        num_examples: Array,
        num_steps: Array,
        key: Array,
    ) -> ClientOutput:
        # A client without a step has the norm 0, and its update is never read.
        norm = jnp.where(carry.norm > 0, carry.norm, 1)

        def normalise(w: Array, w_t: Array) -> Array:
            return (w - w_t) / norm.astype(w.dtype)

        direction = jax.tree.map(normalise, carry.params, message.params)
        return ClientOutput(update=NormalisedUpdate(direction, norm, jnp.ones_like(norm)))

    def server_update(
        server: Server, update: NormalisedUpdate, total: PyTree, context: RoundContext
    ) -> Server:
        # Of two averages that are multiplied, one must lose the scale that the rule gave to both.
        mean_norm = ratio(update.norm, update.share)
        change = jax.tree.map(lambda d: mean_norm.astype(d.dtype) * d, update.direction)
        return step_server(server, change, total, context)

    def check(params: Params, examples: PyTree) -> None:
        check_loss(loss_fn, params, examples)

    return FederatedAlgorithm(
        init=server_init(optax.sgd(server_lr)),
        params=server_params,
        init_client=stateless,
        broadcast=lambda server, round: Message(server.params, ()),
        client=ClientUpdate(init, step, finish),
        server_update=server_update,
        local=check_local(local),
        check=check,
    )


def _check_pull(mu: float, client_lr: float) -> None:
    if mu * client_lr > 1 + 1e-6:  # a float32 of 1 / client_lr may be rounded up
        raise ValueError(
            f"mu must be at most 1 / client_lr = {1 / client_lr:g}, or a step leaps over the "
            f"global model that the proximal term draws to; got {mu:g}"
        )
