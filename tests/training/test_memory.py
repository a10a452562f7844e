"""The memory of an experiment: counted by hand, and refused with the figures."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.training import memory as module
from tests.conftest import MESH

DATA = fs.FederatedData.from_clients([{"x": np.ones((n, 100), np.float32)} for n in (3, 5, 1, 2)])


def loss_fn(params, batch, key):
    return batch["x"] @ params


def experiment(algorithm=None, **arguments):
    algorithm = algorithm or fs.fedavg(loss_fn, optax.sgd(0.1, 0.9), fs.LocalTraining())
    fields = {"sampler": fs.sampling.uniform(3), "num_rounds": 2}
    return fs.Experiment(algorithm, jnp.zeros(100), DATA, **(fields | arguments))


def test_each_part_counted_by_hand():
    """Of 11 examples and a model of 100 numbers of 4 bytes, whose momentum is as large."""
    needed = fs.memory(experiment(execution=fs.execution.packed(2)))
    carry = jax.eval_shape(optax.sgd(0.1, 0.9).init, jnp.zeros(100))
    momentum = sum(x.size * 4 for x in jax.tree.leaves(carry))
    assert momentum == 400
    assert needed.data == 11 * 400
    assert needed.clients == needed.updates == 0
    assert needed.server >= 2 * 400
    assert needed.training >= 2 * (400 + momentum)
    one_lane = fs.memory(experiment(execution=fs.execution.packed(1)))
    assert needed.training == 2 * one_lane.training
    assert fs.memory(experiment(execution=fs.execution.vmapped())).training == 3 * one_lane.training
    assert needed.total == sum(needed)


def test_rules_and_states_that_need_more():
    assert fs.memory(experiment(aggregation=fs.aggregation.median())).updates == 3 * 400
    scaffold = fs.scaffold(loss_fn, 0.1, fs.LocalTraining())
    assert fs.memory(experiment(scaffold)).clients == 4 * 400


def test_what_is_yet_to_arrive_is_counted():
    """c updates, control variates up and control variates kept, as the state really has them."""
    scaffold = fs.scaffold(loss_fn, 0.1, fs.LocalTraining())
    clock = fs.clocks.equal(4)
    asynchronous = experiment(
        fs.asynchronous.fedbuff(scaffold, buffer=2, concurrency=3, clock=clock),
        sampler=fs.sampling.everyone(),
    )
    needed = fs.memory(asynchronous)
    state = asynchronous.start(jax.random.key(0))
    assert needed.pending == sum(x.nbytes for x in jax.tree.leaves(state.pending))
    assert needed.pending >= 3 * 3 * 400
    assert needed.updates == 2 * 400
    assert fs.memory(experiment(scaffold)).pending == 0


def test_of_a_source_whose_clients_probe():
    """Its examples are shapes, of which a probe cannot take a value."""
    source = fs.data.Source.of(DATA)
    probing = fs.qfedavg(loss_fn, 0.1, fs.LocalTraining(), q=1.0)
    given = experiment(probing)._replace(data=source)
    assert fs.memory(given).data == 2 * 11 * 400
    assert fs.memory(given, capacity=10).data == 2 * 10 * 400


def test_what_a_window_holds_where_nobody_says():
    """256 MiB of examples, or those of the three largest clients."""

    def window(num_examples):
        spec = jax.ShapeDtypeStruct((1 << 20,), np.float32)
        data = fs.data.Source(
            np.array(num_examples),
            spec,
            lambda ids: [np.broadcast_to(np.float32(k), (num_examples[k], 1 << 20)) for k in ids],
        )
        algorithm = fs.fedavg(lambda w, x, key: x @ w, optax.sgd(0.1), fs.LocalTraining())
        given = experiment(algorithm)._replace(data=data, params=jnp.zeros(1 << 20))
        return fs.memory(given).data / 2 / 2**22

    assert window([1] * 1000) == 64
    assert window([1, 2, 40, 1, 30, 3]) == 40 + 30 + 3
    assert window([1, 2, 3]) == 6


def test_data_larger_than_memory_are_trained_on(monkeypatch):
    """Two windows fit, where neither all examples nor the states of all clients do."""
    number = 200
    source = fs.data.Source(
        np.full(number, 2),
        {"x": jax.ShapeDtypeStruct((100,), np.float32)},
        lambda ids: [{"x": np.full((2, 100), k, np.float32)} for k in ids],
    )
    monkeypatch.setattr(module, "free_memory", lambda devices: 40_000.0)
    given = experiment(execution=fs.execution.packed(1))._replace(data=source)
    assert source.nbytes == 160_000
    assert fs.simulate(given, 0, capacity=6).status == "finished"
    with pytest.raises(ValueError, match=r"0\.000149 GiB for two windows on them"):
        fs.simulate(given, 0, capacity=200)


def test_states_on_a_disk_are_those_that_are_held(monkeypatch, tmp_path):
    scaffold = fs.scaffold(loss_fn, 0.1, fs.LocalTraining())
    data = fs.FederatedData.from_clients([{"x": np.ones((1, 100), np.float32)}] * 200)
    given = experiment(scaffold, execution=fs.execution.packed(1))._replace(data=data)
    assert fs.memory(given).clients == 200 * 400
    monkeypatch.setattr(module, "free_memory", lambda devices: 40_000.0)
    with pytest.raises(ValueError, match="for the states of 200 clients"):
        fs.simulate(given, 0)
    options = {"client_states": "disk", "capacity": 6}
    assert fs.simulate(given, 0, out=tmp_path / "out", **options).status == "finished"
    monkeypatch.setattr(module, "free_memory", lambda devices: 9000.0)
    with pytest.raises(ValueError, match="for the states of 6 clients"):
        fs.simulate(given, 0, out=tmp_path / "more", **options)


def test_each_device_of_a_mesh_has_its_own_state():
    """As the arrays have it that a run begins with, and as a rule that sees all updates says."""
    scaffold = fs.scaffold(loss_fn, 0.1, fs.LocalTraining())
    arguments = {"aggregation": fs.aggregation.median()}
    inner = fs.execution.packed(1)
    alone = fs.memory(experiment(scaffold, execution=inner, **arguments))
    sharded = experiment(scaffold, execution=fs.execution.sharded(MESH, inner), **arguments)
    needed = fs.memory(sharded)
    server, clients = fs.execution.replicate(sharded.begin(jax.random.key(0)), MESH)
    number = len(MESH.devices.flat)
    assert number > 1

    def on_all_devices(tree):
        leaves = jax.tree.leaves(tree)
        return sum(shard.data.nbytes for x in leaves for shard in x.addressable_shards)

    assert needed.server == 2 * on_all_devices(server) == number * alone.server
    assert needed.clients == on_all_devices(clients) == number * alone.clients
    assert needed.updates == number * alone.updates
    assert needed.training == number * alone.training
    assert needed.data == alone.data  # which the devices of a CPU share


def test_what_does_not_fit_is_refused_before_it_compiles(monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda devices: 2000.0)
    message = "needs .* GiB of memory, and .* are free: .* for the states of 4 clients.*cohort"
    with pytest.raises(ValueError, match=message) as caught:
        fs.simulate(experiment(fs.scaffold(loss_fn, 0.1, fs.LocalTraining())), key=0)
    assert re.search("for the clients in training", str(caught.value))
