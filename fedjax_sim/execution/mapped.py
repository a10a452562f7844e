"""A function of numbers, one after the other, or dealt over the devices of a mesh."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_sim.core.plain import is_plain
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.execution.placing import client_axis


def map_over_devices(
    of_number: Callable[[Array], PyTree],
    numbers: Array,
    mesh: Mesh | None = None,
    batch_size: int | None = None,
) -> PyTree:
    """`of_number` of each, leaves [n, ...], as `jax.lax.map`; with a mesh each device does a part.

    The results are the same, and on all devices.

    Args:
      numbers: Int[n], at least one.
      mesh: whose client axis the numbers are dealt over, ceil(n / D) in a row to each of D devices.
      batch_size: numbers side by side on a device; None for one.
    """
    if mesh is None or is_plain():
        return jax.lax.map(of_number, numbers, batch_size=batch_size)
    axis = client_axis(mesh)
    devices, count = mesh.shape[axis], len(numbers)
    # The last devices repeat the last number where the others leave them none.
    places = jnp.minimum(jnp.arange(-(-count // devices) * devices), count - 1)

    def own_share(numbers: Array) -> PyTree:
        values = jax.lax.map(of_number, numbers, batch_size=batch_size)
        return jax.tree.map(lambda x: jax.lax.all_gather(x, axis, tiled=True), values)

    dealt = jax.shard_map(
        own_share,
        mesh=mesh,
        in_specs=PartitionSpec(axis),
        out_specs=PartitionSpec(),
        # The check does not know that what is gathered is the same on all devices.
        check_vma=False,
    )
    return jax.tree.map(lambda x: x[:count], dealt(numbers[places]))
