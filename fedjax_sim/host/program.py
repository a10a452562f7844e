"""A step as a program: one compiled function that does any number of rounds.

Every chunk of rounds runs the same compiled function. So no result depends on where a run is cut
into chunks, interrupted, or resumed from a checkpoint.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.execution import replicate
from fedjax_sim.execution.placing import placed
from fedjax_sim.host.stopping import NEVER, Stop, check_stop, replay

CAPACITY = 512  # rounds a chunk, at most


class Program(NamedTuple):
    """R rounds, some at a call.

    Attributes:
      num_rounds: R.
      advance: (inputs, carry, remembered, buffers, first, count) -> (carry, remembered, buffers,
        done, stopped); compiled, with carry, remembered and buffers donated.
      remembered: () -> what the stop criterion remembers before round 0.
      buffers: () -> zeros, leaves [..., capacity, ...] with the rounds on `rounds_axis`.
      replay: rows of rounds done -> what the stop criterion remembers after them, and
        Bool[rounds], which of them meet it.
      criterion: its checksum; None without one.
      capacity: rounds of a call, at most.
      rounds_axis: of the buffers: 0, or 1 if axis 0 is over devices.
      memory: bytes that a call needs, without the arrays that the step closes over.
    """

    num_rounds: int
    advance: Callable[..., tuple[PyTree, PyTree, PyTree, Array, Array]]
    remembered: Callable[[], PyTree]
    buffers: Callable[[], PyTree]
    replay: Callable[[PyTree], tuple[PyTree, Array]]
    criterion: str | None
    capacity: int
    rounds_axis: int
    memory: int


class Traced(NamedTuple):
    """A step, traced.

    Attributes:
      step: takes and returns a flat list of arrays; its constants are those that it closes over.
      row: the shapes of a round's outputs.
    """

    step: ClosedJaxpr
    row: PyTree


def trace_step(
    step: Callable[[PyTree, Array, PyTree], tuple[PyTree, PyTree]],
    inputs: PyTree,
    carry: PyTree,
    mesh: Mesh | None = None,
) -> Traced:
    """`step(inputs, round, carry) -> (carry, outputs)`, as `compile_program` takes it.

    Args:
      inputs: read by every step.
      carry: as before round 0.
      mesh: of one axis: leaves of inputs and carry then have a leading axis over its devices,
        each of which does its own.
    """
    inputs, carry = jax.eval_shape(lambda *trees: _own(mesh, trees), inputs, carry)
    closed, (_, row) = jax.make_jaxpr(step, return_shape=True)(inputs, jnp.int32(0), carry)
    return Traced(closed, row)


def _own(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """The part of this device: leaves without their leading axis over the mesh."""
    return tree if mesh is None else jax.tree.map(lambda x: x[0], tree)


def compile_program(
    traced: Traced,
    inputs: PyTree,
    carry: PyTree,
    num_rounds: int,
    mesh: Mesh | None = None,
    stop: Stop | None = None,
    place: Mesh | None = None,
) -> Program:
    """Compiles a step into a program of R rounds.

    Arrays that the step closes over become arguments of the compiled function. As constants, the
    compiler would copy them into it and spend time on folding them.

    Args:
      inputs: as traced; any of the same shapes can be given to `advance`.
      carry: as before round 0, on the devices where it is to be.
      mesh: as traced.
      stop: whether the run ends after a round; allowed only without `mesh`.
      place: a mesh on which step's own arrays are placed, for a step that is itself sharded.
    """
    capacity = min(num_rounds, CAPACITY)

    own_part = partial(_own, mesh)
    criterion = None if stop is None else check_stop(stop, traced.row)
    stop = NEVER if stop is None else stop
    structure = jax.tree.structure((carry, traced.row))
    consts = list(traced.step.consts)
    if (everywhere := mesh or place) is not None:
        consts = replicate(consts, everywhere)

    def call(consts: list[Array], *arguments: PyTree) -> tuple[PyTree, PyTree]:
        flat = jaxpr_as_fun(traced.step.replace(consts=consts))(*jax.tree.leaves(arguments))
        # A constant is returned as a Python bool or number, and ~True of Python is -2.
        return jax.tree.unflatten(structure, [jnp.asarray(x) for x in flat])

    def chunk(
        consts: list[Array],
        inputs: PyTree,
        carry: PyTree,
        remembered: PyTree,
        buffers: PyTree,
        first: Array,
        count: Array,
    ) -> tuple[PyTree, PyTree, PyTree, Array, Array]:
        def body(loop: tuple[Array, Array, PyTree]) -> tuple[Array, Array, PyTree]:
            i, _, (carry, remembered, buffers) = loop
            carry, row = call(consts, inputs, first + i, carry)
            buffers = jax.tree.map(
                lambda b, x: jax.lax.dynamic_update_index_in_dim(b, x, i, 0), buffers, row
            )
            remembered, stopped = stop.update(remembered, row)
            return i + 1, stopped, (carry, remembered, buffers)

        def goes_on(loop: tuple[Array, Array, PyTree]) -> Array:
            return (loop[0] < count) & ~loop[1]

        start = jnp.int32(0), jnp.array(False), (carry, remembered, buffers)
        rounds_done, stopped, (carry, remembered, buffers) = jax.lax.while_loop(
            goes_on, body, start
        )
        return carry, remembered, buffers, rounds_done, stopped

    devices = 1 if mesh is None else mesh.size
    lead = () if mesh is None else (devices,)
    sharding: Any = None
    whole = chunk
    if mesh is not None:
        (axis,) = mesh.axis_names

        def share(
            consts: Any,
            inputs: Any,
            carry: Any,
            remembered: Any,
            buffers: Any,
            first: Any,
            count: Any,
        ) -> Any:
            carry, remembered, buffers, rounds_done, stopped = chunk(
                consts,
                own_part(inputs),
                own_part(carry),
                remembered,
                own_part(buffers),
                first,
                count,
            )
            carry, buffers = jax.tree.map(lambda x: x[None], (carry, buffers))
            return carry, remembered, buffers, rounds_done, stopped

        dealt, alike = PartitionSpec(axis), PartitionSpec()
        whole = jax.shard_map(
            share,
            mesh=mesh,
            in_specs=(alike, dealt, dealt, alike, dealt, alike, alike),
            out_specs=(dealt, alike, dealt, alike, alike),
            check_vma=False,
        )
        sharding = NamedSharding(mesh, dealt)
    elif place is not None:
        sharding = NamedSharding(place, PartitionSpec())

    def buffers() -> PyTree:
        def zeros(x: jax.ShapeDtypeStruct) -> Array:
            return jnp.zeros((*lead, capacity, *x.shape), x.dtype, device=sharding)

        return jax.tree.map(zeros, traced.row)

    def remembered() -> PyTree:
        # Copies, because they are donated.
        copies = jax.tree.map(lambda x: jnp.array(x, copy=True), stop.init)
        return copies if sharding is None else placed(copies, sharding)

    zero, room = np.int32(0), buffers()
    compiled = (
        jax.jit(whole, donate_argnums=(2, 3, 4))
        .lower(consts, inputs, carry, remembered(), room, zero, zero)
        .compile()
    )
    arrays = jax.tree.leaves((inputs, carry, room))
    analysis: Any = compiled.memory_analysis()
    return Program(
        num_rounds=num_rounds,
        advance=lambda inputs, carry, remembered, buffers, first, count: compiled(
            consts, inputs, carry, remembered, buffers, np.int32(first), np.int32(count)
        ),
        remembered=remembered,
        buffers=buffers,
        replay=partial(replay, stop),
        criterion=criterion,
        capacity=capacity,
        rounds_axis=len(lead),
        # The compiler reports what one device needs.
        memory=devices * analysis.temp_size_in_bytes
        + sum(x.size * x.dtype.itemsize for x in arrays),
    )
