"""An experiment or a sweep to be killed: `python -m tests.helpers.killed WHAT OUT [SHARD]`."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_sim as fs
from tests.conftest import linear_loss, zeros

ROUNDS = 60


def federation():
    rng = np.random.default_rng(3)
    clients = [rng.normal(size=(n, 5)).astype(np.float32) for n in (5, 12, 0, 1, 7, 23, 3, 9)]
    return fs.FederatedData.from_clients([{"x": c[:, :4], "y": c[:, 4]} for c in clients])


def experiment(lr, data=None):
    data = federation() if data is None else data
    algorithm = fs.scaffold(linear_loss, lr, fs.LocalTraining(2, 3))
    return fs.Experiment(
        algorithm,
        zeros(),
        data,
        fs.sampling.uniform(3),
        ROUNDS,
        evaluate=lambda params: {"b": params["b"], "norm": jnp.sum(params["w"] ** 2)},
        evaluate_every=7,
    )


def simulate(out, **options):
    return fs.simulate(
        experiment(0.03), jax.random.key(5), out=out, resume=True, checkpoint_every=5, **options
    )


def sweep(out, shard=None, **options):
    data = federation()
    return fs.sweep(
        lambda lr: experiment(lr, data),
        {"lr": [0.01, 0.02, 0.03, 0.05, 0.08]},
        [0, 1, 2],
        out=out,
        resume=True,
        shard=shard,
        side_by_side=2,
        checkpoint_every=20,
        **options,
    )


def arrays(result):
    """Every number of a result, to be compared bit by bit."""
    if isinstance(result, fs.Results):
        return [x for run in result.runs for _, x in sorted(run.rounds.items())]
    return [np.asarray(x) for x in jax.tree.leaves((result.state, result.history))]


if __name__ == "__main__":
    what, out, *shard = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    print("begins", flush=True)
    result = {"simulate": simulate, "sweep": sweep}[what](out, *shard)
    name = "-".join(("result", *shard)).replace("/", "-of-")
    np.savez(out / f"{name}.npz", *arrays(result))
