"""The tasks that a round gives to an execution strategy, and the result that it gets back."""

from collections.abc import Callable
from typing import NamedTuple

from fedjax_sim.core.types import Array, Metrics, PyTree


class Tasks(NamedTuple):
    """The work of each slot of a round. A slot with `num_steps` 0 has none.

    Attributes:
      client_ids: Int[m], in [0, K).
      num_steps: Int[m].
      weights: Float[m], a_k, all of them times one power of two.
      shares: Float[m], p_k.
    """

    client_ids: Array
    num_steps: Array
    weights: Array
    shares: Array


class Executed(NamedTuple):
    """What an execution strategy returns.

    Attributes:
      update: sum of a_k update_k over the counted tasks, at least float32.
      total: sum of p_k total_k over the counted tasks.
      client_states: leaves [m, ...], read where counted.
      metrics: {name: (sum, count)}, summed over the counted tasks.
      counted: Bool[m], did at least one step and (if dropping) is finite.
      finite: Bool[m], update, total and new state hold no NaN and no infinity.
      lane_steps: Int[], local steps computed, those that nobody reads too; where they may exceed
        32 bits, UInt32[4], its digits of base 2^16, the lowest first.
      updates: the tasks' own, leaves [m, ...] in their own dtype, read where counted; () unless
        `Options.keep_updates` asks for them.
    """

    update: PyTree
    total: PyTree
    client_states: PyTree
    metrics: Metrics
    counted: Array
    finite: Array
    lane_steps: Array
    updates: PyTree = ()


class Options(NamedTuple):
    """What a round asks of a strategy beside the sums.

    Attributes:
      drop_nonfinite: a task whose update, total or new state is not finite does not count.
      keep_updates: `Executed.updates` has every task's own update.
    """

    drop_nonfinite: bool = False
    keep_updates: bool = False


# (updates [m, ...], malicious [m], counted [m], key [m]) -> updates. What malicious clients send:
# the result is read of theirs, and of no other's. Updates are zeros where `counted` is False. Keys
# differ by run, round and client, so that no client's draw depends on its slot.
Attack = Callable[[PyTree, Array, Array, Array], PyTree]

# The arguments that an execution strategy is called with, by position.
STRATEGY = ("engine", "client_states", "tasks", "options")
