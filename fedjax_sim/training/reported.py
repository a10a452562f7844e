"""What is known of a round while it runs, and what is reported of it."""

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
    PyTree,
    RoundContext,
)
from fedjax_sim.data import FederatedData
from fedjax_sim.training.ledger import LocalWork, local_work


class Slots(NamedTuple):
    """Who takes part in a round.

    Attributes:
      cohort: as arrays; its `reports` are the slots that complete a step.
      ids: Int[m], in [0, K).
      given: Bool[m], was given the model.
      steps: Int[m], local steps of the last exchange; 0 for who does not report.
      local: of the last exchange, by which these steps were counted.
      client_weights: Float[m], of the federation.
    """

    cohort: Cohort
    ids: Array
    given: Array
    steps: Array
    local: LocalTraining
    client_weights: Array


class Average(NamedTuple):
    """What the updates come to.

    Attributes:
      update: as one client's, in float32 or better.
      empty: Bool[], nothing was aggregated.
      context: what the server knows beside.
    """

    update: PyTree
    empty: Array
    context: RoundContext


class Exchanged(NamedTuple):
    """One exchange of a round, done: Int[m], its local steps; what came of them."""

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
) -> RoundMetrics:
    """What is reported of the round: of training by its last exchange, of work by all of them."""
    _, executed, average = exchanged[-1]
    sent, receivers, empty = slots.steps > 0, coefficients.num_receivers, is_empty(exchanged)
    finite = executed.finite
    for earlier in exchanged[:-1]:
        finite &= earlier.executed.finite
    work = [
        LocalWork(exchange.local, steps, executed.lane_steps)
        for exchange, (steps, executed, _) in zip(algorithm.exchanges, exchanged, strict=True)
    ]
    weight_counted = jnp.sum(jnp.where(executed.counted, slots.client_weights, 0))
    return RoundMetrics(
        train={
            name: jnp.where(count > 0, total / jnp.where(count > 0, count, 1), jnp.nan)
            for name, (total, count) in executed.metrics.items()
        },
        receivers=_count_distinct(slots.ids, slots.given) if receivers is None else receivers,
        senders=_count_distinct(slots.ids, sent),
        reporting=average.context.num_reporting,
        nonfinite=jnp.sum(sent & ~finite, dtype=jnp.int32),
        update_norm=jnp.where(empty, jnp.nan, global_norm(average.update)),
        reporting_share=weight_counted / jnp.sum(data.client_weights),
        empty=empty,
        **local_work(work, data, slots.ids),
    )


def _count_distinct(ids: Array, mask: Array) -> Array:
    """How many different clients: one drawn twice is one receiver."""
    return jnp.sum(first_of_each(ids, mask), dtype=jnp.int32)
