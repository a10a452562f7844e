"""A run as `fs.simulate` drives it: traced and ready to be compared, compiled and driven."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_sim.core.history import Communication, History
from fedjax_sim.core.randomness import as_key
from fedjax_sim.core.types import Array, FederatedState, PyTree
from fedjax_sim.data import Source
from fedjax_sim.execution.machine import own_devices
from fedjax_sim.execution.placing import placed
from fedjax_sim.host.driver import Driven
from fedjax_sim.host.held_states import ON_DISK, StatesOnDisk, check_on_disk
from fedjax_sim.host.identity import identity
from fedjax_sim.host.keeping import Keep, advance, first_best, keep_of, with_the_last
from fedjax_sim.host.program import Program, Traced, compile_program, trace_step
from fedjax_sim.host.simulation import Simulation
from fedjax_sim.host.stopping import Stop, check_stop
from fedjax_sim.host.windows import Windows
from fedjax_sim.results.columns import check_evaluated
from fedjax_sim.results.folder import RunFolder
from fedjax_sim.training.communication import communication
from fedjax_sim.training.experiment import Experiment, carry_of
from fedjax_sim.training.memory import check_fits


class PreparedRun(NamedTuple):
    """One run of an experiment, of which nothing is computed or written yet.

    Attributes:
      experiment: with counts that are plain integers.
      key: the base key.
      seed: the integer that the key was made from; None if it was not.
      state: before round 0.
      exchange: what a round sends.
      criterion: that ends the run early, if there is one.
      keep: the best model that is carried along, if one is asked for.
      windows: of data that are read while the run goes on; None where they are in memory.
      states: of clients, where they are on a disk.
      mesh: of the execution strategy, if it has one.
      inputs: of the traced step, or their shapes.
      carry: before round 0, on the devices of the mesh; donated when the run is driven.
      traced: a round.
    """

    experiment: Experiment
    key: Array
    seed: int | None
    state: FederatedState
    exchange: Communication
    criterion: Stop | None
    keep: Keep | None
    windows: Windows | None
    states: StatesOnDisk | None
    mesh: Mesh | None
    inputs: PyTree
    carry: PyTree
    traced: Traced

    def facts(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """What identifies the run, so that a resume does not take another for it."""
        criterion, keep = self.criterion, self.keep
        state = self.state
        if self.states is not None:  # of as many clients as the federation has
            shapes = jax.eval_shape(self.experiment.start, self.key)
            state = replace(state, clients=shapes.clients)
        facts = identity(self.experiment, self.key, state) | {
            "stop": None if criterion is None else criterion.name,
            "criterion": None if criterion is None else check_stop(criterion, self.traced.row),
            "configuration": dict(configuration),
        }
        if self.states is not None:
            facts |= {"client_states": ON_DISK}
        if keep is not None:
            facts |= {"keep_model": keep.kept, "metric": keep.metric}
        return facts

    def compile(self) -> Program:
        """The program that does the rounds."""
        num_rounds = self.experiment.num_rounds
        return compile_program(
            self.traced, self.inputs, self.carry, num_rounds, stop=self.criterion, place=self.mesh
        )

    def simulation(self, driven: Driven) -> Simulation:
        """What the user gets of the rounds that were done."""
        carry, best = driven.carry, None
        if self.windows is not None:
            carry = self.windows.own_carry(carry)
        if self.keep is not None:
            carry, best = carry
        final = self.experiment.state_of(jnp.int32(driven.round), carry)
        if self.states is not None:
            final = replace(final, clients=self.states.clients(carry, driven.round))
        if self.keep is not None and best is not None:
            best = with_the_last(self.keep, best, final, driven.history)
        num_rounds = self.experiment.num_rounds
        return Simulation(final, driven.history, driven.status, self.exchange, num_rounds, best)


def prepare(
    experiment: Experiment,
    key: Array | int,
    *,
    mesh: Mesh | None,
    criterion: Stop | None,
    keep_model: str,
    metric: str | None,
    capacity: int | None,
    states_in: RunFolder | None = None,
) -> PreparedRun:
    """Checks an experiment and traces a round of it; arguments as `fs.simulate` takes them.

    Args:
      states_in: the folder in which the clients' states are; None where they are in memory.

    Raises:
      ValueError: what the experiment raises; for a key, a metric or a capacity that it cannot have.
    """
    key, seed = as_key(key)
    shapes = experiment.check(key)
    experiment = experiment.with_plain_counts()
    check_evaluated(experiment.evaluate, shapes)
    exchange = communication(experiment.algorithm, shapes.params, experiment.federation)
    kind = None if keep_model == "final" else keep_model
    keep = keep_of(kind, metric, experiment, key, shapes)
    has_states = states_in is not None
    if has_states:
        check_on_disk(experiment, shapes)
    windows = _windows(experiment, key, shapes, capacity=capacity, mesh=mesh, has_states=has_states)
    check_fits(
        experiment,
        _devices(mesh),
        capacity=None if windows is None else windows.capacity,
        num_states=None if windows is None else windows.most_clients,
    )
    states = None
    if states_in is None:
        state = experiment.start(key)
    else:
        assert windows is not None
        number = experiment.federation.num_clients
        state = experiment.start(key, windows.most_clients)
        states = StatesOnDisk(states_in, state, number, windows.planned_now)
        state = replace(state, clients=states.held(state, number))
    carry = _first_carry(state, keep, mesh)

    def one_round(experiment: Experiment, round: Array, carry: PyTree) -> tuple[PyTree, History]:
        if keep is None:
            return experiment.advance(key, round, carry)
        return advance(keep, experiment, key, round, carry)

    def in_memory(inputs: PyTree, round: Array, carry: PyTree) -> tuple[PyTree, History]:
        return one_round(experiment, round, carry)

    inputs: PyTree = ()
    step: Callable[..., tuple[PyTree, History]] = in_memory
    if windows is not None:
        inputs, carry, step = windows.shapes, windows.carry(carry), windows.step(one_round)
    traced = trace_step(step, inputs, carry)
    return PreparedRun(
        experiment=experiment,
        key=key,
        seed=seed,
        state=state,
        exchange=exchange,
        criterion=criterion,
        keep=keep,
        windows=windows,
        states=states,
        mesh=mesh,
        inputs=inputs,
        carry=carry,
        traced=traced,
    )


def _devices(mesh: Mesh | None) -> list[Any]:
    """Those of this process that will hold the run."""
    return [*jnp.zeros(()).devices()] if mesh is None else own_devices(mesh)


def _windows(
    experiment: Experiment,
    key: Array,
    state: FederatedState,
    *,
    capacity: int | None,
    mesh: Mesh | None,
    has_states: bool,
) -> Windows | None:
    """The windows of a run whose data or clients' states are read while it goes on; None for one
    that has all in memory.

    Raises:
      ValueError: for a capacity where the data are in memory; what `Windows` refuses.
    """
    if isinstance(experiment.data, Source) or has_states:
        return Windows(experiment, key, state, capacity=capacity, mesh=mesh, has_states=has_states)
    if capacity is not None:
        raise ValueError(
            f"capacity is of an experiment whose data is an fs.data.Source; got {capacity}, and "
            "data in memory"
        )
    return None


def _first_carry(state: FederatedState, keep: Keep | None, mesh: Mesh | None) -> PyTree:
    """What is carried from round to round, before round 0, on the devices of the mesh."""
    start = carry_of(state)
    start = start if keep is None else (start, first_best(state))
    # Copies: the carry is donated, and an optimizer's state may hold an array twice or the user's.
    carry = jax.tree.map(lambda x: jnp.array(x, copy=True), start)
    return carry if mesh is None else placed(carry, NamedSharding(mesh, PartitionSpec()))
