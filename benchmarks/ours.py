"""fedjax_sim on the jobs: `python -m benchmarks.ours JOB SETTING`."""

import time
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

import fedjax_sim as fs
from benchmarks.jobs import ALPHA, CHARACTERS, CLASSES, HEAD_EPOCHS, HIDDEN, LAM, Job, Weights
from benchmarks.worker import Worker, serve

# Model -> configurations of a sweep side by side on one device, as `fs.sweep` chooses; others run
# one by one.
SIDE_BY_SIDE = {"lr": 32}


@cache  # the devices of `cores` are made once
def execution(setting: str) -> Any:
    """What a setting of the command line stands for."""
    name, _, lanes = setting.partition(":")
    if name == "packed":
        return fs.execution.packed(None if lanes == "None" else int(lanes))
    if name == "vmapped":
        return fs.execution.vmapped()
    if hasattr(fs.execution, "sharded") and hasattr(fs.execution, "cores"):
        return fs.execution.sharded(fs.execution.cores())
    return None  # make_round's own choice


def make_model(job: Job) -> fs.models.Model:
    if job.model == "lstm":
        return fs.models.character_lstm(CHARACTERS)
    if job.model == "cnn":
        return fs.models.cnn((28, 28, 1), CLASSES)
    make = {"lr": fs.models.logistic_regression, "2nn": fs.models.two_nn}[job.model]
    return make((job.features,), CLASSES)


class Ours(Worker):
    versions = ("jax", "jaxlib", "optax", "flax")
    compiles = True

    def __init__(self, job: Job, setting: str) -> None:
        super().__init__(job, setting)
        self.execution = execution(setting)  # before anything else uses JAX
        x, y = job.examples()
        ids = np.repeat(np.arange(len(job.sizes())), job.sizes())
        self.data = fs.FederatedData.from_arrays({"x": x, "y": y}, ids)
        model = make_model(job)
        self.loss_fn = fs.models.cross_entropy(model.apply)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        self.params = to_flax(shapes, job.weights())
        self.key = jax.random.key(0)
        self.mesh = getattr(self.execution, "mesh", None)
        if self.mesh is not None:  # else the examples are copied at every call
            arrays = self.data, self.params, self.key
            self.data, self.params, self.key = fs.execution.replicate(arrays, self.mesh)
            if job.sweep > 1:  # the configurations are dealt, not the cohort
                self.execution = fs.execution.packed(1)
        self.rates, self.rate = job.learning_rates(), job.learning_rate
        self.compiled: dict[Any, Any] = {}
        self.compile_seconds: dict[str, float] = {}

    def experiment(self, shuffle: bool, num_rounds: int, loss_fn: Any = None) -> Any:
        """A function of (learning rate, data, cohorts): the rounds, for one configuration."""
        job = self.job
        local = fs.LocalTraining(job.epochs, job.batch_size, shuffle=shuffle)

        def run(rate: jax.Array, data: Any, cohorts: jax.Array) -> Any:
            algorithm = self.algorithm(loss_fn or self.loss_fn, rate, local)
            round_fn = fs.make_round(algorithm, execution=self.execution)
            state = fs.init(algorithm, self.params, data)
            if job.sampled and shuffle:
                sampler = fs.sampling.uniform(job.m)
                state, history = fs.run(round_fn, self.key, state, data, sampler, num_rounds)
                return (state.params, None), history.rounds.client_steps

            def body(state: Any, ids: jax.Array) -> Any:
                state, metrics = round_fn(self.key, state, data, fs.Cohort(ids))
                return state, metrics.client_steps

            state, steps = jax.lax.scan(body, state, cohorts)
            # What clients keep is compared, and its mean over all K of them is not timed.
            return (state.params, None if shuffle else kept_by(algorithm, state, data)), steps

        return run

    def algorithm(self, loss_fn: Any, rate: Any, local: fs.LocalTraining) -> Any:
        """The job's, with its numbers."""
        if self.job.algorithm == "scaffold":
            return fs.scaffold(loss_fn, rate, local)
        if self.job.algorithm == "apfl":
            return fs.apfl(loss_fn, rate, local, ALPHA)
        if self.job.algorithm == "ditto":
            return fs.ditto(loss_fn, optax.sgd(rate), local, LAM)
        if self.job.algorithm == "fedrep":
            (*_, head) = _modules(self.params)
            places = jax.tree_util.tree_flatten_with_path(self.params)[0]
            names = [
                "/".join(str(key.key) for key in path)
                for path, leaf in places
                if any(leaf is own for own in head.values())
            ]
            return fs.fedrep(loss_fn, optax.sgd(rate), local, names, HEAD_EPOCHS)
        return fs.fedavg(loss_fn, optax.sgd(rate), local)

    def swept(self, run: Any) -> Any:
        """The configurations dealt over the devices, and those of a small model side by side.

        They share the examples of a step, so their products are one product.
        """
        if self.mesh is None:
            return jax.vmap(run, in_axes=(0, None, None))
        width = SIDE_BY_SIDE.get(self.job.model)

        def share(rates: jax.Array, data: Any, cohorts: jax.Array) -> Any:
            return jax.lax.map(lambda r: run(r, data, cohorts), rates, batch_size=width)

        (axis,) = self.mesh.axis_names
        specs = (PartitionSpec(axis), PartitionSpec(), PartitionSpec())
        return jax.shard_map(
            share, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(axis), check_vma=False
        )

    def train(self, cohorts: np.ndarray, shuffle: bool, sweep: bool = False) -> int:
        """From the first weights every time."""
        rates = jnp.asarray(self.rates if sweep else self.rate, jnp.float32)
        arguments = rates, self.data, jnp.asarray(cohorts, jnp.int32)
        shape = len(cohorts), shuffle, sweep
        if shape not in self.compiled:
            run = self.experiment(shuffle, len(cohorts))
            run = self.swept(run) if sweep else run
            start = time.perf_counter()
            self.compiled[shape] = jax.jit(run).lower(*arguments).compile()
            self.compile_seconds[str(shape)] = time.perf_counter() - start
        self.result, steps = jax.block_until_ready(self.compiled[shape](*arguments))
        return int(steps.sum())

    def reset(self, learning_rate: float) -> None:
        self.rate = learning_rate  # the weights are the first ones at every call of `train`

    def train_all(self) -> int:
        return self.train(self.job.cohorts()[: self.job.rounds], True, len(self.rates) > 1)

    def prepare(self) -> dict[str, Any]:
        answer = super().prepare()
        shape = str((self.job.rounds, True, len(self.rates) > 1))
        versions = answer["versions"] | {"fedjax_sim": fs.__version__}
        return answer | {"compile": self.compile_seconds[shape], "versions": versions}

    def weights(self) -> Weights:
        params, kept = self.result
        first = self.job.weights()
        own = {} if kept is None else from_flax(kept, first)
        named = {f"own_{name}": value for name, value in own.items()}
        return {
            k: x for k, x in (from_flax(params, first) | named).items() if k in self.job.first()
        }

    def lane_steps(self) -> dict[str, Any]:
        """Counts the steps that lanes take in the first round, those that nobody reads too."""
        counted = 0

        def count() -> None:
            nonlocal counted
            counted += 1

        def loss_fn(params: Any, batch: Any, key: jax.Array) -> Any:
            # A callback that depends on the lane's batch is called once for each lane.
            jax.debug.callback(lambda _: count(), jax.tree.leaves(batch)[-1].sum())
            return self.loss_fn(params, batch, key)

        cohorts = self.job.cohorts()[:1]
        run = jax.jit(self.experiment(False, 1, loss_fn))
        rate = jnp.float32(self.job.learning_rate)
        jax.block_until_ready(run(rate, self.data, jnp.asarray(cohorts, jnp.int32)))
        jax.effects_barrier()
        return {"lane_steps": counted, "steps": self.job.steps(cohorts)}


def kept_by(algorithm: Any, state: Any, data: Any) -> Any:
    """The mean over all clients of what they keep, in the structure of the model; or None."""
    if not jax.tree.leaves(state.clients):
        return None
    if algorithm.personal is None:
        kept = state.clients
    elif hasattr(state.clients, "own") and hasattr(state.clients, "alpha"):
        kept = state.clients.own  # APFL's, before it is mixed
    else:
        kept = fs.personal_params(algorithm, state, data)
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), kept)


def _modules(tree: Any) -> list[dict[str, Any]]:
    """The layers of a flax tree in their order: dicts that hold a kernel or an embedding."""
    layers = []

    def number(name: str) -> tuple[str, int]:
        stem, _, last = name.rpartition("_")
        return (stem, int(last)) if last.isdigit() else (name, -1)

    def visit(node: Any) -> None:
        if {"kernel", "embedding", "hi"} & set(node):
            layers.append(node)
            return
        for name in sorted(node, key=number):
            visit(node[name])

    visit(tree)
    return layers


def _slots(modules: list[dict[str, Any]]) -> Any:
    """(flax dict, its key, the job's name, the gate) for every leaf."""
    counts = {"conv": 0, "dense": 0, "lstm": 0}

    def take(kind: str) -> int:
        counts[kind] += 1
        return counts[kind] - 1

    for module in modules:
        if "embedding" in module:
            yield module, "embedding", "embedding", None
        elif "hi" in module:
            i = take("lstm")
            for gate, letter in enumerate("ifgo"):
                yield module["i" + letter], "kernel", f"lstm{i}_x", gate
                yield module["h" + letter], "kernel", f"lstm{i}_h", gate
                yield module["h" + letter], "bias", f"lstm{i}_bias", gate
        elif len(module["kernel"].shape) == 4:
            i = take("conv")
            yield module, "kernel", f"conv{i}", None
            yield module, "bias", f"conv_bias{i}", None
        else:
            i = take("dense")
            yield module, "kernel", f"dense{i}", None
            yield module, "bias", f"bias{i}", None


def _gate(gate: int | None) -> Any:
    return ... if gate is None else (..., slice(gate * HIDDEN, (gate + 1) * HIDDEN))


def to_flax(shapes: Any, weights: Weights) -> Any:
    """The job's weights in the shape of the model's parameters."""
    tree = jax.tree.map(lambda x: x, shapes)
    for module, key, name, gate in _slots(_modules(tree)):
        value = weights[name][_gate(gate)]
        if value.shape != module[key].shape:
            raise ValueError(f"{name} is {value.shape}; the model has {module[key].shape}")
        module[key] = jnp.asarray(value)
    return tree


def from_flax(params: Any, like: Weights) -> Weights:
    weights = {name: np.empty_like(value) for name, value in like.items()}
    for module, key, name, gate in _slots(_modules(params)):
        weights[name][_gate(gate)] = np.asarray(module[key])
    return weights


if __name__ == "__main__":
    serve(Ours)
