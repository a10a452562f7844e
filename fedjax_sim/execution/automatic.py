"""The strategy that shapes alone suggest."""

from dataclasses import dataclass

import jax

from fedjax_sim.base import Array, Executed, FederatedAlgorithm, PyTree, Tasks
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.machine import cache_bytes, carry_bytes
from fedjax_sim.execution.packed import Packed, packed
from fedjax_sim.execution.vmapped import Vmapped, vmapped
from fedjax_sim.local import Engine


def automatic() -> "Automatic":
    """`vmapped` where nothing is lost by it, else `packed`; what `make_round` takes by default.

    `vmapped` if all clients of the federation have the same number of examples and, on a
    CPU, the cohort's models fit a core's cache together; `packed()` otherwise.
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
        tasks: Tasks,
    ) -> Vmapped | Packed:
        """The strategy it stands for in this round."""
        equal = data.total_num_examples == data.num_clients * data.max_num_examples
        if not equal:
            return packed()
        one = carry_bytes(Engine(algorithm, data, key, message), client_states)
        fits = tasks.client_ids.shape[0] * one <= cache_bytes()
        return vmapped() if fits or jax.default_backend() != "cpu" else packed()

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
        strategy = self.choose(algorithm, data, key, message, client_states, tasks)
        return strategy(algorithm, data, key, message, client_states, tasks, drop_nonfinite)
