"""The strategy that shapes alone suggest."""

from dataclasses import dataclass

import jax

from fedjax_sim.core.types import Array, Executed, FederatedAlgorithm, PyTree, Tasks
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.client import Engine
from fedjax_sim.execution.machine import DEVICE_BYTES, block_bytes, cache_bytes, carry_bytes
from fedjax_sim.execution.packed import Packed, packed
from fedjax_sim.execution.vmapped import Vmapped, vmapped

# Of a core's cache of 512 KiB: `vmapped` was 1.08 times as fast as `packed` with models of 1.5 MiB
# in all, 0.94 times with 1.9, and 0.86 times with models of 1.5 MiB and blocks of 9.
_CACHES = 3


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
class Automatic:
    """See `automatic`."""

    def choose(
        self,
        algorithm: FederatedAlgorithm,
        data: FederatedData,
        key: Array,
        message: PyTree,
        client_states: PyTree,
        slots: int,
    ) -> Vmapped | Packed:
        """The strategy it stands for where a device is given so many slots."""
        equal = data.total_num_examples == data.num_clients * data.max_num_examples
        if not equal:
            return packed()
        carry = carry_bytes(Engine(algorithm, data, key, message), client_states)
        if jax.default_backend() == "cpu":
            largest, room = max(carry, block_bytes(algorithm.local, data)), _CACHES * cache_bytes()
        else:
            largest, room = carry, DEVICE_BYTES
        return vmapped() if slots * largest <= room else packed()

    def __call__(
        self,
        algorithm: FederatedAlgorithm,
        data: FederatedData,
        key: Array,
        message: PyTree,
        client_states: PyTree,
        tasks: Tasks,
        drop_nonfinite: bool,
    ) -> Executed:
        slots = tasks.client_ids.shape[0]
        strategy = self.choose(algorithm, data, key, message, client_states, slots)
        return strategy(algorithm, data, key, message, client_states, tasks, drop_nonfinite)
