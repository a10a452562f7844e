"""A whole run driven from the host: progress, early stop, checkpoints, resume."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_sim.core.checks import check_count, check_takes
from fedjax_sim.core.files import SaveError
from fedjax_sim.core.history import Communication, History
from fedjax_sim.core.interrupted import InterruptedRun
from fedjax_sim.core.notebook import card, number, progress_bar, words
from fedjax_sim.core.randomness import as_key
from fedjax_sim.core.types import Array, FederatedState, PyTree
from fedjax_sim.execution.strategy import as_strategy
from fedjax_sim.host.checkpoints import Checkpoints
from fedjax_sim.host.driver import WARM_SECONDS, Interrupt, Progress, drive, history_of
from fedjax_sim.host.identity import identity
from fedjax_sim.host.keeping import (
    Best,
    advance,
    check_keep_model,
    first_best,
    keep_of,
    with_the_last,
)
from fedjax_sim.host.manifest import Manifest
from fedjax_sim.host.program import compile_program, trace_step
from fedjax_sim.host.stopping import Criterion, as_stop, check_stop, replay
from fedjax_sim.results import Results, Run
from fedjax_sim.results.columns import check_evaluated, columns, has_value
from fedjax_sim.results.folder import MODEL, RUN, RunFolder
from fedjax_sim.results.trained import save_trained, trained_params
from fedjax_sim.training.communication import communication
from fedjax_sim.training.experiment import Experiment


class Writer(Protocol):
    """Where a run's numbers go while it runs; `fs.writers` has some."""

    def write(self, round: int, values: Mapping[str, float]) -> None:
        """The scalars of round `round`, counted from 1. After a resume, of saved ones again.

        What has no value there, as a metric that was not evaluated, is left out; a NaN is of a
        run that diverged.
        """

    def close(self) -> None:
        """Everything is written."""


class Simulation(NamedTuple):
    """What `fs.simulate` returns.

    Attributes:
      state: after the last round done.
      history: of the rounds done, numpy leaves.
      status: "finished"; "stopped", by `stop`; or "interrupted", by a signal.
      exchange: the bytes of one exchange.
      num_rounds: R, what was asked for.
      best: with `keep_model="best"`: its params, the metric's value, and the rounds that it was
        trained for (0, and the first model, if the metric was never measured).
    """

    state: FederatedState
    history: History
    status: str
    exchange: Communication
    num_rounds: int
    best: Best | None = None

    def __repr__(self) -> str:
        return f"Simulation({words(self._facts())})"

    def _repr_html_(self) -> str:
        return card("Simulation", self._facts())

    def _facts(self) -> dict[str, Any]:
        measured = self.history._facts()
        rounds = f"{number(measured.pop('rounds'))} of {number(self.num_rounds)}"
        size = sum(x.size for x in jax.tree.leaves(trained_params(self.state)))
        return {"status": self.status, "rounds": rounds, **measured, "parameters": size}

    def results(self, configuration: Mapping[str, Any] | None = None, seed: int = 0) -> Results:
        """The run as a table of one: to print, to save, to hand to pandas.

        Args:
          configuration: hyper-parameter -> value, to label it with.
          seed: its label.
        """
        # A run that its criterion ended is complete.
        asked = self.num_rounds if self.status == "interrupted" else len(self.history.evaluated)
        found = columns(self.history, self.exchange)
        return Results((Run(dict(configuration or {}), seed, found, {}, asked),))


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
) -> Simulation:
    """Runs an experiment in compiled chunks of rounds, and survives being killed.

    One compiled function does any number of rounds, so neither chunks nor checkpoints nor a
    resume change a bit of the result. SIGINT and SIGTERM end it after the rounds at hand, saved,
    with status "interrupted".

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

    Raises:
      ValueError: what the experiment raises; if `out` holds checkpoints and `resume` is False,
        or those of another experiment (what differs).
      SaveError: (an OSError) if a checkpoint or the model cannot be written: what was saved before
        is as it was.
      InterruptedRun: for what a writer or `on_progress` raises, its cause, once what was computed
        is saved in `out`. All writers are closed then; what closing them raises is a note on the
        error. Of either error, `partial` is what was computed, an `fs.Simulation`.

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
    if checkpoint_every is not None:
        checkpoint_every = check_count("checkpoint_every", checkpoint_every, ", or None")
    if on_progress is not None:
        check_takes("on_progress", on_progress, "progress")
    if resume and out is None:
        raise ValueError("resume needs out, the folder to go on from; got None")
    check_keep_model(keep_model, metric)
    criterion = None if stop is None else as_stop(stop)
    if not all(hasattr(writer, "write") for writer in writers):
        raise ValueError(
            "writers must be a list of writers, as [fs.writers.tensorboard(folder)]; got "
            f"{writers!r}"
        )
    if progress:
        with progress_bar(experiment.num_rounds, "rounds") as tell:

            def both(now: Progress) -> None:
                tell(now.round, words({k: x for k, x in now.metrics.items() if "loss" in k}))
                if on_progress is not None:
                    on_progress(now)

            shown = simulate(
                experiment, key, out=out, resume=resume, stop=stop, on_progress=both,
                checkpoint_every=checkpoint_every, writers=writers, configuration=configuration,
                keep_model=keep_model, metric=metric,
            )  # fmt: skip
            tell(len(shown.history.evaluated), shown.status)
            return shown
    key, seed = as_key(key)
    experiment.check(key)
    experiment = experiment.with_plain_counts()
    state = experiment.start(key)
    check_evaluated(experiment.evaluate, state.params)
    exchange = communication(experiment.algorithm, state.params, experiment.data)

    keep = None if keep_model == "final" else keep_of(keep_model, metric, experiment, key, state)

    def step(inputs: PyTree, round: Array, carry: PyTree) -> tuple[PyTree, History]:
        if keep is None:
            return experiment.advance(key, round, carry)
        return advance(keep, experiment, key, round, carry)

    begun: PyTree = (state.server, state.clients)
    begun = begun if keep is None else (begun, first_best(state))
    # Copies: the carry is donated, and an optimizer's state may hold an array twice or the user's.
    carry = jax.tree.map(lambda x: jnp.array(x, copy=True), begun)
    execution = experiment.execution
    mesh = None if execution is None else as_strategy(execution).mesh
    if mesh is not None:
        carry = jax.device_put(carry, NamedSharding(mesh, PartitionSpec()))
    traced = trace_step(step, (), carry)

    def as_it_were(rows: History) -> History:
        return _without_last_evaluation(experiment, rows)

    checkpoints = None
    if out is not None:
        here = identity(experiment, key, state) | {
            "stop": None if criterion is None else criterion.name,
            "criterion": None if criterion is None else check_stop(criterion, traced.row),
            "configuration": dict(configuration or {}),
        }
        if keep is not None:
            here |= {"keep_model": keep.kept, "metric": keep.metric}

        folder = RunFolder(Path(out))
        checkpoints = Checkpoints(folder.parts(RUN))

        def rounds_met() -> list[int]:
            rows = as_it_were(history_of(checkpoints, traced.row))
            met = np.array(False) if criterion is None else replay(criterion, rows)[1]
            return [int(i) + 1 for i in np.flatnonzero(met)]

        Manifest.of(RUN, here).open(folder, resume, rounds_met)
    program = compile_program(traced, (), carry, experiment.num_rounds, stop=criterion, place=mesh)
    is_warm = False  # whether a chunk's time is that of its rounds alone

    def on_chunk(first: int, rows: History, seconds: float) -> None:
        nonlocal is_warm
        found = {name: x for name, x in columns(rows).items() if x.ndim == 1}
        has = {name: has_value(found, name) for name in found if name != "evaluated"}
        for i in range(len(rows.evaluated)):
            values = {name: float(found[name][i]) for name, there in has.items() if there[i]}
            for writer in writers:
                writer.write(first + i + 1, values)
        if on_progress is not None and seconds:
            is_warm = is_warm or seconds >= WARM_SECONDS
            on_progress(progress_of(found, first, experiment.num_rounds, seconds, is_warm))
        is_warm = is_warm or seconds > 0

    def simulation(driven: Any) -> Simulation:
        carry, best = driven.carry, None
        if keep is not None:
            carry, best = carry
        final = experiment.state_of(jnp.int32(driven.round), carry)
        if keep is not None and best is not None:
            best = with_the_last(keep, best, final, driven.history)
        return Simulation(
            final, driven.history, driven.status, exchange, experiment.num_rounds, best
        )

    try:
        with Interrupt() as interrupt:
            driven = drive(
                program, (), carry, interrupt, on_chunk, checkpoints, checkpoint_every, as_it_were
            )
    except BaseException as error:
        _close(writers, error)
        if isinstance(error, InterruptedRun):
            if out is not None and not isinstance(error, SaveError):
                error.add_note(f"{error.partial.round} rounds are saved in {out}, to be resumed")
            error.partial = simulation(error.partial)
        raise
    found = simulation(driven)
    try:
        _close(writers, None)
        if out is not None:
            best = found.best
            save_trained(
                Path(out) / MODEL, trained_params(found.state) if best is None else best.params,
                configuration=configuration or {}, seed=seed,
                round=driven.round if best is None else int(best.round),
                num_rounds=found.num_rounds, status=found.status, kept=keep_model,
                metric=None if keep is None else keep.metric,
                value=None if best is None else float(best.value),
            )  # fmt: skip
    except SaveError as error:
        error.partial = found
        raise
    except Exception as error:
        closed = InterruptedRun(f"all rounds are done, but not all is written: {error!r}")
        raise closed.holding(found) from error
    return found


def _close(writers: Sequence[Writer], first: BaseException | None) -> None:
    """Closes all of them; raises the first error, unless there is an earlier one to note it on."""
    earlier = first
    for writer in writers:
        try:
            writer.close()
        except Exception as error:
            if earlier is None:
                earlier = error
            else:
                earlier.add_note(f"{type(writer).__name__}.close() then raised {error!r}")
    if first is None and earlier is not None:
        raise earlier


def _without_last_evaluation(experiment: Experiment, rows: History) -> History:
    """The rounds done as a run of R rounds has them: a shorter one evaluated its last, too."""
    done = len(rows.evaluated)
    due = done % experiment.evaluate_every == 0 or done == experiment.num_rounds
    if not done or due or not rows.evaluated[-1]:
        return rows

    def without(x: Any) -> Any:
        nothing = np.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0
        return np.concatenate([x[:-1], np.full_like(x[-1:], nothing)])

    evaluation = jax.tree.map(without, rows.evaluation)
    return rows._replace(evaluation=evaluation, evaluated=without(rows.evaluated))


def progress_of(
    found: Mapping[str, np.ndarray],
    first: int,
    num_rounds: int,
    seconds: float,
    is_warm: bool = True,
) -> Progress:
    """What a chunk's columns [rounds, ...] say of the pace and the latest metrics.

    Args:
      is_warm: whether its seconds say how long the rounds to come will take.
    """
    count = len(next(iter(found.values())))
    steps = float(np.sum(found.get("client_steps", 0)))
    scalars = {name: x for name, x in found.items() if x.ndim == 1 and x.dtype.kind == "f"}
    known = {name: x[has_value(found, name)] for name, x in scalars.items()}
    metrics = {name: float(x[-1]) for name, x in known.items() if len(x)}
    done = first + count
    return Progress(
        round=done,
        num_rounds=num_rounds,
        rounds_per_second=count / seconds,
        client_steps_per_second=steps / seconds,
        seconds_left=(num_rounds - done) * seconds / count
        if is_warm or done == num_rounds
        else math.nan,
        metrics=metrics,
    )
