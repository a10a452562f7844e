"""The strategy that is chosen by shapes alone."""

from dataclasses import dataclass

from fedjax_sim.core.registry import declare
from fedjax_sim.core.tasks import Executed, Options, Tasks
from fedjax_sim.core.types import PyTree
from fedjax_sim.execution.client import Engine
from fedjax_sim.execution.machine import (
    DEVICE_BYTES,
    block_bytes,
    cache_bytes,
    carry_bytes,
    platform_of,
)
from fedjax_sim.execution.packed import packed
from fedjax_sim.execution.strategy import Strategy
from fedjax_sim.execution.vmapped import vmapped

# So many times a core's cache may hold the models for `vmapped`. With a cache of 512 KiB, `vmapped`
# was 1.08 times as fast as `packed` for models of 1.5 MiB in all, 0.94 times for 1.9 MiB, and 0.86
# times for models of 1.5 MiB with blocks of 9 MiB.
_CACHES = 3


@declare("what the shapes suggest", is_default=True)
def automatic() -> "Automatic":
    """`vmapped` for equal clients of a small model, else `packed`; `make_round`'s default.

    `vmapped` if all clients of the federation have the same number of examples and the
    cohort's models fit together, on a CPU three times a core's cache, as its blocks must, too,
    elsewhere 2 GiB; `packed()` otherwise.
    Only shapes are seen, and not a mask: for a cohort of K slots of which few report, which
    `vmapped` would train all, ask for `packed()` by name.
    """
    return Automatic()


@dataclass(frozen=True)
class Automatic(Strategy):
    """See `automatic`."""

    def chosen(self, engine: Engine, client_states: PyTree, slots: int) -> Strategy:
        """`vmapped` or `packed`, for a device that is given so many slots."""
        data = engine.data
        equal = data.total_num_examples == data.num_clients * data.max_num_examples
        if not equal:
            return packed()
        largest, room = carry_bytes(engine, client_states), DEVICE_BYTES
        if platform_of(engine) == "cpu":
            largest = max(largest, block_bytes(engine.exchange.local, data))
            room = _CACHES * cache_bytes()
        return vmapped() if slots * largest <= room else packed()

    def side_by_side(self, engine: Engine, client_states: PyTree, slots: int) -> int:
        """Those of the strategy that it chooses."""
        return self.chosen(engine, client_states, slots).side_by_side(engine, client_states, slots)

    def __call__(
        self, engine: Engine, client_states: PyTree, tasks: Tasks, options: Options
    ) -> Executed:
        strategy = self.chosen(engine, client_states, tasks.client_ids.shape[0])
        return strategy(engine, client_states, tasks, options)
