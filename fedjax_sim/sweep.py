"""Configurations times seeds, many in one compiled call, and a labelled table of them."""

import difflib
import inspect
import json
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_sim import grid as grids
from fedjax_sim.base import Array, FederatedState, PyTree
from fedjax_sim.checkpoint import Checkpoints, SaveError, checksum
from fedjax_sim.checks import check_count
from fedjax_sim.driver import CAPACITY, Interrupt, Program, compile_program, drive
from fedjax_sim.execution import automatic, packed
from fedjax_sim.execution.machine import cache_bytes, carry_bytes
from fedjax_sim.execution.sharded import Sharded
from fedjax_sim.experiment import Experiment
from fedjax_sim.grid import Grid
from fedjax_sim.local import Engine
from fedjax_sim.randomness import check_key
from fedjax_sim.results import Results, Run, columns, named, replace_file, to_json, versions
from fedjax_sim.simulate import differences
from fedjax_sim.simulation import History
from fedjax_sim.traffic import Communication, communication

_MOST = 32  # configurations side by side on a CPU device; more gained nothing
_MOST_ELSEWHERE = 256  # on an accelerator: not measured
_MOST_OF_A_FUNCTION = 8  # where the model's size is not known
_MANIFEST = "sweep.json"


class Swept(NamedTuple):
    """What is told after each chunk of a sweep.

    Attributes:
      runs: configurations times seeds that are through.
      num_runs: how many there are.
      client_steps_per_second: of this chunk; 0 if the outputs do not say.
      seconds_left: at this pace, compilation of groups to come not counted.
      says: the batch at work, in words.
    """

    runs: int
    num_runs: int
    client_steps_per_second: float
    seconds_left: float
    says: str


class Group(NamedTuple):
    """Configurations that share one program: the static values are the same.

    Attributes:
      static: name -> value, part of the program.
      traced: the names of what is an argument of it.
      indices: into the grid.
      side_by_side: configurations under one `vmap`.
      batches: each a call: for each device (seed index, indices into the grid).
      num_rounds: R of its experiments; 1 for a function that is no `fs.Experiment`.
      exchange: the bytes of one exchange, where known.
      fold: whether the configuration's index is folded into the key.
      facts: what a resume shall find the same.
    """

    static: dict[str, Any]
    traced: tuple[str, ...]
    indices: tuple[int, ...]
    side_by_side: int
    batches: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]
    num_rounds: int
    exchange: Communication | None
    fold: bool
    facts: dict[str, Any]


def sweep(
    experiment: Callable[..., Any],
    grid: Grid | Mapping[str, Sequence[Any]],
    keys: Array | Sequence[int],
    *,
    out: str | Path | None = None,
    resume: bool = False,
    static: Sequence[str] = (),
    side_by_side: int | None = None,
    memory_limit: float | None = None,
    common_random_numbers: bool = True,
    mesh: Mesh | None = None,
    checkpoint_every: int | None = None,
    on_progress: Callable[[Swept], None] | None = None,
    configuration: Mapping[str, Any] | None = None,
) -> Results:
    """Runs every configuration of a grid with every key, in as few programs as can be.

    Hyper-parameters that are floating numbers are arguments of a program (traced); integers,
    booleans, strings, None and functions are part of it (static), and each combination of those
    is compiled once. Configurations of one program run side by side under `vmap`, as many as the
    cache holds, dealt over the devices with their seeds.

    All configurations of one key have the same first model, cohorts and shuffles. Their
    differences are then due to the hyper-parameters (a difference of two means of paired runs
    varies less than that of unpaired ones), and they gather each example once for all.

    A configuration that diverges is marked (`Run.diverged`) and costs no other its result.

    Args:
      experiment: `experiment(**hyper) -> fs.Experiment`, or `experiment(key, **hyper) -> pytree`
        of arrays, traceable by the hyper-parameters that are traced. The first is saved by the
        round, the second when a batch is through.
      grid: of `fs.grid`, or a dict name -> values for their product.
      keys: typed keys [S], or integers, each a seed for `jax.random.key`.
      out: a folder for results as they come; None for none.
      resume: go on with what is in `out`.
      static: names of floating hyper-parameters to compile in all the same.
      side_by_side: configurations under one `vmap`; None chooses.
      memory_limit: bytes that a call may hold; None for half of what the machine has free.
      common_random_numbers: False folds the configuration's index into the key. Cohorts then
        differ, control flow is batched, and one configuration runs at a time.
      mesh: of one axis, over whose devices runs are dealt; None for all local devices.
      checkpoint_every: rounds between checkpoints within a batch; None as in `fs.simulate`.
      on_progress: called after each chunk.
      configuration: anything JSON-able that `resume` shall find the same.

    Returns:
      The runs, by configuration and seed. After a SIGINT or SIGTERM those computed until then,
      the last ones perhaps with fewer rounds than asked for.

    Raises:
      ValueError: for a name that `experiment` does not take (and the nearest it does); a traced
        axis that it cannot take (which axis, and what making it static would mean); a
        configuration that a factory refuses; a sharded strategy; results in `out` that are not
        to be resumed, or of another sweep (what differs).
      SaveError: (an OSError) if `out` cannot be written: what was saved is as it was.

    >>> import fedjax_sim as fs, jax, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones(3), "y": np.ones(3)}] * 4)
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> def experiment(lr):
    ...     algorithm = fs.fedavg(loss_fn, optax.sgd(lr), fs.LocalTraining())
    ...     return fs.Experiment(algorithm, 0.0, data, fs.sampling.uniform(2), num_rounds=3,
    ...                          evaluate=lambda w: {"error": abs(w - 1)})
    >>> results = fs.sweep(experiment, {"lr": [0.1, 0.4]}, keys=[0, 1])
    >>> results.best("error", lowest=True).configuration
    {'lr': 0.4}
    """
    grid = grid if isinstance(grid, Grid) else grids.product(**grid)
    labels, keys = _keys(keys)
    opaque = _takes_key(experiment)
    _check_names(experiment, grid, static, opaque)
    if side_by_side is not None:
        check_count("side_by_side", side_by_side, ", or None")
        if side_by_side > 1 and not common_random_numbers:
            raise ValueError(
                f"side_by_side must be 1 without common random numbers; got {side_by_side}"
            )
    if checkpoint_every is not None:
        check_count("checkpoint_every", checkpoint_every, ", or None")
    if memory_limit is not None and not memory_limit > 0:
        raise ValueError(f"memory_limit must be positive; got {memory_limit}")
    if resume and out is None:
        raise ValueError("resume needs out, the folder to go on from; got None")
    mesh = Mesh(np.array(jax.local_devices()), ("runs",)) if mesh is None else mesh
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh must have one axis; got {mesh.axis_names}")

    store = None if out is None else _Store(Path(out))
    widths = None if store is None or not resume else store.widths()
    limit = memory_limit if memory_limit is not None else _free_memory() / 2
    groups = _plan(
        experiment, grid, keys, mesh.size, static, opaque, common_random_numbers,
        side_by_side if widths is None else widths, limit,
    )  # fmt: skip
    if store is not None:
        identity = {
            "names": list(grid.names),
            "grid": [[_said(value) for value in one.values()] for one in grid],
            "seeds": labels,
            "keys": np.asarray(jax.random.key_data(keys)).tolist(),
            "common_random_numbers": common_random_numbers,
            "devices": mesh.size,
            "groups": [group.facts for group in groups],
            "configuration": dict(configuration or {}),
            "versions": versions(),
        }
        store.open(identity, [group.side_by_side for group in groups], resume)

    runs: dict[tuple[int, int], Run] = {}
    teller = _Teller(on_progress, len(grid) * len(labels))

    def results() -> Results:
        found = Results(tuple(runs[place] for place in sorted(runs)))
        if store is not None and runs:
            found.save(store.folder, {"kind": "sweep", "configuration": dict(configuration or {}),
                                      "num_runs": len(grid) * len(labels)})  # fmt: skip
        return found

    number = 0
    with Interrupt() as interrupt:
        for group in groups:
            compiled: _Compiled | None = None
            for batch in group.batches:
                columns_ = None if store is None else store.load(number)
                if columns_ is None:
                    if interrupt.received is not None:
                        return results()
                    if compiled is None:
                        compiled = _Compiled(experiment, grid, group, keys, mesh, opaque, limit)
                    checkpoints = None if store is None else store.checkpoints(number)
                    columns_, whole = compiled.run(
                        batch, interrupt, teller, checkpoints, checkpoint_every
                    )
                    if store is not None and whole:
                        store.save(number, columns_)
                places = [(i, seed) for seed, indices in batch for i in indices]
                for row, (index, seed) in enumerate(places):
                    # Padding repeats a run, which is then there already.
                    runs.setdefault((index, seed), Run(
                        grid.configurations[index], labels[seed],
                        {k: x[row] for k, x in columns_["rounds"].items()},
                        {k: x[row].item() for k, x in columns_["values"].items()},
                        group.num_rounds,
                    ))  # fmt: skip
                teller.through(len(runs))
                number += 1
    return results()


class _Compiled:
    """A group's program, and how its batches are run."""

    def __init__(
        self,
        experiment: Callable[..., Any],
        grid: Grid,
        group: Group,
        keys: Array,
        mesh: Mesh,
        opaque: bool,
        limit: float,
    ) -> None:
        self.grid, self.group, self.opaque, self.limit = grid, group, opaque, limit
        self.experiment, self.mesh = experiment, mesh
        self.key_data, self.impl = np.asarray(jax.random.key_data(keys)), jax.random.key_impl(keys)
        self.program: Program | None = None
        dealt = PartitionSpec(*mesh.axis_names)
        self.sharding = NamedSharding(mesh, dealt)
        self.start = jax.jit(
            jax.shard_map(
                lambda inputs: jax.tree.map(
                    lambda x: x[None], self._start(jax.tree.map(lambda x: x[0], inputs))
                ),
                mesh=mesh, in_specs=dealt, out_specs=dealt, check_vma=False,
            )
        )  # fmt: skip

    def _made(self, hyper: dict[str, Array], data: Array) -> tuple[Any, Array]:
        """What `experiment` makes of one configuration, inside the trace."""
        key = jax.random.wrap_key_data(data, impl=self.impl)
        return _build(self.experiment, {**self.group.static, **hyper}, key, self.opaque), key

    def _experiment(self, hyper: dict[str, Array], data: Array) -> tuple[Experiment, Array]:
        made, key = self._made(hyper, data)
        if made.execution is None:
            # Side by side, configurations share the examples of a step and multiply them in one
            # product; under `vmapped` each client would have a product of its own.
            strategy = packed(1) if self.group.side_by_side > 1 else automatic()
            made = made._replace(execution=strategy)
        return made, key

    def _start(self, inputs: PyTree) -> PyTree:
        if self.opaque:
            return ()

        def one(hyper: dict[str, Array], data: Array) -> PyTree:
            made, key = self._experiment(hyper, data)
            state = made.start(key)
            return state.server, state.clients

        return self._side_by_side(one, (0, None), *inputs)

    def _step(self, inputs: PyTree, round: Array, carry: PyTree) -> tuple[PyTree, PyTree]:
        if self.opaque:
            hyper, data = inputs
            return (), self._side_by_side(lambda h, d: self._made(h, d)[0], (0, None), hyper, data)

        # The round is no part of what is batched, so neither are cohorts and control flow.
        def one(hyper: dict[str, Array], data: Array, round: Array, carry: PyTree) -> PyTree:
            made, key = self._experiment(hyper, data)
            server, clients = carry
            state = FederatedState(server, clients, round, made.algorithm.params)
            state, row = made.next_round(key, state)
            return (state.server, state.clients), row

        return self._side_by_side(one, (0, None, None, 0), *inputs, round, carry)

    def _side_by_side(
        self, function: Callable[..., PyTree], axes: tuple[int | None, ...], *trees: PyTree
    ) -> PyTree:
        if self.group.side_by_side > 1:
            return jax.vmap(function, in_axes=axes)(*trees)
        alone = (  # with no axis, which would keep XLA from some rewrites
            tree if axis is None else jax.tree.map(lambda x: x[0], tree)
            for tree, axis in zip(trees, axes, strict=True)
        )
        return jax.tree.map(lambda x: jnp.asarray(x)[None], function(*alone))

    def _inputs(self, batch: tuple[tuple[int, tuple[int, ...]], ...]) -> PyTree:
        configurations = [[self.grid.configurations[i] for i in indices] for _, indices in batch]
        wide = jnp.result_type(float)
        hyper = {
            name: np.array([[one[name] for one in row] for row in configurations], wide)
            for name in self.group.traced
        }
        seeds = np.array([seed for seed, _ in batch])
        data = self.key_data[seeds]
        if self.group.fold:  # numbers of its own for every configuration
            folded = [
                jax.random.fold_in(jax.random.wrap_key_data(one, impl=self.impl), indices[0])
                for one, (_, indices) in zip(data, batch, strict=True)
            ]
            data = np.stack([np.asarray(jax.random.key_data(key)) for key in folded])
        return jax.device_put((hyper, data), self.sharding)

    def run(
        self,
        batch: tuple[tuple[int, tuple[int, ...]], ...],
        interrupt: Interrupt,
        teller: "_Teller",
        checkpoints: Checkpoints | None,
        checkpoint_every: int | None,
    ) -> tuple[dict[str, dict[str, np.ndarray]], bool]:
        """The batch's columns [runs, ...] by kind, and whether all rounds are done."""
        inputs = self._inputs(batch)
        carry = () if self.opaque else self.start(inputs)
        rounds = 1 if self.opaque else self.group.num_rounds
        if self.program is None:
            self.program = compile_program(self._step, inputs, carry, rounds, self.mesh)
            if self.program.memory > self.limit:
                raise ValueError(
                    f"memory_limit must hold a call; got {self.limit / 1e6:,.0f} MB, and "
                    f"{self.group.side_by_side} configurations side by side hold "
                    f"{self.program.memory / 1e6:,.0f} MB: raise it, or give a smaller side_by_side"
                )
        width = self.group.side_by_side
        runs = len(batch) * width

        def on_chunk(first: int, rows: PyTree, seconds: float) -> None:
            done = 1 if self.opaque else (first + rows.evaluated.shape[1]) / rounds
            steps = 0.0 if self.opaque else float(np.sum(rows.rounds.client_steps))
            teller.chunk(self.group, runs, done, steps, seconds)

        driven = drive(
            self.program, inputs, carry, interrupt, on_chunk, checkpoints, checkpoint_every
        )
        found: dict[str, dict[str, np.ndarray]] = {"rounds": {}, "values": {}}
        if self.opaque:
            # [devices, 1, width, ...]
            rows = jax.tree.map(lambda x: x[:, 0].reshape(runs, *x.shape[3:]), driven.history)
            by_kind = [_split(jax.tree.map(lambda x, i=i: x[i], rows)) for i in range(runs)]
        else:
            # [devices, rounds, width, ...]
            rows = jax.tree.map(
                lambda x: np.moveaxis(x, 2, 1).reshape(runs, x.shape[1], *x.shape[3:]),
                driven.history,
            )
            by_kind = [
                {"rounds": columns(jax.tree.map(lambda x, i=i: x[i], rows), self.group.exchange),
                 "values": {}}
                for i in range(runs)
            ]  # fmt: skip
        for kind, into in found.items():
            for name in by_kind[0][kind]:
                into[name] = np.stack([one[kind][name] for one in by_kind])
        return found, driven.round == rounds


def _split(result: PyTree) -> dict[str, dict[str, np.ndarray]]:
    """One run's result of a function of one's own: arrays by round, and single values."""
    if isinstance(result, History):
        return {"rounds": columns(result), "values": {}}
    found = named(result, "value")
    rounds = {name: x for name, x in found.items() if x.ndim}
    lengths = {name: len(x) for name, x in rounds.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            "experiment must return single values and arrays with one length, the rounds; got "
            f"lengths {lengths}"
        )
    return {"rounds": rounds, "values": {name: x for name, x in found.items() if not x.ndim}}


class _Store:
    """A sweep's folder: what it is of, and each batch's columns once they are whole."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.batches = folder, folder / "batches"

    def widths(self) -> list[int] | None:
        path = self.folder / _MANIFEST
        return json.loads(path.read_text())["side_by_side"] if path.exists() else None

    def open(self, identity: dict[str, Any], widths: list[int], resume: bool) -> None:
        path = self.folder / _MANIFEST
        here = json.loads(to_json({**identity, "side_by_side": widths}))
        if path.exists():
            if not resume:
                raise ValueError(
                    f"out {self.folder} holds a sweep already; resume it, or name another folder"
                )
            differs = differences(json.loads(path.read_text()), here)
            if differs:
                raise ValueError(
                    f"out {self.folder} holds another sweep and cannot be resumed: {differs}"
                )
            return
        self.batches.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(to_json(here)))

    def checkpoints(self, number: int) -> Checkpoints:
        return Checkpoints(self.batches / f"{number:06d}")

    def load(self, number: int) -> dict[str, dict[str, np.ndarray]] | None:
        """A batch's columns; None if they are not there, or damaged."""
        path = self.batches / f"{number:06d}.npz"
        if not path.exists():
            return None
        found: dict[str, dict[str, np.ndarray]] = {"rounds": {}, "values": {}}
        try:
            with np.load(path, allow_pickle=False) as archive:
                for name in archive.files:  # reading checks each one's sum
                    kind, _, column = name.partition(".")
                    found[kind][column] = archive[name]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            warnings.warn(f"{path} is damaged and is computed again ({error})", stacklevel=2)
            return None
        return found

    def save(self, number: int, found: dict[str, dict[str, np.ndarray]]) -> None:
        path = self.batches / f"{number:06d}.npz"
        arrays = {f"{kind}.{name}": x for kind, some in found.items() for name, x in some.items()}
        try:
            replace_file(path, lambda file: np.savez(file, **arrays))
        except OSError as error:
            raise SaveError(f"batch {number} was not saved in {path}: {error.strerror}") from error
        shutil.rmtree(self.checkpoints(number).folder, ignore_errors=True)


class _Teller:
    """Keeps the pace, and tells it."""

    def __init__(self, on_progress: Callable[[Swept], None] | None, num_runs: int) -> None:
        self.on_progress, self.num_runs = on_progress, num_runs
        self.before, self.worked, self.seconds, self.partly = 0, 0.0, 0.0, 0.0

    def chunk(self, group: Group, runs: int, share: float, steps: float, seconds: float) -> None:
        fresh = runs * share - self.partly
        self.partly = runs * share
        if not seconds:
            return
        self.worked, self.seconds = self.worked + fresh, self.seconds + seconds
        if self.on_progress is not None:
            left = max(self.num_runs - self.before - self.partly, 0.0)
            says = ", ".join(f"{name}={_said(value)}" for name, value in group.static.items())
            self.on_progress(Swept(
                runs=min(self.before + int(self.partly), self.num_runs),
                num_runs=self.num_runs,
                client_steps_per_second=steps / seconds,
                seconds_left=left * self.seconds / max(self.worked, 1e-9),
                says=says,
            ))  # fmt: skip

    def through(self, runs: int) -> None:
        self.before, self.partly = runs, 0.0


def _plan(
    experiment: Callable[..., Any],
    grid: Grid,
    keys: Array,
    devices: int,
    static: Sequence[str],
    opaque: bool,
    common: bool,
    side_by_side: int | list[int] | None,
    limit: float,
) -> list[Group]:
    """The groups, each with its batches; refuses what cannot be traced."""
    traced = tuple(
        name for name in grid.names
        if name not in static and _is_traced([one[name] for one in grid])
    )  # fmt: skip
    members: dict[str, list[int]] = {}
    for i, one in enumerate(grid):
        fixed = {name: _said(value) for name, value in one.items() if name not in traced}
        members.setdefault(repr(fixed), []).append(i)
    groups = []
    for place, indices in enumerate(members.values()):
        first = grid.configurations[indices[0]]
        fixed = {name: value for name, value in first.items() if name not in traced}
        _check_traces(experiment, first, traced, keys[0], opaque)
        num_rounds, exchange, most = 1, None, _MOST
        facts: Any = {}
        if not opaque:
            made = _build(experiment, first, keys[0], opaque)
            state = made.check(keys[0])
            if isinstance(made.execution, Sharded):
                raise ValueError(
                    "execution must not be sharded in a sweep, which deals whole configurations "
                    "over the devices; leave it None, or give the inner strategy"
                )
            for name in traced:  # each value once: a factory may refuse it
                for value in dict.fromkeys(grid.configurations[i][name] for i in indices):
                    _build(experiment, {**first, name: value}, keys[0], opaque)
            num_rounds = made.num_rounds
            exchange = communication(made.algorithm, state.params, made.data)
            most = _width(made, state, keys[0], devices, limit)
            facts = {"num_rounds": num_rounds, "federation": checksum(*jax.tree.leaves(made.data)),
                     "first_params": checksum(*jax.tree.leaves(state.params))}  # fmt: skip
        else:
            most = _MOST_OF_A_FUNCTION
        if isinstance(side_by_side, list):
            most = side_by_side[place]
        elif side_by_side is not None:
            most = side_by_side
        if not common:
            most = 1
        # As few blocks as fit, but one for each device and seed if there are enough.
        least = -(-devices // len(keys))
        blocks = max(-(-len(indices) // most), min(least, len(indices)))
        width = -(-len(indices) // blocks)
        units = []
        for b in range(0, len(indices), width):
            block = indices[b : b + width]
            block = [*block, *[block[-1]] * (width - len(block))]
            units += [(seed, tuple(block)) for seed in range(len(keys))]
        units += [units[-1]] * (-len(units) % devices)
        batches = tuple(tuple(units[i : i + devices]) for i in range(0, len(units), devices))
        groups.append(
            Group(fixed, traced, tuple(indices), width, batches, num_rounds, exchange, not common,
                  facts)
        )  # fmt: skip
    return groups


def _width(made: Experiment, state: FederatedState, key: Array, devices: int, limit: float) -> int:
    """How many configurations fit a core's cache together, and the memory."""
    message = made.algorithm.broadcast(state.server, state.round)
    engine = Engine(made.algorithm, made.data, key, message)
    one = carry_bytes(engine, jax.tree.map(lambda x: x[:1], state.clients))
    row = jax.eval_shape(lambda s: made._replace(execution=packed(1)).next_round(key, s)[1], state)
    held = 3 * _bytes(state) + min(made.num_rounds, CAPACITY) * _bytes(row)
    if jax.default_backend() == "cpu":
        most = min(_MOST, 2 * cache_bytes() // one)
    else:
        most = _MOST_ELSEWHERE
    return max(1, min(most, int(limit / (devices * held))))


def _bytes(tree: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _build(experiment: Callable[..., Any], hyper: dict[str, Any], key: Array, opaque: bool) -> Any:
    made = experiment(key, **hyper) if opaque else experiment(**hyper)
    if not opaque and not isinstance(made, Experiment):
        raise ValueError(
            "experiment must return an fs.Experiment, or take the key as its first argument and "
            f"return its results; got {type(made).__name__}"
        )
    return made


_TRACER_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def _check_traces(
    experiment: Callable[..., Any],
    first: dict[str, Any],
    traced: tuple[str, ...],
    key: Array,
    opaque: bool,
) -> None:
    """Calls `experiment` with traced hyper-parameters, and says which it cannot take."""

    def fails(names: Sequence[str]) -> str | None:
        def call(hyper: dict[str, Array]) -> Array:
            made = _build(experiment, {**first, **hyper}, key, opaque)
            return jnp.zeros(()) if not opaque else made

        try:
            jax.eval_shape(call, {name: jnp.asarray(first[name], float) for name in names})
        except _TRACER_ERRORS as error:
            return str(error).splitlines()[0]
        return None

    if fails(traced) is None:
        return
    wrong = [name for name in traced if fails([name]) is not None] or list(traced)
    said = ", ".join(wrong)
    raise ValueError(
        f"grid axis {said} cannot be traced: {fails(wrong)} To compile it in, one group and one "
        f"compilation for each of its values, give static={tuple(wrong)!r}"
    )


def _takes_key(experiment: Callable[..., Any]) -> bool:
    if not callable(experiment) or isinstance(experiment, Experiment):
        raise ValueError(
            "experiment must be a function of the hyper-parameters; got "
            f"{type(experiment).__name__}"
        )
    return next(iter(inspect.signature(experiment).parameters), None) == "key"


def _check_names(
    experiment: Callable[..., Any], grid: Grid, static: Sequence[str], opaque: bool
) -> None:
    parameters = list(inspect.signature(experiment).parameters.values())[opaque:]
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    taken = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for name in grid.names:
        if name not in taken and not open_ended:
            near = difflib.get_close_matches(name, taken, 1)
            raise ValueError(
                f"grid has {name!r}, which experiment does not take"
                + (f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(taken)}")
            )
    missing = [p.name for p in parameters if p.default is p.empty and p.name in taken
               and p.name not in grid.names]  # fmt: skip
    if missing:
        raise ValueError(f"grid must give {', '.join(missing)}, which experiment has no default of")
    for name in static:
        if name not in grid.names:
            raise ValueError(
                f"static must name axes of the grid, {', '.join(grid.names)}; got {name!r}"
            )


def _is_traced(values: Sequence[Any]) -> bool:
    def number(x: Any) -> bool:
        return isinstance(x, (int, float)) and not isinstance(x, bool)

    return all(number(x) for x in values) and any(isinstance(x, float) for x in values)


def _said(value: Any) -> Any:
    """A value as the table and the manifest have it: functions by their names."""
    if isinstance(value, (int, float, str)) or value is None:
        return value
    return getattr(value, "__name__", None) or repr(value)


def _keys(keys: Array | Sequence[int]) -> tuple[list[int], Array]:
    if isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        if keys.ndim != 1 or not len(keys):
            raise ValueError(f"keys must be an array [S] of keys; got shape {keys.shape}")
        check_key(keys[0])
        return list(range(len(keys))), keys
    whole = hasattr(keys, "__iter__") and all(
        isinstance(k, (int, np.integer)) and not isinstance(k, bool) for k in keys
    )
    seeds = [int(k) for k in keys] if whole else []
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(
            "keys must be typed keys [S], or different whole numbers, at least one; got "
            f"{keys!r} (as keys=range(4))"
        )
    return seeds, jnp.stack([jax.random.key(seed) for seed in seeds])


def _free_memory() -> float:
    """Bytes that can be had, as the device or Linux tells; 4 GiB elsewhere."""
    said = jax.local_devices()[0].memory_stats()
    if said and "bytes_limit" in said:
        return float(said["bytes_limit"] - said.get("bytes_in_use", 0))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (line,) = [x for x in lines if x.startswith("MemAvailable:")]
        return float(line.split()[1]) * 1024
    except (OSError, ValueError):
        return 4 * 2**30
