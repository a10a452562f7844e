"""Central privacy: McMahan et al. 2018, "Learning Differentially Private Recurrent Language
Models" (arXiv 1710.06963).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike

from fedjax_sim.core.algorithm import each_seen
from fedjax_sim.core.registry import AT_LEAST_0, POSITIVE, declare
from fedjax_sim.core.types import Array, ClientOutput, FederatedAlgorithm, PyTree, RoundContext
from fedjax_sim.transforms.asynchronous.refusals import checked_around
from fedjax_sim.transforms.privacy.mechanism import (
    CLIP,
    NOISE_MULTIPLIER,
    CheckedWithModel,
    FixedDenominator,
    Unchanged,
    as_expected,
    check_private,
    clipped,
    fixed_denominators,
    with_noise,
)


@declare(
    "the sum of clipped updates, noised by the server (McMahan et al. 2018)",
    CLIP,
    NOISE_MULTIPLIER,
    defaults={"mode": "unbiased", "sampler": "bernoulli"},
)
def central(
    algorithm: FederatedAlgorithm,
    clip: ArrayLike,
    noise_multiplier: ArrayLike,
    expected_cohort: ArrayLike,
) -> FederatedAlgorithm:
    """The algorithm whose server sees a noised sum of clipped updates (DP-FedAvg).

        clip(d)   = d min(1, clip / |d|)
        c_k       = min(m a_k / D, 1)
        u         = (sum_{k in V} c_k clip(d_k) + N(0, (noise_multiplier clip)^2 I)) / m
        w_{t+1}   = server_update(w_t, u)

    with m the expected cohort, a_k and D the aggregation rule's coefficients and denominator, and
    |d| the Euclidean norm of a client's whole update. A client moves the sum by at most `clip`, so
    that each round is a Gaussian mechanism of this noise multiplier, for which `budget` accounts.
    The sum is divided by m and never by the weight of those that report; a round in which nobody
    reports releases its noise, too. No coefficient is above 1 / m: under `fs.aggregation.unbiased`,
    with cohorts of `fs.sampling.bernoulli(q)` and m = q K, `c_k = min(n_k K / n, 1)`, the paper's
    with the mean client's weight as its cap; with clients that weigh the same all are 1, and with
    neither clip nor noise it is FedAvg over the fixed denominator.

    What is private: one client's presence, its examples all together, against who sees the models
    of all rounds. What is taken as public: the number of the clients and the weights n_k. The
    metrics of a run are not noised. What a client keeps is its own, made of its examples and of
    models that were released, so it costs nothing. A non-finite update counts as 0.

    Args:
      algorithm: whose clients send a change of the model alone, in one exchange. Compress it first,
        and share a part of it first: what is clipped is what the server decodes.
      clip: Float[] > 0, may be traced, as the others may.
      noise_multiplier: Float[] >= 0, z; `calibrate` finds it for a budget.
      expected_cohort: Float[] > 0, m.

    Raises:
      ValueError: for a number out of range; for an algorithm of several exchanges, private already,
        or one that sends more than a change of the model, as SCAFFOLD a total, and FedNova or
        q-FedAvg a norm (from `fs.init`, where only its shapes tell); from `fs.make_round`, for a
        rule without a denominator of its own, or one that combines all updates.

    >>> import fedjax_sim as fs, jax, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([np.full(2, y) for y in (1.0, 2.0, 30.0)])
    >>> algorithm = fs.fedavg(lambda w, y, key: (y - w) ** 2 / 2, optax.sgd(1.0),
    ...                       fs.LocalTraining())
    >>> private = fs.privacy.central(algorithm, clip=4.0, noise_multiplier=0.0, expected_cohort=3)
    >>> round_fn = fs.make_round(private, fs.aggregation.unbiased)
    >>> state = fs.init(private, 0.0, data)
    >>> cohort = fs.sampling.everyone().sample(jax.random.key(0), 0, data)
    >>> state, _ = round_fn(jax.random.key(0), state, data, cohort)
    >>> round(float(state.params), 4)  # (1 + 2 + 4) / 3
    2.3333
    """
    algorithm = check_private(algorithm)
    POSITIVE.check("clip", clip)
    AT_LEAST_0.check("noise_multiplier", noise_multiplier)
    POSITIVE.check("expected_cohort", expected_cohort)
    inner = algorithm.client

    def finish(carry: PyTree, message: PyTree, state: PyTree, *rest: Array) -> ClientOutput:
        output = inner.finish(carry, message, state, *rest)
        return output._replace(update=clipped(output.update, clip)[0])

    def server_update(
        server: PyTree, update: PyTree, total: PyTree, context: RoundContext
    ) -> PyTree:
        wide = context.denominator.dtype
        std = jnp.asarray(noise_multiplier, wide) * jnp.asarray(clip, wide) / context.denominator
        noised = with_noise(context.key, std, update)
        return algorithm.server_update(server, noised, total, as_expected(context))

    return checked_around(
        each_seen(algorithm)._replace(  # because each one's own update is clipped
            client=inner._replace(finish=finish),
            server_update=server_update,
            check=CheckedWithModel(algorithm),
            acts_when_empty=True,
            wire=Unchanged(algorithm.wire),
            check_rule=fixed_denominators(algorithm.check_rule),
            aggregation=FixedDenominator(expected_cohort),
        )
    )
