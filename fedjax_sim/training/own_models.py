"""What clients' own models are, and what is measured of some clients' on their examples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_sim.core.checks import has_values
from fedjax_sim.core.client_states import states_of
from fedjax_sim.core.loss import check_metric, per_example, totals
from fedjax_sim.core.randomness import FINE_TUNING, stream
from fedjax_sim.core.types import (
    Array,
    FederatedAlgorithm,
    FederatedState,
    LocalTraining,
    LossFn,
    Metrics,
    Params,
    PyTree,
    no_probe,
)
from fedjax_sim.data import FederatedData, Source, check_data, check_whole
from fedjax_sim.execution.client import Engine
from fedjax_sim.execution.mapped import map_over_devices
from fedjax_sim.training.evaluation import Evaluation, ratio_rounded_once
from fedjax_sim.training.fine_tuning import FineTuning, check_fine_tuning, fine_tuned


class Measures(NamedTuple):
    """The arguments of `fs.evaluate_clients` that say what is measured.

    Attributes:
      fine_tune: as `check_measured` returns it.
    """

    metric_fn: LossFn
    algorithm: FederatedAlgorithm
    fine_tune: FineTuning | None
    unseen: bool
    key: Array
    batch_size: int
    lanes: int
    mesh: Mesh | None

    def sums(
        self, state: FederatedState, data: FederatedData, test: FederatedData, ids: Array
    ) -> list[Metrics]:
        """Sums and counts of each client, [c], of its model, and of the one that is fine-tuned."""
        passes = self.algorithm.exchanges[-1]
        passes = passes._replace(local=LocalTraining(1, self.batch_size, shuffle=False))
        unused_key = jax.random.key(0)  # nothing is drawn in a pass in storage order

        def of_block(params: Params, batch: PyTree, mask: Array) -> Metrics:
            return totals(per_example(self.metric_fn, params, batch, None, "metric_fn"), mask)

        def measure(
            client_id: Array,
            state: FederatedState,
            data: FederatedData,
            test: FederatedData,
            key: Array,
        ) -> list[Metrics]:
            models = [own_model(self.algorithm, state, data, client_id, self.unseen)]
            if self.fine_tune is not None:
                own_key = stream(key, FINE_TUNING)
                models.append(fine_tuned(self.fine_tune, data, own_key, models[0], client_id))
            engine = Engine(passes, test, unused_key, ())
            client = engine.client(client_id)
            return [
                engine.sum_over_blocks(partial(of_block, params), client, dynamic=True)
                for params in models
            ]

        lanes = None if self.lanes == 1 else self.lanes
        return map_over_devices(measure, ids, (state, data, test, self.key), self.mesh, lanes)


def check_measured(
    metric_fn: LossFn,
    algorithm: FederatedAlgorithm,
    state: FederatedState,
    data: FederatedData,
    test: FederatedData,
    *,
    name: str,
    fine_tune: FineTuning | None,
    unseen: bool,
    is_read: bool = False,
) -> FineTuning | None:
    """Refuses a metric or a fine-tuning that do not fit; the latter with its defaults filled in.

    Args:
      name: of the argument that has the examples of `test`.
      is_read: `data` is a window that holds all clients that are measured with it.

    Raises:
      ValueError: naming what is wrong.
    """
    model_shapes = jax.eval_shape(lambda: own_model(algorithm, state, data, jnp.int32(0), unseen))
    check_metric(metric_fn, model_shapes, test.examples, None, name)
    if fine_tune is None:
        return None
    if not is_read:
        check_whole(data, "data")
    return check_fine_tuning(fine_tune, metric_fn, model_shapes, data)


def means(sums: Metrics) -> Evaluation:
    """Of sums and counts by client, [c] each."""

    def mean(total: Array, count: Array) -> Array:
        return jnp.where(
            count > 0, ratio_rounded_once(total, jnp.where(count > 0, count, 1)), jnp.nan
        )

    return Evaluation(
        mean={name: mean(jnp.sum(total), jnp.sum(n)) for name, (total, n) in sums.items()},
        clients={name: mean(total, n) for name, (total, n) in sums.items()},
    )


def probe_of(algorithm: FederatedAlgorithm) -> Callable[..., PyTree] | None:
    """What is summed over a client's training examples to know its own model."""
    probe = algorithm.personal_probe or algorithm.client.probe
    return None if probe is no_probe else probe


def own_model(
    algorithm: FederatedAlgorithm,
    state: FederatedState,
    data: FederatedData,
    client_id: Array,
    unseen: bool = False,
) -> Params:
    """The model that one client uses itself; of one that the state does not know, the first."""
    if algorithm.personal is None:
        return state.params
    message = algorithm.broadcast(state.server, state.round)
    exchange = algorithm.exchanges[-1]
    exchange = exchange._replace(client=exchange.client._replace(probe=probe_of(algorithm)))
    # A probe draws nothing, so that the key does not matter.
    engine = Engine(exchange, data, jax.random.key(0), message)
    if unseen:
        client_state = algorithm.init_client(state.params)
    else:
        client_state = states_of(state.clients, client_id)
    probed = engine.probed(engine.client(client_id), client_state, dynamic=True)
    return algorithm.personal(state.server, client_state, probed)


def check_same_clients(data: FederatedData | Source, test: FederatedData | Source) -> None:
    """Refuses a test set of other clients.

    Raises:
      ValueError: saying how they differ.
    """
    if not isinstance(test, Source):
        check_data(test)
    if test.num_clients != data.num_clients:
        raise ValueError(
            f"test must be of the {data.num_clients} clients of data, in the same places; got "
            f"{test.num_clients} (FederatedData.from_arrays takes num_clients, for clients without "
            "an example)"
        )
    if None in (data.client_names, test.client_names) or data.client_names == test.client_names:
        return
    pairs = zip(data.client_names or (), test.client_names or (), strict=True)
    ours, theirs = next(pair for pair in pairs if pair[0] != pair[1])
    raise ValueError(
        f"test must have the clients of data in the same places; client {ours!r} of data is in the "
        f"place of {theirs!r}"
    )


def checked_ids(clients: Any | None, num_clients: int) -> Array:
    """Int[c], or a refusal; of traced ids the shape alone."""
    if clients is None:
        return jnp.arange(num_clients, dtype=jnp.int32)
    ids = clients if isinstance(clients, jax.Array) else np.asarray(clients)
    if ids.ndim != 1 or not len(ids) or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"clients must be a list of client ids, or None for all; got {ids.dtype} of shape "
            f"{ids.shape}"
        )
    if has_values(ids):
        values = np.asarray(ids)
        wrong = values[(values < 0) | (values >= num_clients)]
        if len(wrong):
            raise ValueError(f"clients must lie in [0, {num_clients}); got {wrong[0]}")
    return jnp.asarray(ids, jnp.int32)
