"""Adaptive server optimizers as their paper has them: Reddi et al. 2021, "Adaptive Federated
Optimization" (arXiv 2003.00295), Algorithm 2.

With u the averaged update of the clients, m_0 = 0 and v_0 = tau^2, a round is

    m <- b1 m + (1 - b1) u
    v <- v + u^2                              adagrad
         v - (1 - b2) u^2 sign(v - u^2)       yogi
         b2 v + (1 - b2) u^2                  adam
    w <- w + lr m / (sqrt(v) + tau)

and no bias is corrected. m and v are held in float32 or better: in float16 tau^2 = 1e-6 has 4 bits,
and u^2 is 0 below 2.4e-4. optax's optimizers of these names differ: `optax.adam` and `optax.yogi`
divide m and v by what they lack of their limits and start v at 0 and 1e-6, and `optax.adagrad`
has no tau in its denominator. All of them are `server_optimizer` of `fs.fedavg` and its siblings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.core.checks import check_number
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import Array, Params, PyTree, accumulator

# (v, u^2) -> the next v
Accumulate = Callable[[Array, Array], Array]


class AdaptiveState(NamedTuple):
    """The moments of Algorithm 2, each with the structure of params, in float32 or better."""

    m: PyTree
    v: PyTree

    def __repr__(self) -> str:
        return fields_of(self)


def adagrad(
    lr: ArrayLike, b1: ArrayLike = 0.0, tau: ArrayLike = 1e-3
) -> optax.GradientTransformation:
    """FedAdagrad's server: `v <- v + u^2`, `w <- w + lr m / (sqrt(v) + tau)`, v_0 = tau^2.

    Args:
      lr: Float[] > 0, the paper's eta, may be traced as the others may.
      b1: Float[] in [0, 1), of `m <- b1 m + (1 - b1) u`; the paper's experiments have 0 here.
      tau: Float[] > 0, how adaptive: the larger, the less.

    Raises:
      ValueError: for a number out of range.

    >>> server, params = adagrad(0.01), jnp.zeros(())
    >>> updates, _ = server.update(jnp.array(-1.2e-3), server.init(params), params)
    >>> round(float(updates), 6)  # 0.01 * 1.2e-3 / (sqrt(1e-6 + 1.44e-6) + 1e-3)
    0.004684
    """
    return _adaptive(lr, b1, tau, lambda v, square: v + square)


def adam(
    lr: ArrayLike, b1: ArrayLike = 0.9, b2: ArrayLike = 0.99, tau: ArrayLike = 1e-3
) -> optax.GradientTransformation:
    """FedAdam's server: `v <- b2 v + (1 - b2) u^2`, `w <- w + lr m / (sqrt(v) + tau)`.

    Args:
      lr, tau: as in `adagrad`.
      b1, b2: Float[] in [0, 1); the paper's experiments have 0.9 and 0.99.

    Raises:
      ValueError: for a number out of range.

    >>> server, params = adam(0.01), jnp.zeros(())
    >>> updates, _ = server.update(jnp.array(-0.01), server.init(params), params)
    >>> round(float(updates), 6)  # 0.01 * 0.001 / (sqrt(0.99e-6 + 0.01e-4) + 1e-3)
    0.004148
    """
    _check_share("b2", b2)

    def accumulate(v: Array, square: Array) -> Array:
        keep = jnp.asarray(b2, v.dtype)
        return keep * v + (1 - keep) * square

    return _adaptive(lr, b1, tau, accumulate)


def yogi(
    lr: ArrayLike, b1: ArrayLike = 0.9, b2: ArrayLike = 0.99, tau: ArrayLike = 1e-3
) -> optax.GradientTransformation:
    """FedYogi's server: `v <- v - (1 - b2) u^2 sign(v - u^2)`, `w <- w + lr m / (sqrt(v) + tau)`.

    Args:
      lr, b1, b2, tau: as in `adam`.

    Raises:
      ValueError: for a number out of range.

    >>> server, params = yogi(0.01), jnp.zeros(())
    >>> updates, _ = server.update(jnp.array(-0.01), server.init(params), params)
    >>> round(float(updates), 6)  # 0.01 * 0.001 / (sqrt(1e-6 + 0.01e-4) + 1e-3)
    0.004142
    """
    _check_share("b2", b2)

    def accumulate(v: Array, square: Array) -> Array:
        return v - (1 - jnp.asarray(b2, v.dtype)) * square * jnp.sign(v - square)

    return _adaptive(lr, b1, tau, accumulate)


# By the name that a setting has for it.
ADAPTIVE = {optimizer.__name__: optimizer for optimizer in (adam, yogi, adagrad)}


def _adaptive(
    lr: ArrayLike, b1: ArrayLike, tau: ArrayLike, accumulate: Accumulate
) -> optax.GradientTransformation:
    check_number("lr", lr, lambda x: x > 0, "positive")
    check_number("tau", tau, lambda x: x > 0, "positive")
    _check_share("b1", b1)

    def init(params: Params) -> AdaptiveState:
        def first_m(w: Array) -> Array:
            return jnp.zeros_like(w, accumulator(w.dtype))

        def first_v(w: Array) -> Array:
            wide = accumulator(w.dtype)
            return jnp.full_like(w, jnp.square(jnp.asarray(tau, wide)), wide)

        return AdaptiveState(jax.tree.map(first_m, params), jax.tree.map(first_v, params))

    def update(
        grads: PyTree, state: AdaptiveState, params: Params | None = None
    ) -> tuple[PyTree, AdaptiveState]:
        # A server optimizer is given the pseudo-gradient -u, as an optimizer of optax expects.
        def average(m: Array, g: Array) -> Array:
            keep = jnp.asarray(b1, m.dtype)
            return keep * m - (1 - keep) * g.astype(m.dtype)

        m = jax.tree.map(average, state.m, grads)
        v = jax.tree.map(lambda v, g: accumulate(v, jnp.square(g.astype(v.dtype))), state.v, grads)

        def step(m: Array, v: Array, g: Array) -> Array:
            moved = jnp.asarray(lr, m.dtype) * m / (jnp.sqrt(v) + jnp.asarray(tau, m.dtype))
            return moved.astype(g.dtype)

        return jax.tree.map(step, m, v, grads), AdaptiveState(m, v)

    return optax.GradientTransformation(init, update)


def _check_share(name: str, value: ArrayLike) -> None:
    check_number(name, value, lambda x: 0 <= x < 1, "in [0, 1)")
