"""Algorithms whose server takes a step as soon as a few results have arrived.

FedBuff: Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation" (arXiv
2106.06639). FedAsync: Xie et al. 2019, "Asynchronous Federated Optimization" (arXiv 1903.03934).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from fedjax_sim.core.asynchrony import Asynchrony
from fedjax_sim.core.checks import check_count, check_number
from fedjax_sim.core.clock import Clock, check_clock
from fedjax_sim.core.registry import AT_LEAST_0, AT_LEAST_1, UP_TO_1, Option, declare
from fedjax_sim.core.types import Array, FederatedAlgorithm
from fedjax_sim.transforms.asynchronous.refusals import check_buffer, check_can_be_asynchronous
from fedjax_sim.transforms.asynchronous.staleness import Staleness, as_staleness

_CONCURRENCY = Option(
    "concurrency", "clients that train at a time", default=20, kind=int, range=AT_LEAST_1
)
_STALENESS = Option(
    "staleness",
    "a in (1 + s)^-a, by which an update counts after s steps of the server",
    default=0.5,
    range=AT_LEAST_0,
    traced=True,
)
# The paper's rule, and all clients for those who are free to be drawn from.
_DEFAULTS = {"mode": "uniform", "sampler": "everyone"}


@declare(
    "the server steps along the mean of the first updates to arrive (Nguyen et al. 2022)",
    Option(
        "buffer",
        "arrivals of which the server makes a step",
        default=10,
        kind=int,
        range=AT_LEAST_1,
    ),
    _CONCURRENCY,
    _STALENESS,
    defaults=_DEFAULTS,
)
def fedbuff(
    algorithm: FederatedAlgorithm,
    buffer: int,
    concurrency: int,
    clock: Clock,
    staleness: ArrayLike | Staleness = 0.5,
) -> FederatedAlgorithm:
    """The algorithm in asynchronous rounds: a round is a step of the server, on b arrivals.

        update = sum_{k in the b first to arrive} a_k s(x_k) d_k / denominator

    c clients train at a time. Client k's d_k is the algorithm's own, from the model that k was
    sent, x_k steps of the server ago. The server takes its step when b of them have arrived, and
    then sends the new model to clients that are not busy, drawn evenly from the sampler's cohort,
    so that c are again in training. a_k and the denominator are the rule's, of the b clients;
    the paper's is `fs.aggregation.uniform`: `w + server_lr / b sum s(x_k) d_k`. Rules that see all
    updates are given the b scaled ones. Totals, as SCAFFOLD's, are not scaled, since they keep a
    sum over clients true. Of arrivals at the same time the model sent first comes first, then the
    lower client id. If fewer than b are in training, the server waits for those alone.

    With b = c and clients of equal speed it is the algorithm as it was, since each update is made
    of the model of now.

    Args:
      algorithm: from `fs.fedavg` and its siblings, of one exchange in a round.
      buffer, concurrency: b and c, 1 <= b <= c <= K.
      clock: how fast the K clients are, as `fs.clocks.lognormal` makes one; may be traced.
      staleness: s, a function Float[b] -> Float[b], as `fs.asynchronous.hinge()`; or a number, the
        exponent of `fs.asynchronous.polynomial`, which may be traced.

    Returns:
      An algorithm for `fs.init`, `fs.make_round` and `fs.Experiment`, whose sampler draws c clients
      or more, as `fs.sampling.uniform(c)`. `RoundMetrics.seconds` and `.staleness` are its own.

    Raises:
      ValueError: for a number out of range, a buffer above the concurrency, what is no clock; for
        an algorithm of several exchanges in a round, or one that must act in every round.

    >>> import fedjax_sim as fs, jax, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([np.full(3, y) for y in (1.0, 2.0, 30.0)])
    >>> algorithm = fs.fedavg(lambda w, y, key: (y - w) ** 2 / 2, optax.sgd(1.0),
    ...                       fs.LocalTraining())
    >>> clock = fs.clocks.given([1.0, 2.0, 50.0])
    >>> algorithm = fs.asynchronous.fedbuff(algorithm, buffer=2, concurrency=3, clock=clock)
    >>> experiment = fs.Experiment(algorithm, 0.0, data, fs.sampling.everyone(), num_rounds=2)
    >>> state, history = experiment.run(jax.random.key(0))
    >>> history.evaluated.shape, float(state.params), history.rounds.seconds.tolist()
    ((2,), 1.5, [2.0, 2.0])
    """
    return _asynchronous(algorithm, buffer, concurrency, clock, as_staleness(staleness))


@declare(
    "the server mixes each model that arrives into its own (Xie et al. 2019)",
    Option(
        "mixing",
        "alpha, the weight of a model that arrives at once",
        default=0.6,
        range=UP_TO_1,
        traced=True,
        parameter="alpha",
    ),
    _CONCURRENCY,
    _STALENESS,
    defaults=_DEFAULTS,
)
def fedasync(
    algorithm: FederatedAlgorithm,
    concurrency: int,
    clock: Clock,
    alpha: ArrayLike = 0.6,
    staleness: ArrayLike | Staleness = 0.5,
) -> FederatedAlgorithm:
    """The algorithm in asynchronous rounds, in each of which one client's model is mixed in.

        w_{t+1} = (1 - alpha_t) w_t + alpha_t w_k,   alpha_t = alpha s(x_k)

    where w_k is the model of the first client to arrive, trained from the one that it was sent x_k
    steps of the server ago. So it is `fedbuff` with a buffer of one, but the step is along
    `w_k - w_t` instead of along `w_k - w_{t - x_k}`. The paper's clients are those of `fs.fedprox`.
    The server's optimizer should be the default `optax.sgd(1.0)`: another one takes
    `alpha_t (w_k - w_t)` for its negative gradient.

    Args:
      algorithm: one whose clients send the difference of two models, as `fs.fedavg`.
      concurrency, clock, staleness: as in `fedbuff`.
      alpha: Float[] in (0, 1], may be traced.

    Raises:
      ValueError: as `fedbuff`; and for an algorithm whose clients send something else, from
        `fs.init` where only the shapes tell.

    >>> import fedjax_sim as fs, numpy as np, optax
    >>> algorithm = fs.fedavg(lambda w, y, key: (y - w) ** 2 / 2, optax.sgd(1.0),
    ...                       fs.LocalTraining())
    >>> clock = fs.clocks.given([1.0, 2.0, 50.0])
    >>> fs.asynchronous.fedasync(algorithm, concurrency=3, clock=clock).asynchrony.buffer
    1
    """
    check_number("alpha", alpha, lambda x: 0 < x <= 1, "in (0, 1]")
    factor = as_staleness(staleness)

    def mixing(x: Array) -> Array:
        return jnp.asarray(alpha, x.dtype) * factor(x)

    return _asynchronous(algorithm, 1, concurrency, clock, mixing, mixes_models=True)


def _asynchronous(
    algorithm: FederatedAlgorithm,
    buffer: int,
    concurrency: int,
    clock: Clock,
    staleness: Staleness,
    mixes_models: bool = False,
) -> FederatedAlgorithm:
    buffer, concurrency = check_count("buffer", buffer), check_count("concurrency", concurrency)
    check_buffer(buffer, concurrency)
    check_clock(clock)
    num_clients = len(clock.step_seconds)
    if concurrency > num_clients:
        raise ValueError(
            "concurrency must be at most K, since a client trains once at a time; got "
            f"concurrency = {concurrency} and a clock of {num_clients} clients"
        )
    asynchrony = Asynchrony(buffer, concurrency, clock, staleness, mixes_models)
    check_can_be_asynchronous(algorithm, asynchrony)
    return algorithm._replace(asynchrony=asynchrony)
