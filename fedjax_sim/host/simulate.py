"""A whole run driven from the host: progress, early stop, checkpoints, resume."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_sim.core.checks import check_count, check_takes
from fedjax_sim.core.files import SaveError
from fedjax_sim.core.history import History
from fedjax_sim.core.interrupted import InterruptedRun
from fedjax_sim.core.notebook import progress_bar, words
from fedjax_sim.core.randomness import as_key
from fedjax_sim.core.types import Array, FederatedState, PyTree
from fedjax_sim.data import Source
from fedjax_sim.execution.placing import placed
from fedjax_sim.execution.strategy import as_strategy
from fedjax_sim.host.alike import check_same
from fedjax_sim.host.checkpoints import Checkpoints
from fedjax_sim.host.driver import Driven, Interrupt, Progress, drive
from fedjax_sim.host.identity import identity
from fedjax_sim.host.keeping import (
    Keep,
    advance,
    check_keep_model,
    first_best,
    keep_of,
    with_the_last,
)
from fedjax_sim.host.manifest import Manifest
from fedjax_sim.host.processes import ALONE, processes_of
from fedjax_sim.host.program import compile_program, trace_step
from fedjax_sim.host.resuming import rounds_that_met, without_last_evaluation
from fedjax_sim.host.simulation import Simulation, save_model
from fedjax_sim.host.stopping import Criterion, as_stop, check_stop
from fedjax_sim.host.telling import Teller, Writer
from fedjax_sim.host.windows import Windows
from fedjax_sim.results.columns import check_evaluated
from fedjax_sim.results.folder import MODEL, RUN, RunFolder
from fedjax_sim.training.communication import communication
from fedjax_sim.training.experiment import Experiment


def simulate(
    experiment: Experiment,
    key: Array | int,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    stop: Criterion | None = None,
    checkpoint_every: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    progress: bool = False,
    writers: Sequence[Writer] = (),
    configuration: Mapping[str, Any] | None = None,
    keep_model: str = "final",
    metric: str | None = None,
    capacity: int | None = None,
) -> Simulation:
    """Runs an experiment in compiled chunks of rounds, and survives being killed.

    One compiled function does any number of rounds, so neither chunks nor checkpoints nor a
    resume change a bit of the result. SIGINT and SIGTERM end it after the rounds at hand, saved,
    with status "interrupted".

    Over a mesh of several processes each of them calls this with the same arguments, which is
    compared. The one of the lowest index alone writes in `out`, and calls writers and
    `on_progress`; a signal to any of them, or an error, ends all after the same round; all
    return the same, on their own devices.

    Args:
      experiment: what to run. With a `sharded` strategy its arrays are placed on the mesh.
      key: the base key of the whole run, or an integer, the seed for `jax.random.key`.
      out: a folder for checkpoints, and for the model at the end, in model.npz, which `fs.load`
        reads; None saves nothing.
      resume: go on from the last whole checkpoint in `out`; from the start if there is none. With
        more rounds than it was of, a run goes on to the bits of one longer run, unless something
        of it depends on R; and a finished one, too. `stop` may be left out, or be another that no
        round before the last one done had met. A run without it may be given one; if a round done
        before has met it, none is added.
      stop: `History` of one round -> Bool[], in the graph: whether the run ends with this round,
        as `fs.reaches` makes one; or an `fs.Stop`, which remembers the rounds before, as
        `fs.patience` does; or several, of which the first one met ends the run.
      checkpoint_every: rounds between checkpoints; None saves every 15 s or so, less often where
        saving would take more than 2 % of the time. The end is saved in any case.
      on_progress: called after each chunk.
      progress: whether a bar of tqdm's is shown, in a terminal or a notebook (extra `notebook`).
      writers: given the scalars of each round.
      configuration: anything JSON-able that `resume` shall find the same, beside the key, the
        federation, the first model, R, `evaluate_every`, the versions, and a checksum of the
        traced program: sampler, rule, algorithm with all its constants, evaluation.
      keep_model: the model in model.npz, "final" or "best": by `metric`, the first of equal ones,
        carried from round to round. A resume must find the same.
      metric: a column of one number a round, as "validation_accuracy" or "train_loss"; None for the
        score: of a validation set where there is one, else of the test set. Losses and errors are
        best where they are lowest.
      capacity: where the experiment's data is an `fs.data.Source`: rows of examples that a window
        holds, of as many rounds as fit. The next window is read in a thread while this one is
        trained on, so that there are two at a time. No bit of the result depends on it. None for
        256 MiB of them, or those of the largest round.

    Raises:
      ValueError: what the experiment raises; if `out` holds checkpoints and `resume` is False,
        or those of another experiment (what differs); if processes were given different ones.
      SaveError: (an OSError) if a checkpoint or the model cannot be written: what was saved before
        is as it was.
      InterruptedRun: for what a writer, `on_progress` or a source's `read` raises, its cause, once
        what was computed is saved in `out`. All writers are closed then; what closing them raises
        is a note on the error. Of either error, `partial` is what was computed, an `fs.Simulation`.

    >>> import fedjax_sim as fs, jax, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones(3), "y": np.ones(3)}] * 4)
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    >>> experiment = fs.Experiment(algorithm, 0.0, data, fs.sampling.uniform(2), num_rounds=3)
    >>> simulation = fs.simulate(experiment, jax.random.key(0))
    >>> round(float(simulation.state.params), 3), simulation.status
    (0.488, 'finished')
    """
    if not isinstance(experiment, Experiment):
        raise ValueError(f"experiment must be an fs.Experiment; got {type(experiment).__name__}")
    mesh = None if experiment.execution is None else as_strategy(experiment.execution).mesh
    processes = processes_of(mesh)
    with processes.telling():
        _check(out, resume, on_progress, writers)
        if checkpoint_every is not None:
            checkpoint_every = check_count("checkpoint_every", checkpoint_every, ", or None")
        check_keep_model(keep_model, metric)
        criterion = None if stop is None else as_stop(stop)
    if progress and processes.is_writer:
        with progress_bar(experiment.num_rounds, "rounds") as tell:

            def both(now: Progress) -> None:
                tell(now.round, words({k: x for k, x in now.metrics.items() if "loss" in k}))
                if on_progress is not None:
                    on_progress(now)

            shown = simulate(
                experiment,
                key,
                out=out,
                resume=resume,
                stop=stop,
                checkpoint_every=checkpoint_every,
                on_progress=both,
                writers=writers,
                configuration=configuration,
                keep_model=keep_model,
                metric=metric,
                capacity=capacity,
            )
            tell(len(shown.history.evaluated), shown.status)
            return shown
    with processes.together():
        key, seed = as_key(key)
        experiment.check(key)
        experiment = experiment.with_plain_counts()
        state = experiment.start(key)
        check_evaluated(experiment.evaluate, state)
        exchange = communication(experiment.algorithm, state.params, experiment.federation)
        kept = None if keep_model == "final" else keep_model
        keep = keep_of(kept, metric, experiment, key, state)
        carry = _first_carry(state, keep, mesh)
        windows = _windows(experiment, key, state, capacity=capacity, mesh=mesh)

        def one_round(here: Experiment, round: Array, carry: PyTree) -> tuple[PyTree, History]:
            if keep is None:
                return here.advance(key, round, carry)
            return advance(keep, here, key, round, carry)

        def in_memory(inputs: PyTree, round: Array, carry: PyTree) -> tuple[PyTree, History]:
            return one_round(experiment, round, carry)

        inputs: PyTree = ()
        step: Callable[..., tuple[PyTree, History]] = in_memory
        if windows is not None:
            inputs, carry, step = windows.shapes, windows.carry(carry), windows.step(one_round)
        traced = trace_step(step, inputs, carry)
        here = dict[str, Any]()
        if out is not None or processes is not ALONE:
            here = identity(experiment, key, state) | {
                "stop": None if criterion is None else criterion.name,
                "criterion": None if criterion is None else check_stop(criterion, traced.row),
                "configuration": dict(configuration or {}),
            }
            if keep is not None:
                here |= {"keep_model": keep.kept, "metric": keep.metric}
    if processes is not ALONE:
        whole = here | {"is_saved": out is not None}
        check_same(processes, whole, traced.step, experiment.federation)
    as_it_were = partial(without_last_evaluation, experiment)
    checkpoints = None
    if out is not None:
        folder = RunFolder(Path(out))
        checkpoints = Checkpoints(folder.parts(RUN))
        rounds_met = partial(rounds_that_met, criterion, checkpoints, traced.row, as_it_were)
        manifest = Manifest.of(RUN, here)
        processes.by_writer(partial(manifest.open, folder, resume, rounds_met))
    program = compile_program(
        traced, inputs, carry, experiment.num_rounds, stop=criterion, place=mesh
    )
    teller = Teller(writers, on_progress, experiment.num_rounds)

    def simulation(driven: Driven) -> Simulation:
        carry, best = driven.carry, None
        if windows is not None:
            carry = windows.own_carry(carry)
        if keep is not None:
            carry, best = carry
        final = experiment.state_of(jnp.int32(driven.round), carry)
        if keep is not None and best is not None:
            best = with_the_last(keep, best, final, driven.history)
        return Simulation(
            final, driven.history, driven.status, exchange, experiment.num_rounds, best
        )

    try:
        with Interrupt() as interrupt, windows or nullcontext():

            def inputs_of(first: int, count: int) -> tuple[PyTree, int] | None:
                assert windows is not None
                return windows.take(first, count, lambda: interrupt.received is not None)

            driven = drive(
                program,
                inputs,
                carry,
                interrupt,
                teller.chunk,
                checkpoints,
                checkpoint_every,
                as_it_were,
                None if windows is None else inputs_of,
                processes,
            )
    except BaseException as error:
        teller.close(error)
        if isinstance(error, InterruptedRun):
            if out is not None and not isinstance(error, SaveError):
                error.add_note(f"{error.partial.round} rounds are saved in {out}, to be resumed")
            error.partial = simulation(error.partial)
        raise
    done = simulation(driven)
    try:
        with processes.together():
            teller.close()
        if out is not None:
            model = partial(save_model, Path(out) / MODEL, done, keep, configuration or {}, seed)
            processes.by_writer(model)
    except SaveError as error:
        error.partial = done
        raise
    except Exception as error:
        closed = InterruptedRun(f"all rounds are done, but not all is written: {error!r}")
        raise closed.holding(done) from error
    return done


def _check(
    out: str | Path | None,
    resume: bool,
    on_progress: Callable[[Progress], None] | None,
    writers: Sequence[Writer],
) -> None:
    """Refuses arguments of `simulate` before anything is computed.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    if on_progress is not None:
        check_takes("on_progress", on_progress, "progress")
    if resume and out is None:
        raise ValueError("resume needs out, the folder to go on from; got None")
    if not all(hasattr(writer, "write") for writer in writers):
        raise ValueError(
            "writers must be a list of writers, as [fs.writers.tensorboard(folder)]; got "
            f"{writers!r}"
        )


def _windows(
    experiment: Experiment,
    key: Array,
    state: FederatedState,
    *,
    capacity: int | None,
    mesh: Mesh | None,
) -> Windows | None:
    """Those of a run whose data are read while it goes on.

    Raises:
      ValueError: for a capacity where the data are in memory; what `Windows` refuses.
    """
    if isinstance(experiment.data, Source):
        return Windows(experiment, key, state, capacity=capacity, mesh=mesh)
    if capacity is not None:
        raise ValueError(
            f"capacity is of an experiment whose data is an fs.data.Source; got {capacity}, and "
            "data in memory"
        )
    return None


def _first_carry(state: FederatedState, keep: Keep | None, mesh: Mesh | None) -> PyTree:
    """What is carried from round to round, before round 0, on the devices of the mesh."""
    begun: PyTree = (state.server, state.clients)
    begun = begun if keep is None else (begun, first_best(state))
    # Copies: the carry is donated, and an optimizer's state may hold an array twice or the user's.
    carry = jax.tree.map(lambda x: jnp.array(x, copy=True), begun)
    return carry if mesh is None else placed(carry, NamedSharding(mesh, PartitionSpec()))
