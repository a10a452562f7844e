"""The least time a round can take, and the best that lanes can do."""

import heapq
from typing import Any

import numpy as np

from benchmarks.jobs import Job

# Weights, gradient and activations of one client stay in a core's cache below this; above it a
# step reads and writes the weights from memory.
CACHE = 32 * 2**20


def seconds(job: Job, steps: int, ceilings: dict[str, Any]) -> float:
    """S steps: at the matmul peak, or at the bandwidth where the weights fall out of cache."""
    compute = steps * job.flops() / ceilings["matmul"]
    traffic = 8 * job.num_params()
    return max(compute, steps * traffic / ceilings["bandwidth"] if traffic > CACHE else 0)


def longest_first(steps: np.ndarray, lanes: int) -> float:
    """Share of useful lane-steps when each lane takes the longest client left."""
    loads = [0] * lanes
    for work in sorted(steps.tolist(), reverse=True):
        heapq.heappush(loads, heapq.heappop(loads) + work)
    return float(steps.sum() / (lanes * max(loads)))
