"""Runs on a federation on disk: the bits of the one in memory, and resumes that know it."""

import jax
import numpy as np
import optax
import pytest

import fedjax_sim as fs
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
