"""A function of numbers, one after the other, or dealt over the devices of a mesh."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_sim.core.plain import is_plain
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.execution.placing import client_axis


def map_over_devices(
    function: Callable[..., PyTree],
    numbers: Array,
    operands: tuple[PyTree, ...],
    mesh: Mesh | None = None,
    batch_size: int | None = None,
) -> PyTree:
    """`function(number, *operands)` of each, leaves [n, ...]; with a mesh each device does a part.

    The results are the same, and on all devices.

    Args:
      function: of what lies on the mesh it is given all as operands, and closes over none, because
        on a device the arrays of a mesh have another type.
      numbers: Int[n], at least one.
      mesh: whose client axis the numbers are dealt over, ceil(n / D) in a row to each of D devices.
      batch_size: numbers side by side on a device; None for one.
    """

    def mapped(numbers: Array, operands: tuple[PyTree, ...]) -> PyTree:
        return jax.lax.map(lambda n: function(n, *operands), numbers, batch_size=batch_size)

    if mesh is None or is_plain():
        return mapped(numbers, operands)
    axis = client_axis(mesh)
    devices, count = mesh.shape[axis], len(numbers)
    # The last devices repeat the last number where the others leave them none.
    places = jnp.minimum(jnp.arange(-(-count // devices) * devices), count - 1)

    def own_share(numbers: Array, operands: tuple[PyTree, ...]) -> PyTree:
        values = mapped(numbers, operands)
        return jax.tree.map(lambda x: jax.lax.all_gather(x, axis, tiled=True), values)

    dealt = jax.shard_map(
        own_share,
        mesh=mesh,
        in_specs=(PartitionSpec(axis), PartitionSpec()),
        out_specs=PartitionSpec(),
        # The check does not know that what is gathered is the same on all devices.
        check_vma=False,
    )
    return jax.tree.map(lambda x: x[:count], dealt(numbers[places], operands))
