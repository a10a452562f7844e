"""Mime: NumPy's rounds under every rule, the cohort's gradient, and what two exchanges cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.host.identity import identity
from tests.conftest import MESH, SIZES, flat, linear_loss, zeros
from tests.helpers.reference import blocks, gradient
from tests.helpers.rules import any_rule

LR, BETA, LOCAL = 0.05, 0.5, fs.LocalTraining(2, 4, shuffle=False)
KEY = jax.random.key(0)
# Three that report, of 12, 7 and 23 examples, and one that drops out.
IDS, REPORTS, INCLUSION = (1, 4, 5, 7), (True, True, True, False), (0.5, 0.25, 0.8, 0.5)
COHORT = fs.Cohort(
    jnp.array(IDS), reports=jnp.array(REPORTS), inclusion=jnp.array(INCLUSION, jnp.float32)
)
RULES = tuple(fs.aggregation.RULES)


class Reference:
    """Rounds of Mime in float64. Updates are averaged with p, their sum over p is 1; the step is
    then scaled by the share, n_V / n under `all_clients`."""

    def __init__(self, clients, rule, work=(1, 1, 1)):
        self.clients, self.work = clients, work
        n = np.array([SIZES[k] for k in IDS[:3]], np.float64)
        a, denominator = {
            "selected": (n, n.sum()),
            "all_clients": (n, np.sum(SIZES)),
            "uniform": (np.ones(3), 3),
            "unbiased": (n / np.sum(SIZES) / np.array(INCLUSION[:3]), 1),
        }[rule]
        self.p, self.share = a / a.sum(), a.sum() / denominator
        self.momentum = np.zeros(5)

    def change(self, k, w, control, work):
        """What the local steps of client k change of w."""
        v, (x, y) = w.copy(), self.clients[k]
        steps = blocks(SIZES[k], LOCAL.epochs, LOCAL.batch_size, "epochs")
        for rows in steps[: int(work * len(steps))]:
            corrected = gradient(v, x[rows], y[rows]) - gradient(w, x[rows], y[rows]) + control
            v = v - LR * ((1 - BETA) * corrected + BETA * self.momentum)
        return v - w

    def round(self, w):
        control = self.p @ np.array([gradient(w, *self.clients[k]) for k in IDS[:3]])
        changes = [
            self.change(k, w, control, work) for k, work in zip(IDS[:3], self.work, strict=True)
        ]
        self.momentum = BETA * self.momentum + (1 - BETA) * control
        return w + self.share * self.p @ np.array(changes)


def start():
    w = np.random.default_rng(1).normal(size=5).astype(np.float32) / 4
    return w, {"w": w[:-1], "b": w[-1]}


def test_against_numpy_under_all_rules(clients, data):
    """Two rounds. `all_clients` is then w + (n_V / n)(selected - w), as of every algorithm."""
    w, params = start()
    algorithm = fs.mime(linear_loss, LR, LOCAL, BETA)

    @jax.jit
    def ends(number):
        round_fn = fs.make_round(algorithm, any_rule(number), fs.execution.vmapped())
        state, after = fs.init(algorithm, params, data), []
        for _ in range(2):
            state, _ = round_fn(KEY, state, data, COHORT)
            after.append(jnp.concatenate([state.params["w"], state.params["b"][None]]))
        return after

    first = {}
    for number, rule in enumerate(RULES):
        reference = Reference(clients, rule)
        expected = w.astype(np.float64)
        for got in ends(number):
            expected = reference.round(expected)
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=rule)
            first.setdefault(rule, got)
    share = sum(SIZES[k] for k in IDS[:3]) / sum(SIZES)
    np.testing.assert_allclose(first["all_clients"], w + share * (first["selected"] - w), atol=1e-5)


def test_one_full_batch_step_is_the_centralised_one(clients, data):
    """Of one step with momentum: w - lr ((1-b) g + b m), then m = (1-b) g + b m; g the cohort's."""
    algorithm = fs.mime(linear_loss, LR, fs.LocalTraining(1, None), BETA)
    state = fs.init(algorithm, zeros(), data)
    step = jax.jit(fs.make_round(algorithm, execution=fs.execution.packed(1)))
    x, y = (np.concatenate([clients[k][i] for k in (1, 5, 7)]) for i in (0, 1))
    w, m = np.zeros(5), np.zeros(5)
    for t in range(3):
        state, _ = step(KEY, state, data, fs.Cohort(jnp.array([1, 5, 7])))
        g = gradient(w, x, y)
        w, m = w - LR * (0.5 * g + 0.5 * m), 0.5 * g + 0.5 * m
        assert int(state.round) == t + 1
        np.testing.assert_allclose(flat(state.params), w, atol=1e-5)
        np.testing.assert_allclose(flat(state.server.momentum), m, atol=1e-5)


@pytest.mark.parametrize("strategy", ["packed", pytest.param("sharded", marks=pytest.mark.slow)])
def test_a_straggler_sends_its_whole_gradient(clients, data, strategy):
    """And the ledger has both exchanges: steps, examples, and the bytes of four models and two."""
    execution = {
        "packed": fs.execution.packed(2),
        "sharded": fs.execution.sharded(MESH, fs.execution.vmapped()),
    }[strategy]
    w, params = start()
    work = (0.5, 1, 0.25)
    reference = Reference(clients, "selected", work)
    algorithm = fs.mime(linear_loss, LR, LOCAL, BETA)
    round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
    state = fs.init(algorithm, params, data)
    cohort = COHORT._replace(work=jnp.array([*work, 1.0]))
    state, metrics = round_fn(KEY, state, data, cohort)
    np.testing.assert_allclose(flat(state.params), reference.round(w.astype(float)), atol=1e-5)
    # 6, 4 and 12 local steps, of which work leaves 3, 4 and 3; one more each for the gradient.
    assert metrics.counts()["client_steps"] == 3 + 4 + 3 + 3
    assert metrics.counts()["examples"] == (12 + 2 * 7 + 12) + (12 + 7 + 23)
    assert metrics.counts()["lane_steps"] >= 13
    assert (int(metrics.senders), int(metrics.receivers), int(metrics.reporting)) == (3, 4, 3)
    exchange = fs.communication(algorithm, params, data)
    assert exchange == fs.Communication(down=4 * 20, up=2 * 20)
    assert exchange.total(metrics) == (4 * 80, 3 * 40)


def test_nothing_is_kept_of_an_empty_round(data):
    _, params = start()
    algorithm = fs.mime(linear_loss, LR, LOCAL, BETA)
    state = fs.init(algorithm, params, data)
    nobody = COHORT._replace(reports=jnp.zeros(4, bool))
    round_fn = fs.make_round(algorithm, execution=fs.execution.vmapped())
    after, metrics = jax.jit(round_fn)(KEY, state, data, nobody)
    assert bool(metrics.empty)
    for before, now in zip(
        jax.tree.leaves(state.server), jax.tree.leaves(after.server), strict=True
    ):
        np.testing.assert_array_equal(before, now)


@pytest.mark.slow
def test_experiments_run_it(data, tmp_path):
    """simulate with a folder, resumed; a sweep over its rate and momentum; what identifies it."""

    def experiment(client_lr, momentum, num_rounds=2):
        return fs.Experiment(
            fs.mime(linear_loss, client_lr, LOCAL, momentum),
            zeros(),
            data,
            fs.sampling.uniform(3),
            num_rounds,
            execution=fs.execution.vmapped(),
        )

    one = experiment(LR, BETA)
    whole, _ = jax.jit(one.run)(KEY)
    fs.simulate(experiment(LR, BETA, 1), KEY, out=tmp_path / "run")
    simulated = fs.simulate(one, KEY, out=tmp_path / "run", resume=True)
    np.testing.assert_allclose(flat(simulated.state.params), flat(whole.params), rtol=1e-5)
    assert simulated.exchange == fs.Communication(80, 40)
    grid = {"client_lr": [0.01, LR], "momentum": [BETA]}
    results = fs.sweep(lambda client_lr, momentum: experiment(client_lr, momentum), grid, [0])
    losses = [run.rounds["train_loss"][-1] for run in results.runs]
    np.testing.assert_allclose(losses[1], simulated.history.rounds.train["loss"][-1], rtol=1e-5)
    assert losses[0] != losses[1]
    of_one = identity(one, KEY, one.start(KEY))
    assert of_one["earlier"] == [
        {"epochs": 1, "batch_size": None, "shuffle": False, "order": "epochs"}
    ]
    other = experiment(LR, 0.25)
    of_other = identity(other, KEY, other.start(KEY))
    differing = {
        k for k, x in of_one["program"]["parts"].items() if x != of_other["program"]["parts"][k]
    }
    assert differing == {"algorithm"}


def test_what_it_refuses(data):
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match="client_lr must be finite and positive"):
            fs.mime(linear_loss, wrong, LOCAL)
    with pytest.raises(ValueError, match=r"momentum must be finite and in \[0, 1\)"):
        fs.mime(linear_loss, LR, LOCAL, momentum=1.0)
    experiment = fs.Experiment(
        fs.mime(linear_loss, LR, LOCAL), zeros(), data, fs.sampling.uniform(3), 2
    )
    with pytest.raises(ValueError, match=r"must exchange once a round.*got one of 2 exchanges"):
        fs.baselines.centralised(experiment)
    alone = fs.baselines.local_only(experiment)
    assert len(alone.algorithm.exchanges) == 2
    with pytest.raises(ValueError, match="earlier must be exchanges"):
        fs.make_round(experiment.algorithm._replace(earlier=(experiment.algorithm,)))


def test_the_first_state_can_be_donated(data):
    """No array of it is in two places."""
    server = fs.init(fs.mime(linear_loss, LR, LOCAL), start()[1], data).server
    places = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(server)]
    assert len(set(places)) == len(places) == 6
