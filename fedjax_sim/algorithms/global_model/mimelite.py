"""MimeLite: Karimireddy et al. 2021, "Breaking the centralized barrier for cross-device federated
learning" (arXiv 2008.03606), with SGD with momentum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import optax
from jax.typing import ArrayLike

from fedjax_sim.algorithms.descent import averaged_descent, checks
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.algorithms.probes import Probed, gradient_probe, measures, probing
from fedjax_sim.algorithms.ratios import WithShare, ratio, with_share
from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.registry import BELOW_1, POSITIVE, Option, declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.trees import accumulators, cast, difference, moving_average, plus
from fedjax_sim.core.types import ClientOutput, FederatedAlgorithm, LocalTraining, LossFn


@one_line
class MimeLiteServer(NamedTuple):
    """The global model x and the momentum m; both are sent."""

    params: Any
    momentum: Any
    round: Any = ()


@declare(
    "local steps with the server's momentum (Karimireddy et al. 2021)",
    Option("momentum", "the server's momentum", default=0.9, range=BELOW_1, traced=True),
    without=("schedule",),
    facts=Facts(
        "y <- y - client_lr ((1 - momentum) g(y) + momentum m), m of mean grad F_k(w)",
        "`momentum` = 0: FedAvg",
    ),
)
def mimelite(
    loss_fn: LossFn, client_lr: ArrayLike, local: LocalTraining, momentum: ArrayLike = 0.9
) -> FederatedAlgorithm:
    """Mime without the correction of the local gradients, and with one exchange in a round.

    A client starts from y = x and takes the local steps

        y <- y - client_lr ((1 - momentum) g(y) + momentum m)

    and sends y_k - x and the gradient of its mean loss F_k at x, over all its examples. Then

        x <- x + sum_k a_k (y_k - x) / denominator
        m <- momentum m + (1 - momentum) sum_k p_k grad F_k(x)

    with p_k the aggregation rule's coefficients over their sum, so that m is a mean whatever the
    rule's denominator. With momentum 0 it is FedAvg. It costs one more pass over a client's
    examples than FedAvg, and twice its bytes, both ways, and a number.

    Args:
      loss_fn: (params, batch, key) -> losses[B], or (losses[B], {name: values[B]}); the full
        gradient is of `key` None.
      client_lr: Float[] > 0, may be traced.
      local: E, B, shuffling and order.
      momentum: Float[] in [0, 1), may be traced.

    Raises:
      ValueError: for a number out of range; from `fs.init`, if the loss does not fit params and
        data, or cannot be computed without a key.

    >>> import fedjax_sim as fs
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.mimelite(loss_fn, 0.1, fs.LocalTraining(epochs=5))
    """
    POSITIVE.check("client_lr", client_lr)
    BELOW_1.check("momentum", momentum)

    def mimic(grads: Any, params: Any, message: MimeLiteServer, client_state: Any) -> Any:
        return cast(moving_average(momentum, message.momentum, grads), grads)

    def finish(carry: Probed, message: MimeLiteServer, *_: Any) -> ClientOutput:
        change = difference(carry.descent.params, message.params)
        return ClientOutput((change, with_share(carry.measured)))

    def server_update(
        server: MimeLiteServer, update: tuple[Any, WithShare], *_: Any
    ) -> MimeLiteServer:
        change, gradient = update
        mean = ratio(gradient.value, gradient.share)
        momentum_now = moving_average(momentum, server.momentum, mean)
        return MimeLiteServer(plus(server.params, change), momentum_now)

    rate = optax.sgd(client_lr)
    base = averaged_descent(loss_fn, rate, check_local(local), optax.sgd(1.0), mimic)
    return base._replace(
        init=lambda params: MimeLiteServer(params, accumulators(params)),
        broadcast=lambda server, round: server,
        client=probing(base.client, gradient_probe(loss_fn), finish),
        server_update=server_update,
        check=checks(base.check, measures(loss_fn)),
    )
