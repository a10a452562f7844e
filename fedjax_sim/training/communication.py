"""Bytes down and up, exactly."""

import math

import jax
import jax.numpy as jnp

from fedjax_sim.core.history import Communication
from fedjax_sim.core.types import Array, FederatedAlgorithm, Params, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.client import Engine


def communication(
    algorithm: FederatedAlgorithm, params: Params, data: FederatedData
) -> Communication:
    """What one client is sent and sends back in a round, in bytes; computes nothing.

    `down = bytes(message)`, `up = bytes(update) + bytes(total)`, of an algorithm with several
    exchanges in a round those of all of them; `.total(metrics)` or
    `.total(history.rounds)` then gives the bytes of a round or a run.

    >>> import fedjax_sim as fs, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones((3, 2))}])
    >>> loss_fn = lambda w, batch, key: batch["x"] @ w
    >>> fs.communication(fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining()), jnp.ones(2), data)
    Communication(down=8, up=8)
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

    # Arrays, numbers or their shapes alike.
    params = jax.eval_shape(lambda tree: jax.tree.map(jnp.asarray, tree), params)
    down, up = jax.eval_shape(exchanged, jax.random.key(0), params, data)
    return Communication(_bytes(down), _bytes(up))


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
