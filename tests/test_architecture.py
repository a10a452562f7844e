"""ARCHITECTURE.md's algorithms run as they stand there."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from tests.conftest import SIZES, flat, linear_loss, zeros
from tests.helpers.reference import blocks, gradient
from tests.helpers.rules import any_rule

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


# Three that report, of 12, 7 and 23 examples, and one that drops out.
IDS, REPORTS, INCLUSION = (1, 4, 5, 7), (True, True, True, False), (0.5, 0.25, 0.8, 0.5)
RULES = tuple(fs.aggregation.RULES)
LOCAL, BETA = fs.LocalTraining(2, 4, shuffle=False), 0.5


class Reference:
    """A round of each in float64. Updates are averaged with p, their sum over p is 1; the step
    is then scaled by the share, n_V / n under `all_clients`."""

    def __init__(self, clients, rule):
        self.clients = clients
        n = np.array([SIZES[k] for k in IDS[:3]], np.float64)
        a, denominator = {
            "selected": (n, n.sum()),
            "all_clients": (n, np.sum(SIZES)),
            "uniform": (np.ones(3), 3),
            "unbiased": (n / np.sum(SIZES) / np.array(INCLUSION[:3]), 1),
        }[rule]
        self.p, self.share = a / a.sum(), a.sum() / denominator
        self.momentum = np.zeros(5)

    def train(self, k, w, direction=None):
        """w after client k's local steps, and their number."""
        v, x, y = w.copy(), *self.clients[k]
        steps = blocks(SIZES[k], LOCAL.epochs, LOCAL.batch_size, "epochs")
        for rows in steps:
            g = gradient(v, x[rows], y[rows])
            v = v - LR * (g if direction is None else direction(g, x[rows], y[rows]))
        return v, len(steps)

    def mime(self, w):
        control = self.p @ np.array([gradient(w, *self.clients[k]) for k in IDS[:3]])

        def direction(g, x, y):
            corrected = g - gradient(w, x, y) + control
            return (1 - BETA) * corrected + BETA * self.momentum

        changes = np.array([self.train(k, w, direction)[0] - w for k in IDS[:3]])
        self.momentum = BETA * self.momentum + (1 - BETA) * control
        return w + self.share * self.p @ changes


def test_mime_against_numpy_under_all_rules(written, clients, data):
    """Two rounds. `all_clients` is then w + (n_V / n)(selected - w), as of every algorithm."""
    start = np.random.default_rng(1).normal(size=5).astype(np.float32) / 4
    params = {"w": start[:-1], "b": start[-1]}
    cohort = fs.Cohort(
        jnp.array(IDS), reports=jnp.array(REPORTS), inclusion=jnp.array(INCLUSION, jnp.float32)
    )

    @jax.jit
    def ends(number):
        rule = any_rule(number)
        algorithm, round_fn = written["mime_round"](linear_loss, LR, BETA, LOCAL, rule)
        state, after = fs.init(algorithm, params, data), []
        for _ in range(2):
            state, _ = round_fn(jax.random.key(0), state, data, cohort)
            after.append(jnp.concatenate([state.params["w"], state.params["b"][..., None]], -1))
        return after

    first = {}
    for number, rule in enumerate(RULES):
        reference = Reference(clients, rule)
        expected = start.astype(np.float64)
        for got in ends(number):
            expected = reference.mime(expected)
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=rule)
            first.setdefault(rule, got)
    share = sum(SIZES[k] for k in IDS[:3]) / sum(SIZES)
    np.testing.assert_allclose(
        first["all_clients"], start + share * (first["selected"] - start), atol=1e-5
    )


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
