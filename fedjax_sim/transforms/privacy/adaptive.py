"""A clip that follows a quantile of the updates' norms: Andrew et al. 2021, "Differentially Private
Learning with Adaptive Clipping" (arXiv 1905.03871).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fedjax_sim.core.algorithm import each_seen
from fedjax_sim.core.checks import is_concrete
from fedjax_sim.core.randomness import NOISE, stream
from fedjax_sim.core.registry import AT_LEAST_0, POSITIVE, WITHIN_0_AND_1, Option, declare
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.trees import sent_with
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    ClientUpdate,
    FederatedAlgorithm,
    Metrics,
    Params,
    PyTree,
    RoundContext,
    no_probe,
)
from fedjax_sim.transforms.asynchronous.refusals import checked_around
from fedjax_sim.transforms.privacy.mechanism import (
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


@one_line
class WithClip(NamedTuple):
    """The server's state, or its message: the algorithm's own, and the clip C."""

    own: PyTree
    clip: Array  # Float[]


@one_line
class WithBit(NamedTuple):
    """What a client sends: its clipped update, and whether the clip left it as it was."""

    update: PyTree
    bit: Array  # Float[], 1/2 where |d_k| <= C, and -1/2 otherwise


@dataclass(frozen=True)
class OwnParams:
    """`params` of the algorithm, of the server's state around its own."""

    params: Callable[[PyTree], Params]

    def __call__(self, server: WithClip) -> Params:
        return self.params(server.own)


@declare(
    "the same with a clip that follows a quantile of the updates' norms (Andrew et al. 2021)",
    NOISE_MULTIPLIER,
    Option(
        "quantile", "of the norms", default=0.5, range=WITHIN_0_AND_1, traced=True, metavar="GAMMA"
    ),
    Option("initial_clip", "the first clip", default=0.1, range=POSITIVE, traced=True),
    Option("clip_lr", "rate of the clip's steps", default=0.2, range=AT_LEAST_0, traced=True),
    Option(
        "bit_noise",
        "standard deviation of the count of those within the clip; without, a twentieth of the "
        "expected cohort",
        range=AT_LEAST_0,
        traced=True,
    ),
    defaults={"mode": "unbiased", "sampler": "bernoulli"},
)
def adaptive_clipping(
    algorithm: FederatedAlgorithm,
    noise_multiplier: ArrayLike,
    expected_cohort: ArrayLike,
    quantile: ArrayLike = 0.5,
    initial_clip: ArrayLike = 0.1,
    clip_lr: ArrayLike = 0.2,
    bit_noise: ArrayLike | None = None,
) -> FederatedAlgorithm:
    """`central` with a clip C that follows a quantile of the norms of the clients' updates.

    Client k sends, beside its clipped update, whether its norm was within the clip, b_k:

        u   = (sum_{k in V} c_k clip_C(d_k) + N(0, (z_d C)^2 I)) / m
        b   = (sum_{k in V} c_k (b_k - 1/2) + N(0, bit_noise^2)) / m + 1/2
        C  <- C exp(-clip_lr (b - quantile))
        z_d = (noise_multiplier^-2 - (2 bit_noise)^-2)^(-1/2)

    with m the expected cohort and c_k as in `central`. A bit less 1/2 moves its sum by at most 1/2,
    so that with z_d, which is a little above the noise multiplier, update and bit together are one
    Gaussian mechanism of the noise multiplier, for which `budget` accounts (the paper's theorem 1).
    C is `state.server.clip`. One number more goes down and one up. What else `central` says holds.

    Args:
      algorithm, expected_cohort: as in `central`.
      noise_multiplier: Float[] >= 0, z, of update and bit together; may be traced, as all may.
      quantile: Float[] in (0, 1), of the norms; clip_lr: Float[] >= 0, the paper's eta_C.
      initial_clip: Float[] > 0, the first C.
      bit_noise: Float[] > noise_multiplier / 2, sigma_b; None for m / 20, the paper's. With a noise
        multiplier of 0 it may be 0.

    Raises:
      ValueError: as `central`; for a `bit_noise` that leaves nothing of the budget to the update.

    >>> import fedjax_sim as fs, optax
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    >>> algorithm = fs.privacy.adaptive_clipping(algorithm, 1.0, expected_cohort=100)
    """
    algorithm = check_private(algorithm)
    AT_LEAST_0.check("noise_multiplier", noise_multiplier)
    POSITIVE.check("expected_cohort", expected_cohort)
    WITHIN_0_AND_1.check("quantile", quantile)
    POSITIVE.check("initial_clip", initial_clip)
    AT_LEAST_0.check("clip_lr", clip_lr)
    if bit_noise is not None:
        AT_LEAST_0.check("bit_noise", bit_noise)
    sigma: ArrayLike = jnp.asarray(expected_cohort) / 20 if bit_noise is None else bit_noise
    if is_concrete(sigma) and is_concrete(noise_multiplier):
        sigma_of_bits, z = float(np.asarray(sigma)), float(np.asarray(noise_multiplier))
        if z > 0 and 2 * sigma_of_bits <= z:
            default = ", expected_cohort / 20" if bit_noise is None else ""
            raise ValueError(
                f"bit_noise must be above noise_multiplier / 2 = {z / 2:g}, or nothing is left of "
                f"the budget for the update; got {sigma_of_bits:g}{default}"
            )
    inner, given_probe = algorithm.client, algorithm.personal_probe
    given_personal, inner_probe = algorithm.personal, algorithm.client.probe

    def init(params: Params) -> WithClip:
        return WithClip(algorithm.init(params), jnp.asarray(initial_clip, jnp.result_type(float)))

    def broadcast(server: WithClip, round: Array) -> WithClip:
        return WithClip(algorithm.broadcast(server.own, round), server.clip)

    def first(message: WithClip, state: PyTree, probed: PyTree, key: Array) -> PyTree:
        return inner.init(message.own, state, probed, key)

    def step(
        carry: PyTree, message: WithClip, state: PyTree, batch: PyTree, mask: Array, key: Array
    ) -> tuple[PyTree, Metrics]:
        return inner.step(carry, message.own, state, batch, mask, key)

    def finish(carry: PyTree, message: WithClip, state: PyTree, *rest: Array) -> ClientOutput:
        output = inner.finish(carry, message.own, state, *rest)
        bounded, is_within = clipped(output.update, message.clip)
        half = jnp.asarray(0.5, message.clip.dtype)
        return output._replace(update=WithBit(bounded, jnp.where(is_within, half, -half)))

    def probe(message: WithClip, state: PyTree, batch: PyTree, mask: Array) -> PyTree:
        assert inner_probe is not None
        return inner_probe(message.own, state, batch, mask)

    def server_update(
        server: WithClip, update: WithBit, total: PyTree, context: RoundContext
    ) -> WithClip:
        wide = server.clip.dtype
        m = context.denominator.astype(wide)
        z, of_bits = jnp.asarray(noise_multiplier, wide), jnp.asarray(sigma, wide)
        # The paper's formula times z over z, which has a value where there is no noise.
        share = jnp.where(z > 0, z / jnp.where(z > 0, 2 * of_bits, 1), 0)
        of_update = z / jnp.sqrt(1 - share**2)
        noised = with_noise(context.key, of_update * server.clip / m, update.update)
        bit_key = stream(context.key, NOISE, len(jax.tree.leaves(update.update)))
        bit = update.bit.astype(wide) + of_bits / m * jax.random.normal(bit_key, (), wide)
        drift = bit + jnp.asarray(0.5, wide) - jnp.asarray(quantile, wide)
        clip = server.clip * jnp.exp(-jnp.asarray(clip_lr, wide) * drift)
        own = algorithm.server_update(server.own, noised, total, as_expected(context))
        return WithClip(own, clip)

    def personal(server: WithClip, state: PyTree, probed: PyTree) -> Params:
        assert given_personal is not None
        return given_personal(server.own, state, probed)

    def personal_probe(message: WithClip, state: PyTree, batch: PyTree, mask: Array) -> PyTree:
        assert given_probe is not None
        return given_probe(message.own, state, batch, mask)

    def wire(update: WithBit, total: PyTree) -> PyTree | int:
        assert algorithm.wire is not None
        return sent_with(algorithm.wire(update.update, total), update.bit)

    def message_wire(message: WithClip) -> PyTree | int:
        assert algorithm.message_wire is not None
        return sent_with(algorithm.message_wire(message.own), message.clip)

    return checked_around(
        each_seen(algorithm)._replace(  # because each one's own update is clipped
            init=init,
            params=OwnParams(algorithm.params),
            broadcast=broadcast,
            client=ClientUpdate(first, step, finish, None if inner_probe is None else probe),
            server_update=server_update,
            check=CheckedWithModel(algorithm),
            personal=None if given_personal is None else personal,
            personal_probe=given_probe if given_probe in (None, no_probe) else personal_probe,
            acts_when_empty=True,
            wire=Unchanged(None if algorithm.wire is None else wire),
            check_rule=fixed_denominators(algorithm.check_rule),
            aggregation=FixedDenominator(expected_cohort),
            message_wire=None if algorithm.message_wire is None else message_wire,
        )
    )
