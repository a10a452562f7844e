"""A group's compiled program, which runs its batches: some configurations on each device."""

import math
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_sim.core.graphs import operations
from fedjax_sim.core.history import History
from fedjax_sim.core.trees import num_bytes
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.execution import automatic, packed
from fedjax_sim.grid import Grid
from fedjax_sim.host.checkpoints import Checkpoints
from fedjax_sim.host.driver import Interrupt, drive
from fedjax_sim.host.keeping import better, first_best
from fedjax_sim.host.program import Program, Traced, compile_program, trace_step
from fedjax_sim.results.columns import columns, named
from fedjax_sim.sweeps.models import Model, on_host
from fedjax_sim.sweeps.plan import Batch, Group, build
from fedjax_sim.training.experiment import Experiment

# kind ("rounds" or "values") -> column -> [runs, ...]
Columns = dict[str, dict[str, np.ndarray]]
# (share of the batch's rounds done, client-steps of the chunk, its seconds)
Tell = Callable[[float, float, float], None]


class Compiled:
    """A group's program; it is compiled with the first batch that is run, or ahead of it.

    Attributes:
      ahead: of a thread that prepares it; `run` waits for it.
    """

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
        self.traced: Traced | None = None
        self.ahead: Future[None] | None = None
        self.keeps_best = group.keep is not None and group.keep.metric is not None
        dealt = PartitionSpec(*mesh.axis_names)
        self.sharding = NamedSharding(mesh, dealt)
        self.start = jax.jit(
            jax.shard_map(
                lambda inputs: jax.tree.map(
                    lambda x: x[None], self._start(jax.tree.map(lambda x: x[0], inputs))
                ),
                mesh=mesh,
                in_specs=dealt,
                out_specs=dealt,
                check_vma=False,
            )
        )
        # `prepare` compiles it, so that a thread pays for it, and not the first batch.
        self.begin: Callable[[PyTree], PyTree] = self.start

    def _made(self, hyper: dict[str, Array], data: Array) -> tuple[Any, Array]:
        """The experiment of one configuration, or its results, inside the trace; and its key."""
        key = jax.random.wrap_key_data(data, impl=self.impl)
        return build(self.experiment, {**self.group.static, **hyper}, key, self.opaque), key

    def _experiment(self, hyper: dict[str, Array], data: Array) -> tuple[Experiment, Array]:
        experiment, key = self._made(hyper, data)
        if experiment.execution is None:
            # Side by side, configurations share the examples of a step and multiply them in one
            # product; under `vmapped` each client would have a product of its own.
            strategy = packed(1) if self.group.side_by_side > 1 else automatic()
            experiment = experiment._replace(execution=strategy)
        return experiment, key

    def _start(self, inputs: PyTree) -> PyTree:
        if self.opaque:
            return ()

        def start(hyper: dict[str, Array], data: Array) -> PyTree:
            experiment, key = self._experiment(hyper, data)
            carry = experiment.begin(key)
            if not self.keeps_best:
                return carry
            return carry, first_best(experiment.state_of(jnp.int32(0), carry))

        return self._side_by_side(start, (0, None), *inputs)

    def _step(self, inputs: PyTree, round: Array, carry: PyTree) -> tuple[PyTree, PyTree]:
        if self.opaque:
            hyper, data = inputs
            return (), self._side_by_side(lambda h, d: self._made(h, d)[0], (0, None), hyper, data)

        # The round's number is not batched, and so neither are cohorts and control flow.
        def advance(hyper: dict[str, Array], data: Array, round: Array, carry: PyTree) -> PyTree:
            experiment, key = self._experiment(hyper, data)
            if not self.keeps_best:
                return experiment.advance(key, round, carry)
            assert self.group.keep is not None
            carry, best = carry
            carry, row = experiment.advance(key, round, carry)
            best = better(self.group.keep, best, experiment.state_of(round + 1, carry), row)
            return (carry, best), row

        return self._side_by_side(advance, (0, None, None, 0), *inputs, round, carry)

    def _side_by_side(
        self, function: Callable[..., PyTree], axes: tuple[int | None, ...], *trees: PyTree
    ) -> PyTree:
        if self.group.side_by_side > 1:
            width = self.group.side_by_side
            return jax.vmap(function, in_axes=axes, axis_size=width)(*trees)
        alone = (  # a batch axis of length 1 would keep XLA from some rewrites
            tree if axis is None else jax.tree.map(lambda x: x[0], tree)
            for tree, axis in zip(trees, axes, strict=True)
        )
        return jax.tree.map(lambda x: jnp.asarray(x)[None], function(*alone))

    def _inputs(self, batch: Batch) -> PyTree:
        configurations = [[self.grid.configurations[i] for i in indices] for _, indices in batch]
        wide = jnp.result_type(float)
        hyper = {
            name: np.array(
                [[configuration[name] for configuration in row] for row in configurations], wide
            )
            for name in self.group.traced
        }
        seeds = np.array([seed for seed, _ in batch])
        data = self.key_data[seeds]
        if self.group.fold:  # every configuration gets random numbers of its own
            folded = [
                jax.random.fold_in(jax.random.wrap_key_data(key_data, impl=self.impl), indices[0])
                for key_data, (_, indices) in zip(data, batch, strict=True)
            ]
            data = np.stack([np.asarray(jax.random.key_data(key)) for key in folded])
        return jax.device_put((hyper, data), self.sharding)

    def prepare(self, batch: Batch, most_constants: float = math.inf) -> None:
        """Traces and compiles what is not yet; holds no state of a run.

        Args:
          most_constants: bytes of the arrays that the program closes over, above which it is traced
            and not compiled, because it would hold copies of them.

        Raises:
          ValueError: if what the sweep calls is itself dealt over devices, or a call holds more
            than the limit.
        """
        if self.program is not None:
            return
        inputs = self._inputs(batch)
        carry = self._carry(inputs)
        if self.traced is None:
            self.traced = trace_step(self._step, inputs, carry, self.mesh)
            if "shard_map" in operations(self.traced.step):
                raise ValueError(
                    "mesh must be None in what a sweep calls, which deals whole configurations "
                    "over the devices: of fs.evaluator, fs.evaluate, or a shard_map of your own"
                )
        if self.mesh.size * num_bytes(self.traced.step.consts) > most_constants:
            return
        rounds = self.group.num_rounds or 1
        program = compile_program(self.traced, inputs, carry, rounds, self.mesh)
        if program.memory > self.limit:
            raise ValueError(
                f"memory_limit must hold a call; got {self.limit / 1e6:,.0f} MB, and "
                f"{self.group.side_by_side} configurations side by side hold "
                f"{program.memory / 1e6:,.0f} MB: raise it, or give a smaller side_by_side"
            )
        if not self.opaque:
            self.begin = self.start.lower(inputs).compile()
        self.program, self.traced = program, None

    def _carry(self, inputs: PyTree) -> PyTree:
        """The shapes of a batch's carry before round 0, and where it is."""
        if self.opaque:
            return ()
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=self.sharding, weak_type=x.weak_type
            ),
            jax.eval_shape(self.start, inputs),
        )

    def run(
        self,
        batch: Batch,
        interrupt: Interrupt,
        tell: Tell,
        checkpoints: Checkpoints | None,
        checkpoint_every: int | None,
    ) -> tuple[Columns, list[Model]] | None:
        """Runs a batch; returns its columns and the models to keep.

        After an interrupt the columns have fewer rounds; if there is no round, it returns None.
        """
        while self.ahead is not None and wait([self.ahead], timeout=0.1).not_done:
            if interrupt.received is not None:
                return None
        self.prepare(batch)
        assert self.program is not None
        inputs, rounds = self._inputs(batch), self.group.num_rounds or 1
        carry = () if self.opaque else self.begin(inputs)
        width = self.group.side_by_side
        runs = len(batch) * width

        def on_chunk(first: int, rows: PyTree, seconds: float) -> None:
            share_done = 1 if self.opaque else (first + rows.evaluated.shape[1]) / rounds
            steps = 0.0 if self.opaque else float(np.sum(rows.rounds.counts()["client_steps"]))
            tell(share_done, steps, seconds)

        driven = drive(
            self.program,
            inputs,
            carry,
            interrupt=interrupt,
            on_chunk=on_chunk,
            checkpoints=checkpoints,
            checkpoint_every=checkpoint_every,
        )
        if not driven.round:
            return None
        batch_columns: Columns = {"rounds": {}, "values": {}}
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
                {
                    "rounds": columns(jax.tree.map(lambda x, i=i: x[i], rows), self.group.exchange),
                    "values": {},
                }
                for i in range(runs)
            ]
        for kind, into in batch_columns.items():
            for name in by_kind[0][kind]:
                stacked = np.stack([run_columns[kind][name] for run_columns in by_kind])
                # NumPy's files cannot hold bfloat16 and other types of ml_dtypes.
                into[name] = stacked.astype(np.float32) if stacked.dtype.kind == "V" else stacked
        return batch_columns, self._models(driven.carry)

    def _models(self, carry: PyTree) -> list[Model]:
        if self.group.keep is None:
            return []
        configuration = self.grid.configurations[self.group.indices[0]]
        key = jax.random.wrap_key_data(self.key_data[0], impl=self.impl)
        experiment = build(self.experiment, configuration, key, self.opaque)
        return on_host(self.group.keep, experiment, carry)


def _split(result: PyTree) -> Columns:
    """The result of a user's function for one run, as arrays by round and single values."""
    if isinstance(result, History):
        return {"rounds": columns(result), "values": {}}
    leaves = named(result, "value")
    rounds = {name: x for name, x in leaves.items() if x.ndim}
    lengths = {name: len(x) for name, x in rounds.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            "experiment must return single values and arrays with one length, the rounds; got "
            f"lengths {lengths}"
        )
    return {"rounds": rounds, "values": {name: x for name, x in leaves.items() if not x.ndim}}
