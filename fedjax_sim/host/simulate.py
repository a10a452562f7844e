"""A whole run driven from the host: progress, early stop, checkpoints, resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from fedjax_sim.core.checks import check_count, check_takes
from fedjax_sim.core.files import SaveError
from fedjax_sim.core.interrupted import InterruptedRun
from fedjax_sim.core.notebook import progress_bar, words
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.execution.strategy import as_strategy
from fedjax_sim.host.alike import check_same
from fedjax_sim.host.checkpoints import Checkpoints
from fedjax_sim.host.driver import Driven, Interrupt, Progress, drive
from fedjax_sim.host.held_states import IN_MEMORY, ON_DISK, check_states_are_in
from fedjax_sim.host.keeping import check_keep_model
from fedjax_sim.host.manifest import Manifest
from fedjax_sim.host.prepared import PreparedRun, prepare
from fedjax_sim.host.processes import ALONE, Processes, processes_of
from fedjax_sim.host.program import Program
from fedjax_sim.host.resuming import rounds_that_met, without_last_evaluation
from fedjax_sim.host.simulation import Simulation, save_model
from fedjax_sim.host.stopping import Criterion, as_stop
from fedjax_sim.host.telling import Teller, Writer
from fedjax_sim.results.folder import MODEL, RUN, RunFolder
from fedjax_sim.training.experiment import Experiment, check_experiment


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
    client_states: str = IN_MEMORY,
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
      client_states: "memory"; or "disk", where what clients keep is in files of `out` but for the
        clients of the rounds at hand, 256 MiB of them or those of the largest round. No bit of
        the result depends on it; the state's `clients` is then an `fs.data.ClientStates`.

    Raises:
      ValueError: what the experiment raises; if `out` holds checkpoints and `resume` is False,
        or those of another experiment (what differs); if processes were given different ones.
      SaveError: (an OSError) if a checkpoint or the model cannot be written: what was saved before
        is as it was.
      InterruptedRun: for what a writer, `on_progress` or a source's `read` raises, its cause, once
        what was computed is saved in `out`. All writers are closed then; what closing them raises
        is a note on the error. Of either error, `partial` is what was computed, an `fs.Simulation`.
      LostProcessError: (a RuntimeError) if another process of the run is gone; the rounds since the
        last checkpoint are lost.

    >>> import fedjax_sim as fs, jax, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones(3), "y": np.ones(3)}] * 4)
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    >>> experiment = fs.Experiment(algorithm, 0.0, data, fs.sampling.uniform(2), num_rounds=3)
    >>> simulation = fs.simulate(experiment, jax.random.key(0))
    >>> round(float(simulation.state.params), 3), simulation.status
    (0.488, 'finished')
    """
    check_experiment(experiment)
    mesh = None if experiment.execution is None else as_strategy(experiment.execution).mesh
    processes = processes_of(mesh)
    with processes.telling():
        _check(out, resume, on_progress, writers)
        if checkpoint_every is not None:
            checkpoint_every = check_count("checkpoint_every", checkpoint_every, ", or None")
        check_keep_model(keep_model, metric)
        states_in = _states_in(client_states, out, processes)
        criterion = None if stop is None else as_stop(stop)
    has_bar = progress and processes.is_writer
    bar = progress_bar(experiment.num_rounds, "rounds") if has_bar else nullcontext()
    with bar as show:
        with processes.together():
            run = prepare(
                experiment,
                key,
                mesh=mesh,
                criterion=criterion,
                keep_model=keep_model,
                metric=metric,
                capacity=capacity,
                states_in=states_in,
            )
            is_compared = out is not None or processes is not ALONE
            facts = run.facts(configuration or {}) if is_compared else {}
        if processes is not ALONE:
            saving = {"is_saved": out is not None}
            check_same(processes, facts | saving, run.traced.step, run.experiment.federation)
        checkpoints = None
        if out is not None:
            checkpoints = _open(run, facts, RunFolder(Path(out)), resume, processes)
        with processes.together():
            program = run.compile()
        teller = Teller(writers, _progress_told(on_progress, show), run.experiment.num_rounds)
        try:
            driven = _drive(run, program, teller, checkpoints, checkpoint_every, processes)
        except BaseException as error:
            teller.close(error)
            if isinstance(error, InterruptedRun):
                if out is not None and not isinstance(error, SaveError):
                    note = f"{error.partial.round} rounds are saved in {out}, to be resumed"
                    error.add_note(note)
                error.partial = run.simulation(error.partial)
            raise
        simulation = run.simulation(driven)
        try:
            with processes.together():
                teller.close()
            if out is not None:
                path = Path(out) / MODEL
                processes.by_writer(
                    partial(save_model, path, simulation, run.keep, configuration or {}, run.seed)
                )
        except SaveError as error:
            error.partial = simulation
            raise
        except Exception as error:
            closed = InterruptedRun(f"all rounds are done, but not all is written: {error!r}")
            raise closed.holding(simulation) from error
        if show is not None:
            show(len(simulation.history.evaluated), simulation.status)
    return simulation


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


def _states_in(
    client_states: str, out: str | Path | None, processes: Processes
) -> RunFolder | None:
    """The folder in which the clients' states are; None where they are in memory.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    check_states_are_in(client_states)
    if client_states == IN_MEMORY:
        return None
    if out is None:
        raise ValueError(f'client_states="{ON_DISK}" needs out, the folder they are in; got None')
    if processes is not ALONE:
        raise ValueError(
            f'client_states="{ON_DISK}" is of a run of one process, because one alone may write '
            f"the file; got a mesh of {len(processes.indices)}"
        )
    return RunFolder(Path(out).absolute())


def _open(
    run: PreparedRun,
    facts: Mapping[str, Any],
    folder: RunFolder,
    resume: bool,
    processes: Processes,
) -> Checkpoints:
    """The checkpoints in a folder, once its manifest is written, or found to be of this run.

    Raises:
      ValueError: for a folder that cannot be used, as `Manifest.open` says.
      OSError: if the folder cannot be written.
    """
    checkpoints = Checkpoints(folder.parts(RUN))
    rows_as_now = partial(without_last_evaluation, run.experiment)
    rounds_met = partial(rounds_that_met, run.criterion, checkpoints, run.traced.row, rows_as_now)
    manifest = Manifest.of(RUN, facts)
    processes.by_writer(partial(manifest.open, folder, resume, rounds_met))
    return checkpoints


def _progress_told(
    on_progress: Callable[[Progress], None] | None, show: Callable[[int, str], None] | None
) -> Callable[[Progress], None] | None:
    """What is called after each chunk: it moves the bar, if there is one, then the user's call."""
    if show is None:
        return on_progress

    def show_and_tell(progress: Progress) -> None:
        show(progress.round, words({k: x for k, x in progress.metrics.items() if "loss" in k}))
        if on_progress is not None:
            on_progress(progress)

    return show_and_tell


def _drive(
    run: PreparedRun,
    program: Program,
    teller: Teller,
    checkpoints: Checkpoints | None,
    checkpoint_every: int | None,
    processes: Processes,
) -> Driven:
    """Does the rounds of a run by `drive`, with a handler of signals and a reader of windows."""
    windows = run.windows
    states_alone = nullcontext() if run.states is None else run.states.on_disk.alone()
    with Interrupt() as interrupt, states_alone, windows or nullcontext():

        def inputs_of(first: int, count: int) -> tuple[PyTree, int] | None:
            assert windows is not None
            return windows.take(first, count, lambda: interrupt.received is not None)

        return drive(
            program,
            run.inputs,
            run.carry,
            interrupt=interrupt,
            on_chunk=teller.chunk,
            checkpoints=checkpoints,
            checkpoint_every=checkpoint_every,
            rows_as_now=partial(without_last_evaluation, run.experiment),
            inputs_of=None if windows is None else inputs_of,
            processes=processes,
            states=run.states,
        )
