"""Runs on a federation on disk: the bits of the one in memory, and resumes that know it."""

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.execution import machine
from tests.conftest import linear_loss, zeros

ROUNDS, KEY, CAPACITY = 8, jax.random.key(5), 34


def experiment(data):
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), fs.LocalTraining(2, 4))
    return fs.Experiment(
        algorithm, zeros(), data, fs.sampling.uniform(3), ROUNDS, fs.aggregation.unbiased
    )


@pytest.fixture(scope="module")
def store(data, tmp_path_factory):
    return fs.data.FederatedStore.write(tmp_path_factory.mktemp("store") / "store", data)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_it_has_the_bits_of_the_federation_in_memory(data, store, tmp_path):
    in_memory = fs.simulate(experiment(data), KEY)
    run = fs.simulate(experiment(store), KEY, capacity=CAPACITY, out=tmp_path)
    same((run.state, run.history), (in_memory.state, in_memory.history))
    # A store with other examples is another federation to a resume; one that was moved is not.
    copied = fs.data.FederatedStore.write(tmp_path / "copied", store)
    fs.simulate(experiment(copied), KEY, capacity=CAPACITY, out=tmp_path, resume=True)
    clients = store.read(np.arange(len(store.num_examples)))
    clients[5] = jax.tree.map(lambda x: x + 1, clients[5])  # not one of three that are looked at
    other = fs.data.FederatedStore.write(tmp_path / "other", clients)
    with pytest.raises(ValueError, match="federation"):
        fs.simulate(experiment(other), KEY, capacity=CAPACITY, out=tmp_path, resume=True)


def metric_fn(params, batch, key):
    errors = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return errors**2, {"above": (errors > 0).astype(errors.dtype)}


@pytest.mark.parametrize("size", [7, 1024])
def test_evaluation_reads_blocks(data, store, size):
    """Blocks end within clients, and the last is shorter; some clients have no examples."""
    params = jax.tree.map(lambda x: x + 0.3, zeros())
    in_memory = jax.jit(lambda p: fs.evaluate(metric_fn, p, data, batch_size=size))(params)
    read = jax.jit(lambda p: fs.evaluate(metric_fn, p, store, batch_size=size))(params)
    same(read, in_memory)
    with_empty = [{"x": np.ones((n, 4), np.float32), "y": np.arange(n) * 1.0} for n in (0, 3, 0, 9)]
    source = fs.data.Source.of(fs.FederatedData.from_clients(with_empty))
    measured = fs.evaluate(metric_fn, params, source, batch_size=2)
    wanted = fs.evaluate(metric_fn, params, source.in_memory, batch_size=2)
    same(measured, wanted)


def test_a_run_measures_a_store_and_a_resume_knows_it(data, store, tmp_path):
    given = experiment(data)._replace(num_rounds=2)
    in_memory = given._replace(evaluate=fs.evaluator(metric_fn, data, data))
    read = given._replace(evaluate=fs.evaluator(metric_fn, store, store))
    run = fs.simulate(read, KEY, out=tmp_path)
    for name, values in fs.simulate(in_memory, KEY).history.evaluation.items():
        np.testing.assert_allclose(run.history.evaluation[name], values, rtol=1e-6)
    other = fs.data.FederatedStore.write(tmp_path / "other", store, np.ones(data.num_clients))
    with pytest.raises(ValueError, match="what is evaluated"):
        fs.simulate(
            given._replace(evaluate=fs.evaluator(metric_fn, other, other)),
            KEY,
            out=tmp_path,
            resume=True,
        )


def test_a_sweep_loads_what_fits(data, store, monkeypatch):
    def make(data):
        def with_rate(lr):
            algorithm = fs.fedavg(linear_loss, optax.sgd(lr), fs.LocalTraining(1, 4))
            return experiment(data)._replace(algorithm=algorithm, num_rounds=2)

        return with_rate

    grid = {"lr": [0.01, 0.05]}
    a, b = (fs.sweep(make(x), grid, keys=[0, 1]) for x in (store, data))
    for run, other in zip(a.runs, b.runs, strict=True):
        jax.tree.map(np.testing.assert_array_equal, run.rounds, other.rounds)
    fresh = fs.data.FederatedStore.open(store.folder)
    monkeypatch.setattr(machine, "free_memory", lambda devices: 1e3)
    with pytest.raises(ValueError, match=r"takes 2.4e-06 GB, and 1e-06 GB are free"):
        fs.sweep(make(fresh), grid, keys=[0])
