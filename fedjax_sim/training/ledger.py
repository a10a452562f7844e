"""The counts of a round's local work: steps and examples, exact beyond 32 bits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from fedjax_sim.core.checks import INT32_MAX
from fedjax_sim.core.counts import capped, carried, exact, total
from fedjax_sim.core.local_training import digits_seen, num_seen
from fedjax_sim.core.types import Array, LocalTraining
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.client import max_num_blocks


class LocalWork(NamedTuple):
    """The local work of one exchange.

    Attributes:
      local: E and B.
      steps: Int[m], local steps of each slot.
      lane_steps: Int[] or UInt32[4], as a strategy counted them.
    """

    local: LocalTraining
    steps: Array
    lane_steps: Array


def local_work(
    exchanged: Sequence[LocalWork], data: FederatedData, client_ids: Array
) -> dict[str, Any]:
    """The fields of `RoundMetrics` that count local work, of all exchanges together.

    A count is in 32 bits if, by the shapes alone, no cohort can exceed them.

    Args:
      exchanged: one or more.
      client_ids: Int[m].
    """
    slots, sizes = client_ids.shape[0], data.num_examples[client_ids]
    most_steps = sum(x.local.epochs * max_num_blocks(x.local, data) for x in exchanged)
    most_examples = sum(x.local.epochs * data.max_num_examples for x in exchanged)
    digits = {}
    if slots * most_steps > INT32_MAX:
        digits["client_steps"] = _added([total(exact(x.steps)) for x in exchanged])
    if slots * most_examples > INT32_MAX:
        digits["examples"] = _added(
            [total(digits_seen(x.local, sizes, x.steps)) for x in exchanged]
        )
    if len(exchanged) > 1 or jnp.ndim(exchanged[0].lane_steps):
        counts = [x.lane_steps for x in exchanged]
        exactly = [x if jnp.ndim(x) else exact(x) for x in counts]
        digits["lane_steps"] = carried(sum(exactly[1:], exactly[0]))
    fields: dict[str, Any] = {name: capped(x) for name, x in digits.items()}
    if "client_steps" not in fields:
        steps = [jnp.sum(x.steps, dtype=jnp.int32) for x in exchanged]
        fields["client_steps"] = sum(steps[1:], steps[0])
    if "examples" not in fields:
        examples_seen = [
            jnp.sum(num_seen(x.local, sizes, x.steps), dtype=jnp.int32) for x in exchanged
        ]
        fields["examples"] = sum(examples_seen[1:], examples_seen[0])
    fields.setdefault("lane_steps", exchanged[0].lane_steps)
    return {**fields, "digits": digits or ()}


def _added(counts: Sequence[Array]) -> Array:
    """UInt32[4], the sum of a few of them."""
    return counts[0] if len(counts) == 1 else carried(sum(counts[1:], counts[0]))
