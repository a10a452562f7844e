"""Local privacy: clients noise what they send."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from fedjax_sim.core.algorithm import each_seen
from fedjax_sim.core.registry import AT_LEAST_0, POSITIVE, declare
from fedjax_sim.core.types import Array, ClientOutput, FederatedAlgorithm, PyTree
from fedjax_sim.transforms.compression.uplink import Encoded
from fedjax_sim.transforms.privacy.mechanism import (
    CLIP,
    NOISE_MULTIPLIER,
    CheckedWithModel,
    check_private,
    clipped,
    with_noise,
)


@declare(
    "each update, clipped and noised by its client",
    CLIP,
    NOISE_MULTIPLIER,
)
def local(
    algorithm: FederatedAlgorithm, clip: ArrayLike, noise_multiplier: ArrayLike
) -> FederatedAlgorithm:
    """The algorithm whose clients clip and noise their own updates, before anybody sees them.

        d_k <- d_k min(1, clip / |d_k|) + N(0, (noise_multiplier clip)^2 I)

    with |d_k| the Euclidean norm of the whole update. A client trusts nobody with more, so that any
    rule may average or combine what is sent, and the result may be compressed. The noise of m
    clients averages to that of `central` times sqrt(m), of m clients alike. That a client takes
    part is seen, so that no sampler amplifies: the budget of a client that reports in r rounds is
    `budget(fs.sampling.everyone(), noise_multiplier, r, delta)`, between its update and one of 0;
    between two updates of its own it is that of half the noise multiplier. A non-finite update
    counts as 0.

    Args:
      algorithm: whose clients send a change of the model alone, in one exchange, not compressed.
      clip: Float[] > 0, may be traced, as the next may.
      noise_multiplier: Float[] >= 0, z.

    Raises:
      ValueError: as `central`, but for rules; for an algorithm whose clients noise what they send
        already; and for one that is compressed, because what travels would have no noise, or not be
        what the codec made: compress the result.

    >>> import fedjax_sim as fs, optax
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    >>> algorithm = fs.privacy.local(algorithm, clip=1.0, noise_multiplier=2.0)
    """
    algorithm = check_private(algorithm)
    POSITIVE.check("clip", clip)
    AT_LEAST_0.check("noise_multiplier", noise_multiplier)
    if isinstance(algorithm.wire, Encoded):
        raise ValueError(
            "algorithm must not be compressed to be private at the clients, because the noise is "
            "of what travels; compress the result: compressed(local(...))"
        )
    if isinstance(algorithm.check, CheckedWithModel):
        raise ValueError(
            "algorithm must not be noised by its clients already; got one of fs.privacy.local, "
            "whose clients would draw the same numbers once more: give the clip and the noise once"
        )
    inner = algorithm.client

    def finish(
        carry: PyTree,
        message: PyTree,
        state: PyTree,
        num_examples: Array,
        num_steps: Array,
        key: Array,
    ) -> ClientOutput:
        output = inner.finish(carry, message, state, num_examples, num_steps, key)
        bounded, _ = clipped(output.update, clip)
        std = jnp.asarray(noise_multiplier) * jnp.asarray(clip)
        return output._replace(update=with_noise(key, std, bounded))

    return each_seen(algorithm)._replace(  # because each one's own update is clipped
        client=inner._replace(finish=finish),
        check=CheckedWithModel(algorithm),
    )
