"""Asynchronous rounds: beside a loop over events in NumPy, by hand, and beside synchronous ones."""

import heapq

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.core.randomness import DISPATCH, permutation_seeds, permute, stream
from tests.conftest import MESH, SIZES, flat, linear_loss, slow_after, zeros
from tests.helpers.reference import blocks, gradient

K, KEY, LR = len(SIZES), jax.random.key(3), 0.05
LOCAL = fs.LocalTraining(2, 4, shuffle=False)
FEDAVG = fs.fedavg(linear_loss, optax.sgd(LR), LOCAL)
RNG = np.random.default_rng(0)
STEP_SECONDS = RNG.lognormal(0, 1, K).astype(np.float32)
RATES = RNG.lognormal(2, 1, (2, K)).astype(np.float32)
CLOCK = fs.clocks.given(STEP_SECONDS, *RATES)
NUM_BYTES = 4 * 5  # of a model


def experiment(algorithm, data, size=5, rounds=6, **parts):
    given = fs.Experiment(
        algorithm,
        zeros(),
        data,
        fs.sampling.uniform(size),
        rounds,
        execution=fs.execution.vmapped(),
        evaluate=lambda params: params,
    )
    return given._replace(**parts)


def run(given, key=KEY):
    return jax.jit(given.run)(key)


def same(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance)


def candidates(sampler, data, rounds):
    """The cohorts of so many rounds, in the order in which their clients are asked: the draws of
    the package, which a reference must have the same."""

    def of_round(version):
        cohort = sampler.sample(KEY, version, data).client_ids
        seeds = permutation_seeds(stream(KEY, DISPATCH, version))
        return cohort[permute(seeds, jnp.arange(len(cohort)), len(cohort))]

    return np.asarray(jax.jit(jax.vmap(of_round))(jnp.arange(rounds, dtype=jnp.int32)))


class Federation:
    """Clients that train at speeds of their own, and a server that takes what comes, in float64."""

    def __init__(self, clients, orders, buffer, concurrency, factor):
        self.clients, self.orders, self.factor = clients, orders, factor
        self.buffer, self.concurrency = buffer, concurrency
        self.w, self.version, self.now = np.zeros(5), 0, 0.0
        self.events, self.arrived = [], []
        self.send()

    def send(self):
        busy = {client for _, _, client, *_ in self.events}
        for client in self.orders[self.version]:
            size = SIZES[client]
            if len(self.events) == self.concurrency or client in busy or size == 0:
                continue
            x, y = self.clients[client]
            local, steps = self.w.copy(), blocks(size, 2, 4, "epochs")
            for rows in steps:
                local -= LR * gradient(local, x[rows], y[rows])
            travels = NUM_BYTES / float(RATES[0][client]) + NUM_BYTES / float(RATES[1][client])
            at = self.now + travels + len(steps) * float(STEP_SECONDS[client])
            heapq.heappush(self.events, (at, self.version, int(client), self.w.copy(), local))
        self.awaited = min(self.buffer, len(self.events))

    def next_event(self, mix):
        """One client arrives; with the last of a buffer the server takes its step."""
        self.now, *result = heapq.heappop(self.events)
        self.arrived.append(result)
        if len(self.arrived) < self.awaited:
            return None
        ages = [self.version - version for version, *_ in self.arrived]
        self.w = mix(self.w, self.arrived, [self.factor(age) for age in ages])
        self.arrived, self.version = [], self.version + 1
        row = self.w, self.now, np.mean(ages), max(ages)
        self.send()
        return row


def mean_of_scaled(weight_of):
    def mix(w, arrived, factors):
        weights = [weight_of(client) for _, client, *_ in arrived]
        moves = [
            a * s * (local - start)
            for a, s, (*_, start, local) in zip(weights, factors, arrived, strict=True)
        ]
        return w + sum(moves) / sum(weights)

    return mix


def mix_models(w, arrived, factors):
    ((*_, local),), (alpha,) = arrived, factors
    return (1 - alpha) * w + alpha * local


CASES = {
    # name: (algorithm, sampler, rule, factor of an age, the server's step, arrivals of a step)
    "fedbuff": (
        fs.asynchronous.fedbuff(FEDAVG, 3, 5, CLOCK, staleness=0.5),
        fs.sampling.uniform(5),
        fs.aggregation.uniform,
        lambda age: (1 + age) ** -0.5,
        mean_of_scaled(lambda client: 1),
        3,
    ),
    "weighed by examples, all candidates": (
        fs.asynchronous.fedbuff(FEDAVG, 2, 5, CLOCK, staleness=fs.asynchronous.constant()),
        fs.sampling.everyone(),
        fs.aggregation.selected,
        lambda age: 1,
        mean_of_scaled(lambda client: SIZES[client]),
        2,
    ),
    "fedasync": (
        fs.asynchronous.fedasync(
            FEDAVG, 4, CLOCK, alpha=0.6, staleness=fs.asynchronous.hinge(0.5, 1.0)
        ),
        fs.sampling.uniform(4),
        fs.aggregation.selected,
        lambda age: 0.6 * (1 if age <= 1 else 1 / (0.5 * (age - 1) + 1)),
        mix_models,
        1,
    ),
}


@pytest.mark.parametrize("case", slow_after(1, CASES))
def test_it_is_a_loop_over_events(case, clients, data):
    algorithm, sampler, rule, factor, mix, per_step = CASES[case]
    events, asynchrony = 200, algorithm.asynchrony
    orders = candidates(sampler, data, events + 1)
    loop = Federation(clients, orders, asynchrony.buffer, asynchrony.concurrency, factor)
    rows = [row for _ in range(events) if (row := loop.next_event(mix)) is not None]
    assert len(rows) >= events // per_step
    _, history = run(
        experiment(algorithm, data, sampler=sampler, aggregation=rule, num_rounds=len(rows))
    )
    w, now, mean_age, max_age = (np.array(x) for x in zip(*rows, strict=True))
    np.testing.assert_allclose(flat(history.evaluation), w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.cumsum(history.rounds.seconds), now, rtol=1e-5)
    np.testing.assert_allclose(history.rounds.staleness["mean"], mean_age, rtol=1e-6)
    np.testing.assert_array_equal(history.rounds.staleness["max"], max_age)
    assert max_age.max() > 1  # otherwise little was stale


@pytest.mark.parametrize("name", slow_after(1, ["fedavg", "scaffold"]))
def test_a_buffer_of_all_in_training_is_a_synchronous_round(name, data):
    algorithm = FEDAVG if name == "fedavg" else fs.scaffold(linear_loss, LR, LOCAL)
    clock = fs.clocks.equal(K, step_seconds=0.0)
    buffered = fs.asynchronous.fedbuff(algorithm, 4, 4, clock)
    state, history = run(experiment(buffered, data, 4))
    expected, of_each = run(experiment(algorithm, data, 4))
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    same((state.server, state.clients), (expected.server, expected.clients), **tolerance)
    fields = ("train", "receivers", "senders", "reporting", "client_steps", "examples")
    fields = (*fields, "update_norm", "reporting_share")
    for field in fields:
        same(getattr(history.rounds, field), getattr(of_each.rounds, field), **tolerance)
    assert not np.any(history.rounds.seconds)
    assert not np.any(history.rounds.staleness["max"])


def one_number_each(*targets):
    return fs.FederatedData.from_clients([np.array([y], np.float32) for y in targets])


TO_THE_TARGET = fs.fedavg(
    lambda w, y, key: (y - w) ** 2 / 2, optax.sgd(1.0), fs.LocalTraining(1, None)
)


def test_the_model_that_is_mixed_was_trained_from_what_a_codec_sent():
    """Whole numbers go down: the client is at its target, 1, wherever it begins."""
    whole = fs.compression.Codec(
        init=lambda model: (),
        encode=lambda model, residual, key: (jnp.floor(model), residual),
        decode=lambda wire: wire,
    )
    sent = fs.compression.compressed(TO_THE_TARGET, downlink=whole)
    algorithm = fs.asynchronous.fedasync(sent, 1, fs.clocks.equal(1), alpha=0.6, staleness=0.0)
    data, everyone = one_number_each(1.0), fs.sampling.everyone()
    given = fs.Experiment(algorithm, 0.0, data, everyone, 3, evaluate=lambda params: params)
    _, history = run(given)
    np.testing.assert_allclose(history.evaluation, [0.6, 0.84, 0.936], rtol=1e-6)


def test_of_equal_arrivals_the_older_model_comes_first_then_the_lower_id():
    """Four clients, each of which moves to its target in a second; all are always in training."""
    data = one_number_each(1.0, 3.0, 10.0, 20.0)
    algorithm = fs.asynchronous.fedbuff(TO_THE_TARGET, 2, 4, fs.clocks.equal(4), staleness=1.0)
    given = fs.Experiment(
        algorithm, 0.0, data, fs.sampling.everyone(), 3, evaluate=lambda params: params
    )
    _, history = run(given)
    # Clients 0 and 1 come first, from 0 to 1 and 3. Clients 2 and 3 come at the same time, and 0
    # and 1, sent the second model, a second later. Each of the two counts half after one step.
    second = 2 + (10 / 2 + 20 / 2) / 2
    third = second + ((1 - 2) / 2 + (3 - 2) / 2) / 2
    assert history.evaluation.tolist() == [2, second, third]
    assert history.rounds.seconds.tolist() == [1, 0, 1]
    assert history.rounds.staleness["mean"].tolist() == [0, 1, 1]
    assert history.rounds.receivers.tolist() == [4, 2, 2]
    assert history.rounds.senders.tolist() == [2, 2, 2]


@fs.of_state
def who_trains(state):
    ids = jnp.where(state.pending.in_flight, state.pending.client_ids, -1)
    return {"ids": ids, "params": state.params}


@pytest.fixture(scope="module")
def buffered():
    return fs.asynchronous.fedbuff(FEDAVG, 2, 5, CLOCK)


@pytest.fixture(scope="module")
def of_vmapped(data, buffered):
    return run(experiment(buffered, data, evaluate=who_trains, rounds=20))


def test_a_client_trains_once_at_a_time(of_vmapped):
    for ids in np.asarray(of_vmapped[1].evaluation["ids"]):
        in_training = ids[ids >= 0]
        assert len(in_training) == len(set(in_training.tolist())) <= 3
    assert len(np.unique(of_vmapped[1].evaluation["ids"])) > 4  # -1, and most clients


@pytest.mark.parametrize(
    "strategy",
    [
        fs.execution.packed(1),
        pytest.param(fs.execution.packed(2), marks=pytest.mark.slow),
        pytest.param(fs.execution.sharded(MESH, fs.execution.packed(1)), marks=pytest.mark.slow),
        pytest.param(fs.execution.sharded(MESH), marks=pytest.mark.slow),
    ],
    ids=["packed(1)", "packed(2)", "sharded", "sharded by slots"],
)
def test_strategies_agree(strategy, data, buffered, of_vmapped):
    parts = {"evaluate": who_trains, "rounds": 20, "execution": strategy}
    _, history = run(experiment(buffered, data, **parts))
    same(history.evaluation, of_vmapped[1].evaluation, rtol=1e-5, atol=1e-6)
    same(history.rounds.train, of_vmapped[1].rounds.train, rtol=1e-5)
    same(history.rounds.client_steps, of_vmapped[1].rounds.client_steps)


def test_control_variates_stay_the_mean_of_the_clients(data):
    """SCAFFOLD's totals are not scaled, so that c = sum p_k c_k though all is stale."""
    algorithm = fs.asynchronous.fedbuff(fs.scaffold(linear_loss, LR, LOCAL), 2, 5, CLOCK)
    state, history = run(experiment(algorithm, data, rounds=15))
    shares = np.array(SIZES) / sum(SIZES)
    mean = np.tensordot(shares, flat(state.clients), axes=1)
    np.testing.assert_allclose(flat(state.server.control), mean, atol=1e-5)
    assert history.rounds.staleness["max"].max() > 1


def test_a_client_has_its_state_once_its_update_arrived():
    """Ditto's own models: in round 0 those of clients 0 and 1 arrive, and client 2's does not."""
    data = one_number_each(1.0, 3.0, 10.0)
    ditto = fs.ditto(
        lambda w, y, key: (y - w) ** 2 / 2, optax.sgd(0.5), fs.LocalTraining(1, None), lam=0.0
    )
    algorithm = fs.asynchronous.fedbuff(ditto, 2, 3, fs.clocks.given([1.0, 1.0, 9.0]))
    state, _ = run(fs.Experiment(algorithm, 0.0, data, fs.sampling.everyone(), 1))
    own = fs.personal_params(algorithm, state)
    np.testing.assert_allclose(own, [0.5, 1.5, 0.0], atol=1e-6)


def test_a_rule_that_sees_all_updates_is_given_the_scaled_ones():
    """As in the test of ties: 0 and 1 first, then 2, 3 and 4, whose model is one step old."""
    data = one_number_each(1.0, 3.0, 10.0, 20.0, 90.0)
    clock = fs.clocks.given([1.0, 1.0, 3.0, 3.0, 1.0])
    algorithm = fs.asynchronous.fedbuff(TO_THE_TARGET, 3, 5, clock, staleness=1.0)
    rule = fs.aggregation.median()
    given = fs.Experiment(
        algorithm, 0.0, data, fs.sampling.everyone(), 2, rule, evaluate=lambda params: params
    )
    _, history = run(given)
    # 0, 1 and 4 go to 1, 3 and 90: the median is 3. Then 0, 1 and 4 come again, before 2 and 3, at
    # 1 - 3, 3 - 3 and 90 - 3, of the model of now.
    assert history.evaluation.tolist() == [3, 3]
    third = run(given._replace(num_rounds=3))[1]
    # 2 and 3 have trained for 3 seconds from 0, two steps ago, and 0 from 3 in one.
    assert third.rounds.staleness["mean"].tolist() == pytest.approx([0, 0, 4 / 3])
    assert third.evaluation.tolist()[2] == pytest.approx(3 + 10 / 3)


def test_who_is_not_finite_is_received_and_left_out():
    """Clients 0 and 2 arrive first, of whom 2 has a loss that is infinite."""
    data = one_number_each(1.0, 3.0, 10.0, 5.0)

    def loss(w, y, key):
        return jnp.where(y == 10, jnp.inf, 1.0) * (y - w) ** 2 / 2

    inner = fs.fedavg(loss, optax.sgd(1.0), fs.LocalTraining(1, None))
    algorithm = fs.asynchronous.fedbuff(inner, 2, 4, fs.clocks.given([1.0, 2.0, 1.0, 9.0]))
    given = fs.Experiment(
        algorithm, 0.0, data, fs.sampling.everyone(), 1, execution=fs.execution.packed(1)
    )
    state, history = run(given._replace(nonfinite="drop"))
    metrics = jax.tree.map(lambda x: x[0], history.rounds)
    assert float(state.params) == 1
    assert (int(metrics.senders), int(metrics.reporting), int(metrics.nonfinite)) == (2, 1, 1)
    kept, history = run(given)
    assert not np.isfinite(kept.params)
    assert history.rounds.reporting.tolist() == [2]


def test_a_dropout_holds_no_place():
    """Two of four candidates drop out: two are in training, and the server waits for them."""
    data = one_number_each(1.0, 3.0, 10.0, 20.0)

    def draw(key, data):
        reports = jnp.array([True, False, True, False])
        return fs.Cohort(jnp.arange(4, dtype=jnp.int32), reports=reports)

    algorithm = fs.asynchronous.fedbuff(TO_THE_TARGET, 3, 3, fs.clocks.equal(4))
    given = fs.Experiment(algorithm, 0.0, data, fs.sampling.custom(4, draw), 2)
    state, history = run(given)
    assert float(state.params) == (1 + 10) / 2
    assert history.rounds.senders.tolist() == [2, 2]
    assert history.rounds.receivers.tolist() == [4, 4]
    nobody = given._replace(
        sampler=fs.sampling.custom(
            4, lambda key, data: draw(key, data)._replace(reports=jnp.zeros(4, bool))
        )
    )
    state, history = run(nobody)
    assert float(state.params) == 0
    assert history.rounds.empty.all()
    assert history.rounds.staleness["mean"].tolist() == [0, 0]


@pytest.mark.slow
def test_compressed_updates_take_less_time(data):
    codec = fs.compression.top_k(0.25)
    slow = fs.clocks.equal(K, step_seconds=0.0, bandwidth=1.0)
    inner = fs.compression.compressed(FEDAVG, codec, error_feedback=True)
    around = fs.asynchronous.fedbuff(inner, 2, 3, slow)
    beside = fs.compression.compressed(
        fs.asynchronous.fedbuff(FEDAVG, 2, 3, slow), codec, error_feedback=True
    )
    _, history = run(experiment(around, data, 3))
    up = fs.communication(inner, zeros(), data).up
    assert history.rounds.seconds[0] == NUM_BYTES + up < 2 * NUM_BYTES
    same(run(experiment(beside, data, 3))[1], history)
