"""Virtual time: how long each client takes, in simulated seconds."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fedjax_sim.core.checks import has_values
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.types import Array


@one_line
class Clock(NamedTuple):
    """How fast each of the K clients computes and communicates; nothing ever sleeps.

    A client that is sent `D` bytes, takes `s` local steps and sends `U` bytes back takes
    `D / down_k + s * step_seconds_k + U / up_k` simulated seconds. The numbers may be traced;
    `fs.clocks` makes clocks, and checks what is given to it.

    Attributes:
      step_seconds: Float[K], seconds of one local step, at least 0 and finite.
      down: Float[K], bytes a second to the client, positive; infinite for no time at all.
      up: Float[K], bytes a second from the client, likewise.

    >>> clock = Clock(jnp.array([1.0, 2.0]), down=jnp.array([4.0, jnp.inf]), up=jnp.full(2, 8.0))
    >>> clock.seconds(jnp.array([0, 1]), jnp.array([3, 3]), down_bytes=8, up_bytes=8).tolist()
    [6.0, 7.0]
    """

    step_seconds: Array
    down: Array
    up: Array

    def seconds(
        self, client_ids: Array, num_steps: Array, down_bytes: ArrayLike, up_bytes: ArrayLike
    ) -> Array:
        """Float[m], from being sent the model to the server's having the update.

        Args:
          client_ids: Int[m], in [0, K).
          num_steps: Int[m], local steps.
          down_bytes, up_bytes: of one client, as `fs.communication` counts them; a number or [m].
        """
        travelling = self.travel_seconds(client_ids, down_bytes, up_bytes)
        return travelling + self.training_seconds(client_ids, num_steps)

    def training_seconds(self, client_ids: Array, num_steps: Array) -> Array:
        """Float[m], of the local steps alone."""
        seconds = self.step_seconds[client_ids]
        return num_steps.astype(seconds.dtype) * seconds

    def travel_seconds(
        self, client_ids: Array, down_bytes: ArrayLike, up_bytes: ArrayLike
    ) -> Array:
        """Float[m], of what is sent down and up alone."""
        down, up = self.down[client_ids], self.up[client_ids]
        # As floats, because a large model has more bytes than 32-bit integers count.
        return _as_float(down_bytes, down) / down + _as_float(up_bytes, up) / up


def check_clock(clock: Any, num_clients: int | None = None) -> None:
    """Refuses what is no clock of K clients; values are checked where they are known.

    Args:
      num_clients: K; None takes that of the clock.

    Raises:
      ValueError: naming the field, what was given and what is allowed.
    """
    if not isinstance(clock, Clock):
        raise ValueError(
            "clock must be an fs.Clock, as fs.clocks.lognormal(...) makes one; got "
            f"{clock.__name__ if hasattr(clock, '__name__') else repr(clock)}"
        )
    shape = jnp.shape(clock.step_seconds) if num_clients is None else (num_clients,)
    for name, value in zip(clock._fields, clock, strict=True):
        if jnp.shape(value) != shape or len(shape) != 1:
            expected = "(K,)" if num_clients is None else f"({num_clients},), a number a client"
            raise ValueError(f"clock.{name} must have shape {expected}; got {jnp.shape(value)}")
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(f"clock.{name} must be floating numbers; got {value.dtype}")
        if not has_values(value):
            continue
        numbers = np.asarray(value)
        is_time = name == "step_seconds"
        allowed = (numbers >= 0) & np.isfinite(numbers) if is_time else numbers > 0
        if not allowed.all():
            says = "at least 0 and finite" if is_time else "positive, or infinite for no time"
            client = int(np.argmin(allowed))
            raise ValueError(
                f"clock.{name} must be {says}; got {numbers[client]} of client {client}"
            )


def _as_float(num_bytes: ArrayLike, like: Array) -> Array:
    if isinstance(num_bytes, (int, float, np.integer)):
        return jnp.asarray(float(num_bytes), like.dtype)
    return jnp.asarray(num_bytes).astype(like.dtype)
