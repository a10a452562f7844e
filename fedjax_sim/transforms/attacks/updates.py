"""Attacks on updates: what malicious clients send in place of what they trained."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fedjax_sim.core.checks import check_number
from fedjax_sim.core.randomness import stream
from fedjax_sim.core.registry import ANY_NUMBER, AT_LEAST_0, POSITIVE, Option, declare
from fedjax_sim.core.tasks import Attack
from fedjax_sim.core.trees import weighted_sum, where
from fedjax_sim.core.types import Array, PyTree, accumulator


@declare(
    "each sends its update with the other sign",
    Option(
        "flip_scale",
        "by how much it is scaled beside",
        default=1.0,
        range=POSITIVE,
        traced=True,
        parameter="scale",
    ),
)
def sign_flip(scale: ArrayLike = 1.0) -> Attack:
    """A malicious client sends `-scale d_k`.

    Li et al. 2019, "RSA: Byzantine-Robust Stochastic Aggregation Methods" (arXiv 1811.03761).

    Args:
      scale: Float[] > 0, may be traced.

    Raises:
      ValueError: for a scale out of range.

    >>> malicious, counted = jnp.array([True, False]), jnp.ones(2, bool)
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> sign_flip()(jnp.array([1.0, 2.0]), malicious, counted, keys).tolist()
    [-1.0, 2.0]
    """
    check_number("scale", scale, POSITIVE.allows, POSITIVE.says)

    def attack(updates: PyTree, malicious: Array, counted: Array, key: Array) -> PyTree:
        flipped = jax.tree.map(lambda x: -jnp.asarray(scale, x.dtype) * x, updates)
        return where(malicious, flipped, updates)

    return attack


@declare(
    "each sends noise",
    Option(
        "noise_std",
        "standard deviation of a coordinate",
        default=1.0,
        range=POSITIVE,
        traced=True,
        parameter="std",
    ),
)
def gaussian(std: ArrayLike) -> Attack:
    """A malicious client sends `N(0, std^2)` in every coordinate, in place of its update.

    Noise is drawn by client and round. Blanchard et al. 2017 (arXiv 1703.02757), section 6.

    Args:
      std: Float[] > 0, may be traced.

    Raises:
      ValueError: for a std out of range.
    """
    check_number("std", std, POSITIVE.allows, POSITIVE.says)

    def attack(updates: PyTree, malicious: Array, counted: Array, key: Array) -> PyTree:
        leaves, structure = jax.tree.flatten(updates)

        def noise(key: Array) -> list[Array]:
            return [
                jax.random.normal(stream(key, place), x.shape[1:], accumulator(x.dtype))
                for place, x in enumerate(leaves)
            ]

        drawn = [
            (jnp.asarray(std, z.dtype) * z).astype(x.dtype)
            for z, x in zip(jax.vmap(noise)(key), leaves, strict=True)
        ]
        return where(malicious, jax.tree.unflatten(structure, drawn), updates)

    return attack


@declare(
    "all send the same, a few standard deviations beside the mean (Baruch et al. 2019)",
    Option(
        "alie_z",
        "standard deviations; without, the largest that a majority hides",
        range=ANY_NUMBER,
        traced=True,
        parameter="z",
    ),
    Option(
        "omniscient",
        "whether the mean is of the honest clients, and not of the malicious ones' own updates",
        kind=bool,
        default=False,
    ),
)
def alie(z: ArrayLike | None = None, omniscient: bool = False) -> Attack:
    """A Little Is Enough: all malicious clients send `mu + z sigma`, coordinate by coordinate.

    mu and sigma are mean and standard deviation (of division by the number) of the updates that the
    malicious clients trained, who know of no others, as in the paper; or, if `omniscient`, of those
    of the honest ones. An update is minus a gradient times a rate, so that this is the `mu - z
    sigma` of gradients in the authors' code.

    Without a z it is the paper's: of n clients that report, f of them malicious, `s = floor(n / 2 +
    1) - f` honest ones must be further from mu than the attackers for these to be in a majority,
    and z is the quantile of the normal distribution at (n - f - s) / (n - f). It is 0 where that
    is negative, and s is at least 1, where the malicious are a majority themselves.

    Baruch et al. 2019, "A Little Is Enough" (arXiv 1902.06156), Algorithm 3.

    Args:
      z: Float[], may be traced; None for the paper's.
      omniscient: whose updates mu and sigma are of.

    Raises:
      ValueError: for a z that is not finite, or an omniscient that is neither True nor False.
    """
    if not isinstance(omniscient, bool):
        raise ValueError(f"omniscient must be True or False; got {omniscient!r}")
    if z is not None:
        check_number("z", z, ANY_NUMBER.allows, ANY_NUMBER.says)

    def attack(updates: PyTree, malicious: Array, counted: Array, key: Array) -> PyTree:
        bad, honest = malicious & counted, counted & ~malicious
        known = honest if omniscient else bad
        deviations = _hidden_deviations(bad, honest) if z is None else jnp.asarray(z)
        mean = _mean(updates, known)
        squares = _mean(_squares(updates, mean), known)

        def shifted(x: Array, mu: Array, square: Array) -> Array:
            value = mu + deviations.astype(mu.dtype) * jnp.sqrt(square)
            return jnp.broadcast_to(value.astype(x.dtype)[None], x.shape)

        return where(malicious, jax.tree.map(shifted, updates, mean, squares), updates)

    return attack


@declare(
    "all send the honest clients' mean with the other sign (Xie et al. 2019)",
    Option(
        "ipm_eps",
        "by how much it is scaled",
        default=0.5,
        range=AT_LEAST_0,
        traced=True,
        parameter="eps",
    ),
)
def ipm(eps: ArrayLike) -> Attack:
    """Inner product manipulation: all malicious clients send `-eps` times the honest ones' mean.

    A small eps hides near the honest updates and turns the direction of a mean that trusts
    distances; an eps above (n - f) / f turns a plain mean.

    Xie et al. 2019, "Fall of Empires" (arXiv 1903.03936).

    Args:
      eps: Float[] >= 0, may be traced.

    Raises:
      ValueError: for an eps out of range.

    >>> malicious, counted = jnp.array([True, False, False]), jnp.ones(3, bool)
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> ipm(0.5)(jnp.array([9.0, 2.0, 4.0]), malicious, counted, keys).tolist()
    [-1.5, 2.0, 4.0]
    """
    check_number("eps", eps, AT_LEAST_0.allows, AT_LEAST_0.says)

    def attack(updates: PyTree, malicious: Array, counted: Array, key: Array) -> PyTree:
        mean = _mean(updates, counted & ~malicious)

        def turned(x: Array, mu: Array) -> Array:
            value = -jnp.asarray(eps, mu.dtype) * mu
            return jnp.broadcast_to(value.astype(x.dtype)[None], x.shape)

        return where(malicious, jax.tree.map(turned, updates, mean), updates)

    return attack


def _mean(updates: PyTree, known: Array) -> PyTree:
    """The plain mean of those known, in float32 or better; 0 of none."""
    number = jnp.maximum(jnp.sum(known, dtype=jnp.int32), 1)
    total = weighted_sum(known.astype(jnp.result_type(float)), known, updates)
    return jax.tree.map(lambda x: x / number.astype(x.dtype), total)


def _squares(updates: PyTree, mean: PyTree) -> PyTree:
    return jax.tree.map(lambda x, mu: jnp.square(x.astype(mu.dtype) - mu[None]), updates, mean)


def _hidden_deviations(bad: Array, honest: Array) -> Array:
    """Float[], z of the paper."""
    f, others = (jnp.sum(x, dtype=jnp.int32) for x in (bad, honest))
    supporters = jnp.maximum((f + others) // 2 + 1 - f, 1)
    dtype = jnp.result_type(float)
    share = (others - supporters).astype(dtype) / jnp.maximum(others, 1).astype(dtype)
    return jax.scipy.special.ndtri(jnp.clip(share, 0.5, 1 - 1e-6))
