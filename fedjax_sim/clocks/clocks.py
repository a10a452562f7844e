"""Clocks whose clients are alike, differ at random, or were measured."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fedjax_sim.core.checks import check_count, check_number
from fedjax_sim.core.clock import Clock, check_clock
from fedjax_sim.core.randomness import CLOCK, check_key, stream
from fedjax_sim.core.registry import AT_LEAST_0, POSITIVE, Option, declare
from fedjax_sim.core.types import Array

_STEP_SECONDS = Option(
    "step_seconds",
    "simulated seconds of a local step (lognormal: the median client's)",
    default=1.0,
    range=POSITIVE,
    traced=True,
    metavar="S",
)
_BANDWIDTH = Option(
    "bandwidth",
    "bytes a second, down and up (lognormal: the median client's); none: what is sent takes no "
    "time",
    range=POSITIVE,
    traced=True,
    metavar="BYTES",
)


@declare(
    "clients whose speeds are log-normal",
    _STEP_SECONDS,
    Option(
        "speed_spread",
        "standard deviation of the logarithm of a client's seconds a step",
        default=1.0,
        range=AT_LEAST_0,
        traced=True,
    ),
    _BANDWIDTH,
    Option(
        "bandwidth_spread",
        "standard deviation of the logarithm of a client's bandwidth",
        default=0.0,
        range=AT_LEAST_0,
        traced=True,
    ),
)
def lognormal(
    key: Array,
    num_clients: int,
    step_seconds: ArrayLike = 1.0,
    speed_spread: ArrayLike = 1.0,
    bandwidth: ArrayLike = jnp.inf,
    bandwidth_spread: ArrayLike = 0.0,
) -> Clock:
    """Client k takes `step_seconds * exp(speed_spread * z_k)` a step, with z_k standard normal.

    Its bytes a second are `bandwidth * exp(bandwidth_spread * y_k)`, down and up alike. A client's
    z_k and y_k depend on the key and k alone, so the numbers may be traced, and share the draws.

    Args:
      key: of who is slow; one key for all seeds of an experiment keeps the federation the same.
      num_clients: K.
      step_seconds, bandwidth: of the median client, positive; an infinite bandwidth takes no time.
      speed_spread, bandwidth_spread: at least 0; at 1 two thirds of the clients are within e times
        the median.

    Raises:
      ValueError: naming the number that is out of range.

    >>> import jax
    >>> clock = lognormal(jax.random.key(0), 3, step_seconds=2.0, speed_spread=0.0)
    >>> clock.step_seconds.tolist(), clock.up.tolist()
    ([2.0, 2.0, 2.0], [inf, inf, inf])
    """
    check_key(key)
    num_clients = check_count("num_clients", num_clients)
    check_number("step_seconds", step_seconds, lambda x: x > 0, "positive")
    for name, spread in (("speed_spread", speed_spread), ("bandwidth_spread", bandwidth_spread)):
        check_number(name, spread, lambda x: x >= 0, "at least 0")
    _check_bandwidth(bandwidth)

    def normal(client_id: Array) -> Array:
        return jax.random.normal(stream(key, CLOCK, client_id), (2,))

    z, y = jax.vmap(normal)(jnp.arange(num_clients)).T
    rates = jnp.asarray(bandwidth, z.dtype) * jnp.exp(jnp.asarray(bandwidth_spread, z.dtype) * y)
    seconds = jnp.asarray(step_seconds, z.dtype) * jnp.exp(jnp.asarray(speed_spread, z.dtype) * z)
    return Clock(seconds, rates, rates)


@declare("clients that are alike", _STEP_SECONDS, _BANDWIDTH)
def equal(num_clients: int, step_seconds: ArrayLike = 1.0, bandwidth: ArrayLike = jnp.inf) -> Clock:
    """Every client takes `step_seconds` a step, and `bandwidth` bytes a second, down and up.

    Raises:
      ValueError: naming the number that is out of range.

    >>> equal(2, step_seconds=0.5).step_seconds.tolist()
    [0.5, 0.5]
    """
    num_clients = check_count("num_clients", num_clients)
    check_number("step_seconds", step_seconds, lambda x: x >= 0, "at least 0")
    _check_bandwidth(bandwidth)
    dtype = jnp.result_type(float)
    seconds, rates = (
        jnp.full(num_clients, jnp.asarray(x, dtype)) for x in (step_seconds, bandwidth)
    )
    return Clock(seconds, rates, rates)


def given(step_seconds: ArrayLike, down: ArrayLike = jnp.inf, up: ArrayLike = jnp.inf) -> Clock:
    """A clock of measured numbers.

    Args:
      step_seconds: Float[K], seconds of one local step of each client, at least 0.
      down, up: bytes a second, Float[K] or one for all, positive; infinite takes no time.

    Raises:
      ValueError: naming the field, what was given and what is allowed.

    >>> given([0.1, 2.0], up=[1e6, 1e5]).down.tolist()
    [inf, inf]
    """
    dtype = jnp.result_type(float)
    seconds = jnp.asarray(step_seconds, dtype)
    rates = [jnp.asarray(x, dtype) for x in (down, up)]
    rates = [jnp.full(seconds.shape, x) if x.ndim == 0 else x for x in rates]
    clock = Clock(seconds, *rates)
    check_clock(clock)
    return clock


def _check_bandwidth(bandwidth: ArrayLike) -> None:
    """Refuses a concrete one that is not positive; an infinite one takes no time."""
    says = "positive, or infinite for no time"
    check_number("bandwidth", bandwidth, lambda x: x > 0, says, or_infinite=True)
