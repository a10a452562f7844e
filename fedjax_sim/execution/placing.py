"""Where arrays are put: on all devices of a mesh, of one process or of several."""

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.randomness import is_key
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.execution.machine import num_cores, own_devices

AXIS = "clients"
_PROCESSES = "processes"


def cores(n: int | None = None) -> Mesh:
    """A mesh over n cores of this machine, each made a device of its own.

    Call it before JAX is first used: `jax_num_cpu_devices` cannot change afterwards. Of a JAX of
    several processes it is a mesh of this process's own devices.

    Args:
      n: at most the cores this process may run on; None for all of them, or for those
        that JAX was told to have.

    Raises:
      ValueError: if n < 1 or there are fewer cores, or JAX already runs with fewer CPU
        devices, of None with one and nobody told it so.
    """
    num_devices = make_cores_devices(n)
    with _threads(2 * num_devices):
        devices = jax.local_devices(backend="cpu")[:num_devices]
    # JAX adds its options to its configuration when it is imported, where no type sees them.
    was_told = jax.config.jax_num_cpu_devices > 0  # type: ignore[attr-defined]
    is_one_untold = len(devices) == 1 and not was_told
    if len(devices) < num_devices and (n is not None or is_one_untold):
        cores_text = f"all {num_devices}" if n is None else f"n = {n}"
        raise ValueError(
            f"{cores_text} cores must be asked for before JAX is first used, or by the "
            f"environment: JAX_NUM_CPU_DEVICES={num_devices}; JAX already runs with {len(devices)}"
        )
    return Mesh(np.array(devices), (AXIS,))


def check_mesh(mesh: Mesh) -> None:
    """Refuses what is not a mesh, and a mesh without a client axis.

    Raises:
      ValueError: naming the argument, `mesh`.
    """
    if not isinstance(mesh, Mesh):
        raise ValueError(
            f"mesh must be a jax.sharding.Mesh, as execution.cores() makes; got {mesh!r}"
        )
    if len(mesh.axis_names) != 1 and AXIS not in mesh.axis_names:
        raise ValueError(f'mesh must have one axis, or one named "{AXIS}"; got {mesh.axis_names}')


def check_mesh_or_none(mesh: Mesh | None) -> None:
    """As `check_mesh`, of an argument that may be left out."""
    if mesh is not None:
        check_mesh(mesh)


def client_axis(mesh: Mesh) -> str:
    """The axis of a mesh over which clients are dealt: the one named "clients", or its only one."""
    return AXIS if AXIS in mesh.axis_names else mesh.axis_names[0]


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Within it JAX starts with so many threads for its CPU devices, where NPROC does not say.

    It has one for each core. A thread is held wherever a device waits for the others in a sum; a
    round that is called before the last one is through then finds none, and JAX ends the process.
    """
    if "NPROC" in os.environ:
        yield
        return
    os.environ["NPROC"] = str(number)
    try:
        yield
    finally:
        del os.environ["NPROC"]


def make_cores_devices(n: int | None = None) -> int:
    """Makes n cores devices, or all, without starting JAX; in one that runs it does nothing.

    Returns:
      How many.

    Raises:
      ValueError: if n < 1 or there are fewer cores.
    """
    available = num_cores()
    if n is not None:
        n = check_count("n", n, ", or None for all cores")
        if n > available:
            raise ValueError(f"n must be at most the {available} cores of this machine; got {n}")
    # Once JAX has started it keeps its number of devices and raises RuntimeError.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", n or available)
    return n or available


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """The arrays of `tree` on every device of the mesh; on CPUs all share one copy.

    For a federation and a state used round after round with `sharded`. Left where it is, a
    federation is copied at every call; and a state comes back on the mesh, for which the
    second call is traced and compiled again.

    Of a mesh with devices of several processes, every process calls this with the same arrays and
    places them on its own devices; that they are the same is compared by a checksum.

    Raises:
      ValueError: for what is not a mesh; of a mesh of several processes, if this one has no device
        of it, if an array is dealt over the processes, so that none holds all of it, or if the
        arrays differ between the processes, which all of them then raise.
    """
    if not isinstance(mesh, Mesh):
        raise ValueError(f"replicate takes (tree, mesh), a jax.sharding.Mesh; got {mesh!r:.80}")
    if len(own_devices(mesh)) < mesh.size:
        _check_alike(tree, of_processes(mesh))
    return spread(tree, mesh)


def spread(tree: PyTree, mesh: Mesh) -> PyTree:
    """As `replicate`, of arrays that are known to be the same: no process waits for another."""
    sharding = NamedSharding(mesh, PartitionSpec())
    mine = own_devices(mesh)
    is_whole = len(mine) == mesh.size

    def put(x: Any) -> Array:
        if is_whole and any(d.platform != "cpu" for d in mine):
            return jax.device_put(x, sharding)
        host = _on_host(x)
        parts = [jax.device_put(host, d, may_alias=True) for d in mine]
        return jax.make_array_from_single_device_arrays(host.shape, sharding, parts)

    return _map_bits(put, tree)


def placed(tree: PyTree, sharding: Sharding) -> PyTree:
    """The arrays of `tree` as a sharding has them, each device with memory of its own.

    Where some of its devices are another process's, each process places its own part.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(x: Any) -> Array:
        host = _on_host(x)
        return jax.make_array_from_callback(
            host.shape, sharding, lambda index: np.array(host[index])
        )

    return _map_bits(put, tree)


def own_copy(tree: PyTree, mesh: Mesh) -> PyTree:
    """What `replicate` placed, on the devices of this process alone; nothing is copied."""
    mine = NamedSharding(Mesh(np.array(own_devices(mesh)), (AXIS,)), PartitionSpec())

    def on_own_devices(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        parts = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, mine, parts)

    return _map_bits(on_own_devices, tree)


def _map_bits(place: Callable[[Any], Any], tree: PyTree) -> PyTree:
    """`place` of each array, and of a key's bits, which become a key again."""

    def placed_one(x: Any) -> Any:
        if not is_key(x):
            return place(x)
        return jax.random.wrap_key_data(place(jax.random.key_data(x)), impl=jax.random.key_impl(x))

    return jax.tree.map(placed_one, tree)


def of_processes(mesh: Mesh) -> Mesh:
    """One device of each process that has any of the mesh, in the order of the processes."""
    devices: dict[int, Any] = {}
    for device in mesh.devices.flat:
        devices.setdefault(device.process_index, device)
    return Mesh(np.array([devices[index] for index in sorted(devices)]), (_PROCESSES,))


def gather(x: np.ndarray, processes: Mesh) -> np.ndarray:
    """Array [P, *x.shape] on every process: what each gave.

    A collective: all of them call it with one shape and dtype, between the same two others.

    Args:
      processes: as `of_processes` makes it.
    """
    (mine,) = own_devices(processes)
    part = jax.device_put(x[None], mine)
    dealt = NamedSharding(processes, PartitionSpec(_PROCESSES))
    whole = jax.make_array_from_single_device_arrays((processes.size, *x.shape), dealt, [part])
    return np.asarray(_gatherer(processes)(whole))


@lru_cache
def _gatherer(processes: Mesh) -> Callable[[Array], Array]:
    def everywhere(x: Array) -> Array:
        return x

    return jax.jit(everywhere, out_shardings=NamedSharding(processes, PartitionSpec()))


def _check_alike(tree: PyTree, processes: Mesh) -> None:
    """Refuses arrays that differ between processes, on all of them."""
    leaves = [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(tree)]
    specs, values = 0, 0
    for x in map(_on_host, leaves):
        specs = zlib.crc32(f"{x.dtype}{list(x.shape)}".encode(), specs)
        values = zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data, values)
    checksums = gather(np.array([specs, values], np.uint32), processes)
    for place, (other_specs, other_values) in enumerate(checksums):
        first, index = checksums[0], processes.devices[place].process_index
        if (other_specs, other_values) != (first[0], first[1]):
            differ = "other shapes or dtypes" if other_specs != first[0] else "other values"
            raise ValueError(
                f"tree must be the same on all processes of the mesh; that of process {index} has "
                f"{differ} than that of process {processes.devices[0].process_index}"
            )


def _on_host(x: Any) -> np.ndarray:
    """The values of an array that this process has all of."""
    dealt = isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated
    if dealt:
        raise ValueError(
            "tree must hold arrays that this process has all of; got one of "
            f"{x.dtype}{list(x.shape)} that is dealt over several processes, as {x.sharding}"
        )
    return np.asarray(x)
