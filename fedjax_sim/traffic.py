"""Bytes down and up, exactly."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, FederatedAlgorithm, Params, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.local import Engine


class Communication(NamedTuple):
    """Bytes of one exchange, exact: multiply by `receivers` and `senders` of the metrics."""

    down: int  # bytes of the message, for each receiver
    up: int  # bytes of update and total, for each sender


def communication(
    algorithm: FederatedAlgorithm, params: Params, data: FederatedData
) -> Communication:
    """What one client is sent and sends back in a round, in bytes; computes nothing.

    `down = bytes(message)`, `up = bytes(update) + bytes(total)`. A round's bytes are
    `metrics.receivers * down` and `metrics.senders * up`: multiply in Python or int64.

    >>> import fedjax_sim as fs, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones((3, 2))}])
    >>> loss_fn = lambda w, batch, key: batch["x"] @ w
    >>> fs.communication(fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining()), jnp.ones(2), data)
    Communication(down=8, up=8)
    """

    def exchange(key: Array, params: Params, data: FederatedData) -> tuple[PyTree, PyTree]:
        message = algorithm.broadcast(algorithm.init(params), jnp.zeros((), jnp.int32))
        engine = Engine(algorithm, data, key, message)
        client, state = engine.client(jnp.zeros((), jnp.int32)), algorithm.init_client(params)
        output = engine.finish(client, engine.start(client, state), state, jnp.ones((), jnp.int32))
        return message, (output.update, output.total)

    params = jax.tree.map(jnp.asarray, params)
    down, up = jax.eval_shape(exchange, jax.random.key(0), params, data)
    return Communication(_bytes(down), _bytes(up))


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
