"""Metrics of K models, one for each client."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.baselines.local_only import local_models
from fedjax_sim.core.checks import check_count, check_takes
from fedjax_sim.core.loss import check_metric, per_example, totals
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.sums import add_to, zero_sum
from fedjax_sim.core.trees import shapes_with
from fedjax_sim.core.types import Array, FederatedState, LossFn, Metrics, Params
from fedjax_sim.data import FederatedData, check_data, check_whole
from fedjax_sim.training.evaluation import ClientStatistics, client_statistics, evaluate


class LocalEvaluation(NamedTuple):
    """Metrics of K models, each by name ("loss" and what the metric function names).

    Attributes:
      test: name -> Float[K], the mean of each client's model over the test set; {} without one.
      clients: name -> Float[K], over its own examples, NaN if it has none; {} without them.
      statistics: "test_NAME" and "clients_NAME" -> how those spread over the clients.
    """

    test: dict[str, Array]
    clients: dict[str, Array]
    statistics: dict[str, ClientStatistics]

    def __repr__(self) -> str:
        return fields_of(self)


def evaluate_local(
    metric_fn: LossFn,
    models: FederatedState | Params,
    test: FederatedData | None = None,
    clients: FederatedData | None = None,
    *,
    lower_is_better: tuple[str, ...] = ("loss",),
    batch_size: int = 1024,
) -> LocalEvaluation:
    """Each client's own model on a test set and on its own examples, in one compiled call.

    One client at a time, `batch_size` examples at a time: memory is that of one evaluation.

    Args:
      metric_fn: as `loss_fn`: (params, batch, key) -> losses[B], or
        (losses[B], {name: values[B]}); its key is None.
      models: a state of `local_only`, or params with leaves [K, ...].
      test: a test set, `fs.FederatedData.from_clients([test])`.
      clients: a federation of K clients: those trained on, or what each held back.
      lower_is_better: metrics of which the highest are the worst.
      batch_size: examples at a time.

    Returns:
      Its statistics weigh clients by `clients.client_weights` and leave those without examples
      out; without `clients`, all K count alike.

    Raises:
      ValueError: without test and clients, for another number of clients than of models, or for
        examples that a loss from `fs.models` refuses: a label that is no class of the model.

    >>> import numpy as np
    >>> clients = FederatedData.from_clients([np.array([1.0, 3.0]), np.array([5.0])])
    >>> loss = lambda w, batch, key: batch - w
    >>> evaluation = evaluate_local(loss, jnp.array([0.0, 4.0]), clients=clients)
    >>> evaluation.clients["loss"].tolist(), float(evaluation.statistics["clients_loss"].mean)
    ([2.0, 1.0], 1.5)
    """
    if test is None and clients is None:
        raise ValueError("evaluate_local must be given test, clients or both; got neither")
    batch_size = check_count("batch_size", batch_size)
    check_takes("metric_fn", metric_fn, "params", "batch", "key")
    for name, data in (("test", test), ("clients", clients)):
        if data is not None:
            check_data(data, name)
            check_whole(data, name)
    models = local_models(models) if isinstance(models, FederatedState) else models
    shapes = [jnp.shape(x) for x in jax.tree.leaves(models)]
    number = shapes[0][0] if shapes and shapes[0] else 0
    if not number or any(shape[:1] != (number,) for shape in shapes):
        raise ValueError(f"models must have leaves [K, ...] with one K; got shapes {shapes}")
    if clients is not None and clients.num_clients != number:
        raise ValueError(
            f"clients must be one for each of the {number} models; got {clients.num_clients}"
        )
    one_model = shapes_with(models)
    for name, data in (("test", test), ("clients", clients)):
        if data is not None:
            check_metric(metric_fn, one_model, data.examples, None, name)

    @jax.jit
    def scores(models: Params, test: Any, clients: Any) -> LocalEvaluation:
        def measure(client: tuple[Array, Params]) -> tuple[dict[str, Array], dict[str, Array]]:
            number, params = client
            on_test, on_own = {}, {}
            if test is not None:
                on_test = evaluate(metric_fn, params, test, batch_size=batch_size).mean
            if clients is not None:
                on_own = _on_own(metric_fn, params, clients, number, batch_size)
            return on_test, on_own

        on_test, on_own = jax.lax.map(measure, (jnp.arange(number, dtype=jnp.int32), models))
        has, weights = jnp.ones(number, bool), jnp.ones(number)
        if clients is not None:
            has, weights = clients.num_examples > 0, clients.client_weights
        by_name = {f"test_{k}": v for k, v in on_test.items()}
        by_name |= {f"clients_{k}": v for k, v in on_own.items()}
        statistics = {
            name: client_statistics(
                values, weights, has, higher_is_better=name.split("_", 1)[1] not in lower_is_better
            )
            for name, values in by_name.items()
        }
        return LocalEvaluation(on_test, on_own, statistics)

    return scores(models, test, clients)


def _on_own(
    metric_fn: LossFn, params: Params, clients: FederatedData, number: Array, batch_size: int
) -> dict[str, Array]:
    """Means over one client's examples; NaN if it has none."""
    size = min(batch_size, clients.max_num_examples)
    num_examples, first = clients.num_examples[number], clients.offsets[number]

    def block(i: Array) -> Metrics:
        places = i * size + jnp.arange(size, dtype=jnp.int32)
        mask = places < num_examples
        rows = first + jnp.where(mask, places, 0)
        batch = jax.tree.map(lambda x: x.at[rows].get(mode="clip"), clients.examples)
        return totals(per_example(metric_fn, params, batch, None, "metric_fn"), mask)

    sums = zero_sum(jax.eval_shape(block, jnp.int32(0)))
    sums = jax.lax.fori_loop(0, -(-num_examples // size), lambda i, s: add_to(s, block(i)), sums)
    return {
        name: jnp.where(count > 0, total / jnp.where(count > 0, count, 1), jnp.nan)
        for name, (total, count) in sums.total.items()
    }
