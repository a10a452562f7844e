"""The memory of an experiment: counted by hand, and refused with the figures."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.training import memory as module

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
    assert fs.memory(experiment(probing)._replace(data=source)).data == 11 * 400


def test_what_does_not_fit_is_refused_before_it_compiles(monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda devices: 2000.0)
    message = "needs .* GiB of memory, and .* are free: .* for the states of 4 clients.*cohort"
    with pytest.raises(ValueError, match=message) as caught:
        fs.simulate(experiment(fs.scaffold(loss_fn, 0.1, fs.LocalTraining())), key=0)
    assert re.search("for the clients in training", str(caught.value))
