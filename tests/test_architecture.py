"""ARCHITECTURE.md's algorithms run as they stand there."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import SIZES, flat, linear_loss, zeros
from tests.reference import blocks, gradient

LR = 0.05


@pytest.fixture(scope="module")
def written():
    text = (Path(__file__).parent.parent / "ARCHITECTURE.md").read_text()
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, namespace)
    return namespace


def cohort_of(*ids):
    return fs.Cohort(jnp.array(ids, jnp.int32), jnp.ones(len(ids), bool))


@pytest.mark.parametrize("execution", [fs.execution.vmapped(), fs.execution.packed(2)])
def test_fednova(written, clients, data, execution):
    local = fs.LocalTraining(2, 4, shuffle=False)
    algorithm = written["fednova"](linear_loss, LR, local)
    round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
    state = fs.init(algorithm, zeros(), data)
    state, _ = round_fn(jax.random.key(0), state, data, cohort_of(1, 4, 5))
    d, tau, n = [], [], []
    for k in (1, 4, 5):
        v = np.zeros(5)
        steps = blocks(SIZES[k], 2, 4, "epochs")
        for rows in steps:
            v = v - LR * gradient(v, clients[k][0][rows], clients[k][1][rows])
        d.append(v / len(steps))
        tau.append(len(steps))
        n.append(SIZES[k])
    p = np.array(n) / np.sum(n)
    np.testing.assert_allclose(flat(state.params), p @ tau * (p @ np.array(d)), atol=1e-5)


def test_qfedavg_with_q_0_is_fedavg_and_with_q_1_favours_large_losses(written, data):
    local, key, cohort = fs.LocalTraining(2, 4), jax.random.key(0), cohort_of(1, 4, 5, 7)
    made = {
        "fedavg": fs.fedavg(linear_loss, optax.sgd(LR), local),
        0: written["qfedavg"](linear_loss, LR, local, 0.0),
        1: written["qfedavg"](linear_loss, LR, local, 1.0),
    }
    moved = {}
    for name, algorithm in made.items():
        round_fn = jax.jit(fs.make_round(algorithm, fs.aggregation.uniform))
        state, _ = round_fn(key, fs.init(algorithm, zeros(), data), data, cohort)
        moved[name] = flat(state.params)
    np.testing.assert_allclose(moved[0], moved["fedavg"], atol=1e-6)
    assert np.abs(moved[1] - moved[0]).max() > 1e-3


def test_ifca_finds_the_clusters(written):
    rng = np.random.default_rng(0)
    truth = np.array([[2.0, -1.0], [-2.0, 1.0]])
    clients = []
    for k in range(6):
        x = rng.normal(size=(20, 2)).astype(np.float32)
        clients.append({"x": x, "y": (x @ truth[k % 2]).astype(np.float32)})
    data = fs.FederatedData.from_clients(clients)

    def loss_fn(w, batch, key):
        return (batch["x"] @ w - batch["y"]) ** 2

    algorithm = written["ifca"](loss_fn, LR, fs.LocalTraining(2, 5))
    state = fs.init(algorithm, np.array([[0.1, 0.0], [-0.1, 0.0]], np.float32), data)
    state, _ = jax.jit(
        lambda state: fs.run(
            fs.make_round(algorithm), jax.random.key(0), state, data, fs.sampling.uniform(4), 30
        )
    )(state)
    np.testing.assert_allclose(state.params, truth, atol=1e-2)


def test_mime_takes_the_cohorts_gradient(written, clients, data):
    local = fs.LocalTraining(epochs=1, batch_size=None)
    algorithm, round_fn = written["mime_round"](linear_loss, LR, 0.0, local)
    state = fs.init(algorithm, zeros(), data)
    cohort = cohort_of(1, 5, 7)
    step = jax.jit(round_fn)
    state, _ = step(jax.random.key(0), state, data, cohort)
    x, y = (np.concatenate([clients[k][i] for k in (1, 5, 7)]) for i in (0, 1))
    np.testing.assert_allclose(flat(state.params), -LR * gradient(np.zeros(5), x, y), atol=1e-6)

    # One step of one client with momentum: w - lr ((1-b) g + b s), then s = (1-b) g + b s.
    algorithm, round_fn = written["mime_round"](linear_loss, LR, 0.5, local)
    state, step = fs.init(algorithm, zeros(), data), jax.jit(round_fn)
    w, s = np.zeros(5), np.zeros(5)
    for t in range(3):
        state, _ = step(jax.random.key(0), state, data, cohort_of(5))
        g = gradient(w, *clients[5])
        w, s = w - LR * (0.5 * g + 0.5 * s), 0.5 * g + 0.5 * s
        assert int(state.round) == t + 1
        np.testing.assert_allclose(flat(state.params), w, atol=1e-5)


def test_clients_of_the_page_keep_their_momentum(clients, data):
    namespace = {}
    text = (Path(__file__).parent.parent / "docs" / "algorithms.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, namespace)
    (kept,) = jax.tree.leaves(namespace["state"].clients)
    assert kept[1] != 0
    np.testing.assert_array_equal(kept[np.array([0, 2])], 0)

    make = namespace["fedavg_with_kept_momentum"]
    algorithm = make(linear_loss, LR, 0.9, fs.LocalTraining(2, 4, shuffle=False))
    round_fn = jax.jit(fs.make_round(algorithm))
    state = fs.init(algorithm, zeros(), data)
    w, momenta = np.zeros(5), np.zeros((len(SIZES), 5))
    for ids in ((1, 4), (4, 5), (1, 5)):
        state, _ = round_fn(jax.random.key(0), state, data, cohort_of(*ids))
        deltas = []
        for k in ids:
            v = w.copy()
            for rows in blocks(SIZES[k], 2, 4, "epochs"):
                momenta[k] = 0.9 * momenta[k] + gradient(
                    v, clients[k][0][rows], clients[k][1][rows]
                )
                v = v - LR * momenta[k]
            deltas.append(v - w)
        sizes = np.array([SIZES[k] for k in ids])
        w = w + sizes / sizes.sum() @ np.array(deltas)
        np.testing.assert_allclose(flat(state.params), w, atol=1e-5)
