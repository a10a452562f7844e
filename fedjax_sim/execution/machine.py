"""The cores, caches and memory of the machine, and the bytes that clients need."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_sim.core.checks import is_concrete
from fedjax_sim.core.trees import num_bytes, shapes_with
from fedjax_sim.core.types import Array, LocalTraining, PyTree
from fedjax_sim.core.words import gibibytes
from fedjax_sim.data import FederatedData, Source
from fedjax_sim.execution.cgroup import allowed_cores, free_bytes
from fedjax_sim.execution.client import Engine, block_size

_CACHE = 2**20  # bytes of a core's cache, where the machine does not say
DEVICE_BYTES = 2**31  # for the models of clients in training on an accelerator; not measured


def num_cores() -> int:
    """The cores that this process may use: its affinity, and at most its container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    available = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, int(min(available, allowed_cores())))


def platform_of(engine: Engine) -> str:
    """The platform of the devices that will run the engine's clients: "cpu", "gpu" or "tpu".

    It is that of the mesh, or of the federation's arrays if they are concrete, or else of the
    device that JAX puts new arrays on.
    """
    if engine.platform is not None:
        return engine.platform
    for x in jax.tree.leaves(engine.data):
        if isinstance(x, jax.Array) and is_concrete(x):
            return next(iter(x.devices())).platform
    # JAX defines its configuration's names at run time, which its types do not list.
    default: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
    if default is None:
        return jax.default_backend()
    return default if isinstance(default, str) else default.platform


def own_devices(mesh: Mesh) -> list[Any]:
    """Those of a mesh that are this process's, in the mesh's order.

    Raises:
      ValueError: if there is none.
    """
    me = jax.process_index()
    mine = [device for device in mesh.devices.flat if device.process_index == me]
    if not mine:
        others = sorted({device.process_index for device in mesh.devices.flat})
        raise ValueError(
            f"mesh must have a device of the process that uses it, which is process {me}; got "
            f"devices of {', '.join(f'process {index}' for index in others)}"
        )
    return mine


def cache_bytes() -> int:
    """The size of a core's second-level cache by Linux; 1 MiB on other systems."""
    try:
        folder = Path("/sys/devices/system/cpu/cpu0/cache/index2")
        size = (folder / "size").read_text().strip()
        return int(size.removesuffix("K")) * 2**10
    except (OSError, ValueError):
        return _CACHE


def free_memory(devices: Sequence[Any]) -> float:
    """The free bytes of these devices, by the devices themselves or by Linux; 4 GiB elsewhere.

    Each accelerator is given the same amount of data, so that they hold together as many times the
    free memory of the fullest one. The devices of a CPU share its memory, of which a container may
    use less.
    """
    memories = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in memory for memory in memories):
        left = min(memory["bytes_limit"] - memory.get("bytes_in_use", 0) for memory in memories)
        return float(len(devices) * left)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (line,) = [x for x in lines if x.startswith("MemAvailable:")]
        free = float(line.split()[1]) * 1024
    except (OSError, ValueError):
        free = 4.0 * 2**30
    return min(free, free_bytes())


def loaded(source: Source, name: str, because: str) -> FederatedData:
    """A source's federation in memory, which it keeps.

    Args:
      name: of the argument, for the message.
      because: why it must be in memory.

    Raises:
      ValueError: if it does not fit, with the figures.
    """
    if "in_memory" not in vars(source):
        needed, free = 2 * source.nbytes, free_memory(jax.local_devices())  # while it is loaded
        if needed > free:
            raise ValueError(
                f"{name} must fit in memory, because {because}; to load this source takes "
                f"{needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free"
            )
    return source.in_memory


def block_bytes(local: LocalTraining, data: FederatedData) -> int:
    """Bytes of one block of examples."""
    return block_size(local, data) * num_bytes(shapes_with(data.examples))


def update_bytes(engine: Engine, client_states: PyTree) -> int:
    """Bytes of one client's update."""

    def update(client_id: Array, client_states: PyTree) -> PyTree:
        client, state = engine.client(client_id), jax.tree.map(lambda x: x[0], client_states)
        carry = engine.start(client, state)
        return engine.finish(client, carry, state, jnp.int32(1)).update

    return num_bytes(jax.eval_shape(update, jnp.int32(0), client_states))


def check_updates_fit(engine: Engine, client_states: PyTree, slots: int, mesh: Mesh | None) -> None:
    """Refuses a rule or an attack that sees all updates at once where they exceed the memory.

    Every device of a mesh holds those of the whole cohort; looked at are those of this process.

    Raises:
      ValueError: with the bytes that are needed and those that are free.
    """
    devices = jax.local_devices(backend=platform_of(engine))[:1]
    if mesh is not None:
        devices = own_devices(mesh)
    size = update_bytes(engine, client_states)
    needed, free = len(devices) * slots * size, free_memory(devices)
    if needed > free:
        raise ValueError(
            f"aggregation or attack sees all updates at once, which takes {gibibytes(needed)}: "
            f"m = {slots} updates of {size} bytes on {len(devices)} device(s); "
            f"{gibibytes(free)} are free. Take a smaller cohort, or a rule that only averages, "
            "without an attack"
        )


def carry_bytes(engine: Engine, client_states: PyTree) -> int:
    """Bytes of one client in training: its model and its optimizer's state."""

    def start(client_id: Array, client_states: PyTree) -> PyTree:
        first_state = jax.tree.map(lambda x: x[0], client_states)
        return engine.start(engine.client(client_id), first_state)

    return num_bytes(jax.eval_shape(start, jnp.int32(0), client_states))
