"""fedjax: its own federated_averaging on its jit backend, with its client datasets."""

import os

if os.environ.get("WORKER_SETTING") == "1":  # before jax is imported
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"

import jax

if not hasattr(jax, "tree_map"):
    jax.tree_map = jax.tree_util.tree_map  # fedjax 0.0.17 is older than its removal

from collections.abc import Callable
from typing import Any

import fedjax
import jax.numpy as jnp
import numpy as np
import optax
from fedjax.algorithms.fed_avg import federated_averaging
from fedjax.core.for_each_client import set_for_each_client_backend

from benchmarks.jobs import HIDDEN, Job, Weights
from benchmarks.worker import Worker, serve


def forward(job: Job) -> Callable[[dict, jax.Array], jax.Array]:
    def dense(p: dict, x: jax.Array) -> jax.Array:
        last = sum(name.startswith("dense") for name in p) - 1
        for i in range(last):
            x = jax.nn.relu(x @ p[f"dense{i}"] + p[f"bias{i}"])
        return x @ p[f"dense{last}"] + p[f"bias{last}"]

    def cnn(p: dict, x: jax.Array) -> jax.Array:
        for i in range(2):
            x = jax.lax.conv_general_dilated(
                x, p[f"conv{i}"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + p[f"conv_bias{i}"])
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return dense(p, x.reshape(len(x), -1))

    def lstm(p: dict, x: jax.Array) -> jax.Array:
        x = p["embedding"][x].transpose(1, 0, 2)
        for i in range(2):
            inputs = x @ p[f"lstm{i}_x"] + p[f"lstm{i}_bias"]

            def cell(carry: Any, inputs: jax.Array, recurrent: jax.Array = p[f"lstm{i}_h"]) -> Any:
                h, c = carry
                gates = inputs + h @ recurrent
                i, f, g, o = jnp.split(gates, 4, axis=-1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), h

            zeros = jnp.zeros((x.shape[1], HIDDEN))
            _, x = jax.lax.scan(cell, (zeros, zeros), inputs)
        return dense(p, x.transpose(1, 0, 2))

    return {"cnn": cnn, "lstm": lstm}.get(job.model, dense)


class InOrder(fedjax.ClientDataset):
    """Without shuffling, and with a last batch as short as it is (it fills it up otherwise)."""

    def shuffle_repeat_batch(self, hparams: Any = None, **kwargs: Any) -> Any:
        return self.batch(batch_size=hparams.batch_size)


class FedJax(Worker):
    versions = ("fedjax", "jax", "jaxlib")
    compiles = True

    def __init__(self, job: Job, setting: str) -> None:
        super().__init__(job, setting)
        set_for_each_client_backend("jit")
        self.x, self.y = job.examples()
        sizes = job.sizes()
        self.sizes, self.offsets = sizes, np.cumsum(sizes) - sizes
        apply = forward(job)

        def mean_loss(params: dict, batch: dict, rng: jax.Array) -> jax.Array:
            logits = apply(params, batch["x"])
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]))

        self.gradient = jax.grad(mean_loss)
        self.algorithms: dict[float, fedjax.FederatedAlgorithm] = {}
        self.reset(job.learning_rate)

    def reset(self, learning_rate: float) -> None:
        if learning_rate not in self.algorithms:  # one compilation for each, not timed
            self.algorithms[learning_rate] = federated_averaging(
                self.gradient,
                fedjax.optimizers.sgd(learning_rate),
                fedjax.optimizers.sgd(1.0),
                fedjax.ShuffleRepeatBatchHParams(
                    batch_size=self.job.batch_size, num_epochs=self.job.epochs
                ),
            )
        self.algorithm = self.algorithms[learning_rate]
        self.state = self.algorithm.init(jax.tree_util.tree_map(jnp.asarray, self.job.weights()))

    def train(self, cohorts: np.ndarray, shuffle: bool) -> int:
        make = fedjax.ClientDataset if shuffle else InOrder
        keys = jax.random.split(jax.random.PRNGKey(0), cohorts.shape[1])
        for cohort in cohorts.tolist():
            clients = []
            for k, key in zip(cohort, keys, strict=True):
                rows = slice(self.offsets[k], self.offsets[k] + self.sizes[k])
                clients.append((k, make({"x": self.x[rows], "y": self.y[rows]}), key))
            self.state, _ = self.algorithm.apply(self.state, clients)
        jax.block_until_ready(self.state.params)
        return self.job.steps(cohorts)

    def weights(self) -> Weights:
        return {name: np.asarray(value) for name, value in self.state.params.items()}


if __name__ == "__main__":
    serve(FedJax)
