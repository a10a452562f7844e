"""What a round's local work is counted as: steps and examples, exact beyond 32 bits."""

from typing import Any

import jax.numpy as jnp

from fedjax_sim.core.counts import MOST, capped, carried, exact, total
from fedjax_sim.core.local_training import digits_seen, num_seen
from fedjax_sim.core.types import Array, LocalTraining
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.client import max_num_blocks


def local_work(
    local: LocalTraining,
    data: FederatedData,
    client_ids: Array,
    steps: Array,
    lane_steps: Array,
) -> dict[str, Any]:
    """The fields of `RoundMetrics` that count local work.

    What 32 bits hold whatever the cohort, by the shapes alone, is counted in 32 bits.

    Args:
      client_ids: Int[m].
      steps: Int[m], local steps of each slot.
      lane_steps: Int[] or UInt32[4], as a strategy counted them.
    """
    slots, sizes = client_ids.shape[0], data.num_examples[client_ids]
    digits = {}
    if slots * local.epochs * max_num_blocks(local, data) > MOST:
        digits["client_steps"] = total(exact(steps))
    if slots * local.epochs * data.max_num_examples > MOST:
        digits["examples"] = total(digits_seen(local, sizes, steps))
    if jnp.ndim(lane_steps):
        digits["lane_steps"] = carried(lane_steps)
    fields: dict[str, Any] = {name: capped(x) for name, x in digits.items()}
    if "client_steps" not in fields:
        fields["client_steps"] = jnp.sum(steps, dtype=jnp.int32)
    if "examples" not in fields:
        fields["examples"] = jnp.sum(num_seen(local, sizes, steps), dtype=jnp.int32)
    fields.setdefault("lane_steps", lane_steps)
    return {**fields, "digits": digits or ()}
