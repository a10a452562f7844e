"""The intermediate values of a round, and its metrics."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from fedjax_sim.core.history import RoundMetrics
from fedjax_sim.core.tasks import Executed
from fedjax_sim.core.trees import first_of_each, global_norm
from fedjax_sim.core.types import (
    Array,
    Coefficients,
    Cohort,
    FederatedAlgorithm,
    LocalTraining,
    Metrics,
    PyTree,
    RoundContext,
)
from fedjax_sim.data import FederatedData
from fedjax_sim.training.ledger import LocalWork, local_work


class Slots(NamedTuple):
    """The slots of a round: which clients take part, and how many steps they take.

    Attributes:
      cohort: as arrays; its `reports` are the slots that complete a step.
      ids: Int[m], in [0, K).
      was_sent: Bool[m], whether the client was sent the model.
      answers: Bool[m], whether it was and is no dropout, also with nothing to send.
      steps: Int[m], local steps of the last exchange; 0 for who does not report.
      local: of the last exchange, by which these steps were counted.
      client_weights: Float[m], of the federation.
    """

    cohort: Cohort
    ids: Array
    was_sent: Array
    answers: Array
    steps: Array
    local: LocalTraining
    client_weights: Array


class Average(NamedTuple):
    """The average of a round's updates.

    Attributes:
      update: of one client's structure, in float32 or better.
      empty: Bool[], whether nothing was aggregated.
      context: further values for the server's update.
    """

    update: PyTree
    empty: Array
    context: RoundContext


class Exchanged(NamedTuple):
    """The results of one exchange of a round; `steps` are Int[m], its local steps."""

    steps: Array
    executed: Executed
    average: Average


def is_empty(exchanged: Sequence[Exchanged]) -> Array:
    """Bool[], whether any exchange aggregated nothing."""
    empty = exchanged[0].average.empty
    for later in exchanged[1:]:
        empty |= later.average.empty
    return empty


def round_metrics(
    algorithm: FederatedAlgorithm,
    data: FederatedData,
    slots: Slots,
    coefficients: Coefficients,
    exchanged: Sequence[Exchanged],
    seconds: Array | tuple[()] = (),
) -> RoundMetrics:
    """The metrics of a round: of training by its last exchange, of work by all exchanges."""
    _, executed, average = exchanged[-1]
    sent, receivers, empty = slots.steps > 0, coefficients.num_receivers, is_empty(exchanged)
    if algorithm.to_all:
        receivers = jnp.int32(data.num_clients)
    finite = executed.finite
    for earlier in exchanged[:-1]:
        finite &= earlier.executed.finite
    work = [
        LocalWork(exchange.local, steps, executed.lane_steps)
        for exchange, (steps, executed, _) in zip(algorithm.exchanges, exchanged, strict=True)
    ]
    weight_counted = jnp.sum(jnp.where(executed.counted, slots.client_weights, 0))
    return RoundMetrics(
        train=means(executed.metrics),
        receivers=_count_distinct(slots.ids, slots.was_sent) if receivers is None else receivers,
        senders=_count_distinct(slots.ids, sent),
        reporting=average.context.num_reporting,
        nonfinite=jnp.sum(sent & ~finite, dtype=jnp.int32),
        update_norm=jnp.where(empty, jnp.nan, global_norm(average.update)),
        reporting_share=weight_counted / jnp.sum(data.client_weights),
        empty=empty,
        seconds=seconds,
        **local_work(work, data, slots.ids),
    )


def means(metrics: Metrics) -> dict[str, Array]:
    """Sums divided by their counts; NaN where nothing was counted."""
    return {
        name: jnp.where(count > 0, total / jnp.where(count > 0, count, 1), jnp.nan)
        for name, (total, count) in metrics.items()
    }


def _count_distinct(ids: Array, mask: Array) -> Array:
    """The number of different clients under the mask; one drawn twice counts once."""
    return jnp.sum(first_of_each(ids, mask), dtype=jnp.int32)
