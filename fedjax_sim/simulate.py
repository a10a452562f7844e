"""A whole run driven from the host: progress, early stop, checkpoints, resume."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_sim.base import Array, FederatedState, PyTree
from fedjax_sim.checkpoint import Checkpoints, checksum
from fedjax_sim.checks import check_count
from fedjax_sim.columns import check_evaluated, columns, has_value
from fedjax_sim.driver import WARM_SECONDS, Interrupt, Progress, compile_program, drive
from fedjax_sim.experiment import Experiment
from fedjax_sim.notebook import card, number, progress_bar, words
from fedjax_sim.randomness import as_key
from fedjax_sim.results import Results, Run, to_json, versions
from fedjax_sim.saving import SaveError, replace_file
from fedjax_sim.simulation import History
from fedjax_sim.traffic import Communication, communication
from fedjax_sim.trained import MODEL, save_trained, trained_params

_IDENTITY = "experiment.json"  # beside the checkpoints: what they are of


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
    """

    state: FederatedState
    history: History
    status: str
    exchange: Communication
    num_rounds: int

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


def reaches(name: str, target: float) -> Callable[[History], Array]:
    """A `stop` for `fs.simulate`: once the evaluated metric is at least (loss: at most) target.

    Args:
      name: of a value that the experiment's `evaluate` returns, as "test_accuracy". One whose
        name ends in "loss" is to come down to the target.
    """

    def stop(history: History) -> Array:
        found = history.evaluation
        if not isinstance(found, dict) or name not in found:
            given = ", ".join(found) if isinstance(found, dict) else "no names"
            raise ValueError(f"target must be of a value that evaluate returns; got {name!r}, "
                             f"and it returns {given}")  # fmt: skip
        value = found[name]
        met = value <= target if name.endswith("loss") else value >= target
        return history.evaluated & met

    stop.__name__ = f"{name} reaches {target:g}"  # what a resume compares
    return stop


def simulate(
    experiment: Experiment,
    key: Array | int,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    stop: Callable[[History], Array] | None = None,
    checkpoint_every: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    progress: bool = False,
    writers: Sequence[Writer] = (),
    configuration: Mapping[str, Any] | None = None,
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
      resume: go on from the last whole checkpoint in `out`; from the start if there is none. A
        run without `stop` may be given one; if a round done before has met it, none is added.
      stop: `History` of one round -> Bool[], in the graph: whether the run ends with this round;
        `fs.reaches` makes one.
      checkpoint_every: rounds between checkpoints; None saves every 15 s or so, less often where
        saving would take more than 2 % of the time. The end is saved in any case.
      on_progress: called after each chunk.
      progress: whether a bar of tqdm's is shown, in a terminal or a notebook (extra `notebook`).
      writers: given the scalars of each round.
      configuration: anything JSON-able that `resume` shall find the same, beside the key, the
        federation, the shapes of the state, R, `evaluate_every` and the versions.

    Raises:
      ValueError: what the experiment raises; if `out` holds checkpoints and `resume` is False,
        or those of another experiment (what differs).
      SaveError: (an OSError) if a checkpoint or the model cannot be written: what was saved before
        is as it was.
      Exception: what a writer or `on_progress` raises, once what was computed is saved in `out`.
        All writers are closed then; what closing them raises is a note on the first error. On
        every error of a run that has begun, `simulation` is what was computed.

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
        check_count("checkpoint_every", checkpoint_every, ", or None")
    if resume and out is None:
        raise ValueError("resume needs out, the folder to go on from; got None")
    if stop is not None and not callable(stop):
        raise ValueError(
            f"stop must be a function of a round's History, as fs.reaches makes one; got {stop!r}"
        )
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
            )  # fmt: skip
            tell(len(shown.history.evaluated), shown.status)
            return shown
    key, seed = as_key(key)
    experiment.check(key)
    state = experiment.start(key)
    check_evaluated(experiment.evaluate, state.params)
    exchange = communication(experiment.algorithm, state.params, experiment.data)
    checkpoints = None
    if out is not None:
        identity = _identity(experiment, key, state) | {
            "stop": getattr(stop, "__name__", None),
            "configuration": dict(configuration or {}),
        }
        checkpoints = open_checkpoints(Path(out), identity, resume)

    def step(inputs: PyTree, round: Array, carry: PyTree) -> tuple[PyTree, History]:
        return experiment.advance(key, round, carry)

    # Copies: the carry is donated, and an optimizer's state may hold an array twice or the user's.
    carry = jax.tree.map(lambda x: jnp.array(x, copy=True), (state.server, state.clients))
    mesh = getattr(experiment.execution, "mesh", None)
    if mesh is not None:
        carry = jax.device_put(carry, NamedSharding(mesh, PartitionSpec()))
    program = compile_program(step, (), carry, experiment.num_rounds, stop=stop, place=mesh)
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
        final = experiment.state_of(jnp.int32(driven.round), driven.carry)
        return Simulation(final, driven.history, driven.status, exchange, experiment.num_rounds)

    try:
        with Interrupt() as interrupt:
            driven = drive(program, (), carry, interrupt, on_chunk, checkpoints, checkpoint_every)
    except BaseException as error:
        _close(writers, error)
        if hasattr(error, "driven"):
            error.simulation = simulation(error.driven)  # type: ignore[attr-defined]
            if out is not None and not isinstance(error, SaveError):
                error.add_note(f"{error.driven.round} rounds are saved in {out}, to be resumed")
        raise
    found = simulation(driven)
    try:
        _close(writers, None)
        if out is not None:
            save_trained(
                Path(out) / MODEL, trained_params(found.state), configuration=configuration or {},
                seed=seed, round=driven.round, num_rounds=found.num_rounds, status=found.status,
            )  # fmt: skip
    except Exception as error:
        error.simulation = found  # type: ignore[attr-defined]
        raise
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


def open_checkpoints(folder: Path, identity: Mapping[str, Any], resume: bool) -> Checkpoints:
    """The folder's checkpoints, after comparing what they are of with what is to run.

    Raises:
      ValueError: if there are some and `resume` is False, or they are of something else.
      OSError: if the folder cannot be written.
    """
    checkpoints = Checkpoints(folder / "checkpoints")
    path = folder / _IDENTITY
    text = to_json(identity)
    if path.exists():
        if not resume:
            raise ValueError(
                f"out {folder} holds an experiment already; resume it, or name another folder"
            )
        there, here = json.loads(path.read_text()), json.loads(text)
        # A run may be given a criterion to stop by, which changes nothing of what is computed.
        given = there.get("stop") is None and here.get("stop") is not None
        if differs := differences({**there, "stop": here.get("stop")} if given else there, here):
            raise ValueError(
                f"out {folder} holds another experiment and cannot be resumed: {differs}"
            )
        if given:
            replace_file(path, lambda file: file.write(text))
    else:
        if checkpoints.numbers():
            raise ValueError(
                f"out {folder} holds checkpoints and no {_IDENTITY} that says of what; name "
                "another folder, or remove them"
            )
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(text))
    return checkpoints


def differences(there: Any, here: Any, name: str = "") -> str:
    """What differs between two JSON values, in words; "" if nothing does."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = dict.fromkeys([*there, *here])
        parts = [
            differences(there.get(k), here.get(k), f"{name}.{k}" if name else k) for k in names
        ]
        return "; ".join(part for part in parts if part)
    return (
        "" if there == here else f"{name} is {json.dumps(there)} there and {json.dumps(here)} here"
    )


def _identity(experiment: Experiment, key: Array, state: FederatedState) -> dict[str, Any]:
    data = experiment.data
    local = experiment.algorithm.local
    return {
        "key": [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()],
        "num_rounds": experiment.num_rounds,
        "evaluate_every": experiment.evaluate_every,
        "local": local._asdict(),
        "cohort": experiment.sampler.size,
        "nonfinite": experiment.nonfinite,
        "federation": checksum(*jax.tree.leaves(data)),
        "state": [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(state)],
        "first_params": checksum(*jax.tree.leaves(state.params)),
        "versions": versions(),
    }
