"""Bytes down and up, exactly."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.history import Communication
from fedjax_sim.core.trees import num_bytes
from fedjax_sim.core.types import Array, FederatedAlgorithm, Params, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.client import Engine


def communication(
    algorithm: FederatedAlgorithm, params: Params, data: FederatedData
) -> Communication:
    """What one client is sent and sends back in a round, in bytes; computes nothing.

    `down = bytes(message)`, `up = bytes(update) + bytes(total)`, or the bytes of what the
    algorithm's `message_wire` and `wire` say travels in their place, bits being rounded up; of an
    algorithm with several exchanges in a round those of all of them. `.total(metrics)` or
    `.total(history.rounds)` then gives the bytes of a round or a run.

    Raises:
      ValueError: for a `wire` or `message_wire` that returns neither shapes nor bits.

    >>> import fedjax_sim as fs, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones((3, 2))}])
    >>> loss_fn = lambda w, batch, key: batch["x"] @ w
    >>> fs.communication(fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining()), jnp.ones(2), data)
    Communication(down=8, up=8)
    """

    down, up = shapes_exchanged(algorithm, params, data)
    *earlier_down, message = down
    *earlier, (update, total) = up
    sent_down, sent_up = algorithm.message_wire, algorithm.wire
    return Communication(
        num_bytes(earlier_down)
        + _bytes_of_wire("message_wire", message if sent_down is None else sent_down(message)),
        num_bytes(earlier)
        + _bytes_of_wire("wire", (update, total) if sent_up is None else sent_up(update, total)),
    )


def shapes_exchanged(
    algorithm: FederatedAlgorithm, params: Params, data: FederatedData
) -> tuple[list[PyTree], list[tuple[PyTree, PyTree]]]:
    """The shapes of each exchange's message, and of its (update, total).

    Args:
      params: arrays, numbers or their shapes.
    """

    def exchanged(key: Array, params: Params, data: FederatedData) -> tuple[PyTree, PyTree]:
        down, up = [], []
        server, state = algorithm.init(params), algorithm.init_client(params)
        for exchange in algorithm.exchanges:
            message = exchange.broadcast(server, jnp.zeros((), jnp.int32))
            engine = Engine(exchange, data, key, message)
            client = engine.client(jnp.zeros((), jnp.int32))
            carry = engine.start(client, state)
            output = engine.finish(client, carry, state, jnp.ones((), jnp.int32))
            down.append(message)
            up.append((output.update, output.total))
        return down, up

    params = jax.eval_shape(lambda tree: jax.tree.map(jnp.asarray, tree), params)
    return jax.eval_shape(exchanged, jax.random.key(0), params, data)


def _bytes_of_wire(name: str, wire: Any) -> int:
    """Of shapes, or of bits that are rounded up."""
    if isinstance(wire, (int, np.integer)) and not isinstance(wire, bool) and wire >= 0:
        return -(-int(wire) // 8)
    if not all(hasattr(x, "shape") and hasattr(x, "dtype") for x in jax.tree.leaves(wire)):
        raise ValueError(
            f"{name} must return arrays or their shapes, or a whole number of bits, at least 0; "
            f"got {wire!r}"
        )
    return num_bytes(wire)
