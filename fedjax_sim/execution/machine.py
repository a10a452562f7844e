"""What is known of the machine that a program is compiled for."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.types import Array, LocalTraining, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.client import Engine, block_size

_CACHE = 2**20  # bytes, where the machine does not say
DEVICE_BYTES = 2**31  # of an accelerator, for the models of clients in training; not measured


def num_cores() -> int:
    """Cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cache_bytes() -> int:
    """Of a core's own second-level cache, as Linux tells; 1 MiB elsewhere."""
    try:
        folder = Path("/sys/devices/system/cpu/cpu0/cache/index2")
        size = (folder / "size").read_text().strip()
        return int(size.removesuffix("K")) * 2**10
    except (OSError, ValueError):
        return _CACHE


def free_memory(devices: Sequence[Any]) -> float:
    """Bytes that can be had on these devices, as they or Linux tell; 4 GiB elsewhere.

    Accelerators are dealt the same each, so they hold together as many times what the fullest
    of them has left. The devices of a CPU share its memory.
    """
    memories = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in memory for memory in memories):
        left = min(memory["bytes_limit"] - memory.get("bytes_in_use", 0) for memory in memories)
        return float(len(devices) * left)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (line,) = [x for x in lines if x.startswith("MemAvailable:")]
        return float(line.split()[1]) * 1024
    except (OSError, ValueError):
        return 4 * 2**30


def block_bytes(local: LocalTraining, data: FederatedData) -> int:
    """Of one block of examples."""
    leaves = jax.tree.leaves(data.examples)
    example = sum(x.size // x.shape[0] * x.dtype.itemsize for x in leaves)
    return block_size(local, data) * example


def carry_bytes(engine: Engine, client_states: PyTree) -> int:
    """Of one client in training: its model and its optimizer's state."""

    def start(client_id: Array, client_states: PyTree) -> PyTree:
        one = jax.tree.map(lambda x: x[0], client_states)
        return engine.start(engine.client(client_id), one)

    carry = jax.eval_shape(start, jnp.int32(0), client_states)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(carry))
