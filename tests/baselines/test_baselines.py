"""The pooled data, and every client alone, against NumPy loops and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import MESH, SIZES, federation, flat, linear_loss, slow_after, zeros
from tests.helpers.reference import blocks, gradient

KEY, LR, K = jax.random.key(3), 0.02, len(SIZES)
NONE = SIZES.index(0)
LOCAL = fs.LocalTraining(2, 4, shuffle=False)


def some_clients():
    """Four at random, of whom one in four does not answer, with stragglers."""

    def draw(key, data):
        cohort = fs.sampling.uniform(4).sample(key, 0, data)
        work = jax.random.uniform(jax.random.fold_in(key, 1), (4,))
        return cohort._replace(
            reports=jax.random.bernoulli(jax.random.fold_in(key, 2), 0.75, (4,)), work=work
        )

    return fs.sampling.custom(4, draw)


def experiment(data, local=LOCAL, sampler=None, rounds=5, algorithm=None, **rest):
    algorithm = algorithm or fs.fedavg(linear_loss, optax.sgd(LR), local)
    return fs.Experiment(
        algorithm, zeros(), data, sampler or fs.sampling.everyone(), rounds, **rest
    )


def run(experiment, key=KEY):
    return jax.jit(experiment.run)(key)


def sgd(v, x, y, steps, lr=LR):
    for rows in steps:
        v = v - lr * gradient(v, x[rows], y[rows])
    return v


def pooled(clients):
    return np.concatenate([x for x, _ in clients]), np.concatenate([y for _, y in clients])


def federated_steps(experiment, data):
    """Of each round, from its cohort, in NumPy."""
    local, found = experiment.algorithm.local, []
    for t in range(experiment.num_rounds):
        cohort = experiment.sampler.sample(KEY, t, data)
        ids = np.asarray(cohort.client_ids)
        size = local.batch_size or max(SIZES)
        steps = np.array([local.epochs * -(-SIZES[k] // size) for k in ids])
        if cohort.work is not None:
            steps = np.floor(np.asarray(cohort.work, np.float64) * steps + 1e-5).astype(int)
        if cohort.reports is not None:
            steps = np.where(np.asarray(cohort.reports), steps, 0)
        found.append(steps.sum())
    return found


@pytest.mark.parametrize("sampler", [fs.sampling.everyone(), some_clients()], ids=["all", "some"])
def test_centralised_is_sgd_on_the_pooled_data(clients, data, sampler):
    x, y = pooled(clients)
    given = experiment(data, sampler=sampler)
    steps = federated_steps(given, data)
    v = np.zeros(5)
    for number in steps:
        v = sgd(v, x, y, blocks(len(y), 99, 4, "epochs")[:number])
    state, history = run(fs.baselines.centralised(given))
    np.testing.assert_array_equal(history.rounds.client_steps, steps)
    np.testing.assert_array_equal(history.rounds.lane_steps, steps)  # nothing is padded
    np.testing.assert_allclose(flat(state.params), v, atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "batch_size"),
    [
        (some_clients(), 4),
        pytest.param(some_clients(), None, marks=pytest.mark.slow),
        (fs.sampling.bernoulli(0.3), 16),
        pytest.param(fs.sampling.with_replacement(12), 4, marks=pytest.mark.slow),
    ],
)
def test_centralised_takes_the_federated_runs_steps(data, sampler, batch_size):
    given = experiment(data, fs.LocalTraining(3, batch_size), sampler, rounds=8)
    central = fs.baselines.centralised(given)
    there, here = run(given)[1].rounds, run(central)[1].rounds
    np.testing.assert_array_equal(here.client_steps, there.client_steps)
    size = min(batch_size or 99, -(-sum(SIZES) // K))
    assert central.algorithm.local.batch_size == size
    assert np.all(here.examples <= here.client_steps * size)
    assert len(set(np.asarray(there.client_steps))) > 1


@pytest.mark.parametrize(
    ("kind", "batch_size"),
    [
        ("fedavg", None),
        ("scaffold", 4),
        *(
            pytest.param(kind, 4, marks=pytest.mark.slow)
            for kind in ("fedavg", "fedprox", "momentum")
        ),
    ],
)
def test_a_federation_of_one_is_centralised(clients, kind, batch_size):
    data, local = federation(clients[5:6]), fs.LocalTraining(2, batch_size)
    algorithm = {
        "fedavg": lambda: fs.fedavg(linear_loss, optax.sgd(LR), local),
        "fedprox": lambda: fs.fedprox(linear_loss, optax.sgd(LR), local, mu=0.5),
        "scaffold": lambda: fs.scaffold(linear_loss, LR, local),
        "momentum": lambda: fs.fedavg(
            linear_loss, optax.sgd(LR, momentum=0.9), local, optax.sgd(0.7, momentum=0.5)
        ),
    }[kind]()
    given = experiment(data, algorithm=algorithm, evaluate=lambda params: params["b"])
    there, here = run(given), run(fs.baselines.centralised(given))
    np.testing.assert_allclose(flat(here[0].params), flat(there[0].params), atol=1e-6)
    np.testing.assert_allclose(here[1].evaluation, there[1].evaluation, atol=1e-6)
    np.testing.assert_array_equal(here[1].rounds.examples, there[1].rounds.examples)


def test_centralised_sees_every_example_once_a_pass_and_shuffles_each_round(data):
    """A loss linear in w moves it by the sum of what was seen, whatever the order."""
    marked = fs.FederatedData.from_clients(
        [
            {"x": np.eye(60, dtype=np.float32)[a : a + n]}
            for a, n in zip(np.cumsum((0, *SIZES)), SIZES, strict=False)
        ]
    )
    algorithm = fs.fedavg(
        lambda w, batch, key: -(batch["x"] @ w) * 4, optax.sgd(1.0), fs.LocalTraining(1, 4)
    )
    given = fs.Experiment(
        algorithm, np.zeros(60, np.float32), marked, fs.sampling.uniform(3), 4, evaluate=lambda w: w
    )
    _, history = run(fs.baselines.centralised(given))
    seen = np.diff(np.concatenate([np.zeros((1, 60)), history.evaluation]), axis=0)
    np.testing.assert_allclose(seen.sum(1), history.rounds.examples, atol=1e-4)
    first = [np.flatnonzero(row > 0.5) for row in seen]
    assert all(np.allclose(row[rows], 1, atol=1e-5) for row, rows in zip(seen, first, strict=True))
    assert len({tuple(rows) for rows in first}) == 4


def test_centralised_keeps_vmapped_and_replaces_what_cannot_hold_one_client(data):
    results = []
    for execution in (
        None,
        fs.execution.packed(4),
        fs.execution.vmapped(),
        fs.execution.sharded(MESH, fs.execution.packed(2)),
    ):
        given = fs.baselines.centralised(experiment(data, execution=execution))
        kept = execution if execution == fs.execution.vmapped() else fs.execution.packed(1)
        assert given.execution == kept
        results.append(flat(run(given)[0].params))
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-6)


def test_baselines_of_traced_hyperparameters_sweep(data):
    def final(lr, baseline):
        given = experiment(data, algorithm=fs.fedavg(linear_loss, optax.sgd(lr), LOCAL), rounds=2)
        state, _ = baseline(given).run(KEY)
        if baseline is fs.baselines.local_only:
            return fs.baselines.local_models(state)
        return state.params

    lrs = jnp.array([0.01, 0.02])
    for baseline in (fs.baselines.centralised, fs.baselines.local_only):
        both = jax.jit(jax.vmap(lambda lr, b=baseline: final(lr, b)))(lrs)
        one = jax.jit(lambda lr, b=baseline: final(lr, b))(lrs[1])
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y, atol=1e-5), both, one)


@pytest.mark.parametrize(
    "execution",
    [None, fs.execution.vmapped(), fs.execution.packed(3), fs.execution.sharded(MESH)],
    ids=["automatic", "vmapped", "packed", "sharded"],
)
def test_local_only_is_sgd_on_each_clients_data(clients, data, execution):
    given = experiment(data, execution=execution)
    state, history = run(fs.baselines.local_only(given))
    models = fs.baselines.local_models(state)
    for k, (x, y) in enumerate(clients):
        v = sgd(np.zeros(5), x, y, blocks(len(y), LOCAL.epochs, 4, "epochs") * 5)
        got = flat(jax.tree.map(lambda x, k=k: x[k], models))
        np.testing.assert_allclose(got, v, atol=1e-5, err_msg=f"client {k}")
    np.testing.assert_array_equal(flat(state.params), 0)
    assert history.evaluation == ()
    assert not history.rounds.empty.any()


def test_local_only_takes_the_federated_runs_budget(clients, data):
    given = experiment(data, sampler=some_clients(), rounds=8, evaluate=lambda params: params)
    there = run(given)[1].rounds
    state, history = run(fs.baselines.local_only(given))
    for name in ("client_steps", "examples", "senders", "receivers", "reporting"):
        np.testing.assert_array_equal(getattr(history.rounds, name), getattr(there, name))
    v = np.zeros((K, 5))
    for t in range(8):
        cohort = given.sampler.sample(KEY, t, data)
        for k, reports, work in zip(cohort.client_ids, cohort.reports, cohort.work, strict=True):
            x, y = clients[k]
            steps = blocks(len(y), 2, 4, "epochs")
            steps = steps[: int(float(work) * len(steps) + 1e-5) if reports else 0]
            v[k] = sgd(v[k], x, y, steps)
    models = fs.baselines.local_models(state)
    got = np.column_stack([models["w"], models["b"]])
    np.testing.assert_allclose(got, v, atol=1e-5)
    alone = fs.baselines.local_only(given)
    exchange = fs.communication(alone.algorithm, zeros(), data)
    assert (exchange.down, exchange.up) == (4, 0)


def qfedavg(local):
    """Has a probe: see ARCHITECTURE.md."""
    base = fs.fedavg(linear_loss, optax.sgd(LR), local)

    def probe(message, client_state, batch, mask):
        return jnp.sum(jnp.where(mask, linear_loss(message.params, batch, None), 0))

    def init(message, client_state, probed, key):
        return base.client.init(message, client_state, (), key), probed

    def step(carry, message, client_state, batch, mask, key):
        descent, metrics = base.client.step(carry[0], message, client_state, batch, mask, key)
        return (descent, carry[1]), metrics

    def finish(carry, message, client_state, num_examples, num_steps, key):
        output = base.client.finish(carry[0], message, client_state, num_examples, num_steps, key)
        update = jax.tree.map(lambda d: d / (1 + 0.01 * carry[1]), output.update)
        return output._replace(update=update)

    return base._replace(client=fs.ClientUpdate(init, step, finish, probe))


ALGORITHMS = {
    "fedavg": lambda: fs.fedavg(linear_loss, optax.sgd(LR), LOCAL),
    "scheduled": lambda: fs.fedavg(
        linear_loss, lambda t: optax.sgd(jnp.where(t < 1, LR, LR / 2)), LOCAL
    ),
    "server momentum": lambda: fs.fedavg(
        linear_loss, optax.sgd(LR), LOCAL, optax.sgd(0.7, momentum=0.9)
    ),
    "fedprox": lambda: fs.fedprox(linear_loss, optax.sgd(LR), LOCAL, mu=0.5),
    "fedsgd": lambda: fs.fedsgd(linear_loss, optax.sgd(LR)),
    "scaffold": lambda: fs.scaffold(linear_loss, LR, LOCAL),
    "probe": lambda: qfedavg(LOCAL),
}


# Those with a client state and with a probe first.
@pytest.mark.parametrize("kind", slow_after(2, reversed(ALGORITHMS)))
def test_local_only_is_a_federation_of_each_client(clients, data, kind):
    algorithm = ALGORITHMS[kind]()
    state, _ = run(fs.baselines.local_only(experiment(data, algorithm=algorithm, rounds=3)))
    models = fs.baselines.local_models(state)
    for k in (1, 3, 4):
        alone, _ = run(experiment(federation(clients[k : k + 1]), algorithm=algorithm, rounds=3))
        got = flat(jax.tree.map(lambda x, k=k: x[k], models))
        np.testing.assert_allclose(got, flat(alone.params), atol=1e-5)
        assert np.abs(got).max() > 1e-3


def test_with_one_client_local_only_is_fedavg(clients):
    given = experiment(federation(clients[5:6]), fs.LocalTraining(2, 4))
    there, here = run(given), run(fs.baselines.local_only(given))
    got = jax.tree.map(lambda x: x[0], fs.baselines.local_models(here[0]))
    np.testing.assert_allclose(flat(got), flat(there[0].params), atol=1e-6)
    np.testing.assert_allclose(
        here[1].rounds.train["loss"], there[1].rounds.train["loss"], rtol=1e-5
    )


def metrics(params, batch, key):
    losses = linear_loss(params, batch, key)
    return losses, {"close": (losses < 1).astype(jnp.float32)}


@pytest.mark.parametrize("batch_size", [4, 1024])
def test_evaluate_local(clients, data, batch_size):
    models = np.random.default_rng(1).normal(size=(K, 5))
    params = {"w": models[:, :4].astype(np.float32), "b": models[:, 4].astype(np.float32)}
    test = federation(clients[1:3])
    found = fs.baselines.evaluate_local(metrics, params, test, data, batch_size=batch_size)

    def loss(v, x, y):
        return (x @ v[:4] + v[4] - y) ** 2

    on_test = np.array([loss(v, *clients[1]) for v in models])
    on_own = [loss(v, x, y) for v, (x, y) in zip(models, clients, strict=True)]
    np.testing.assert_allclose(found.test["loss"], on_test.mean(1), rtol=1e-4)
    np.testing.assert_allclose(found.test["close"], (on_test < 1).mean(1), atol=1e-6)
    has = [k for k in range(K) if k != NONE]
    assert np.isnan(found.clients["loss"][NONE])
    means = np.array([on_own[k].mean() for k in has])
    close = np.array([(on_own[k] < 1).mean() for k in has])
    np.testing.assert_allclose(np.asarray(found.clients["loss"])[has], means, rtol=1e-4)
    np.testing.assert_allclose(np.asarray(found.clients["close"])[has], close, atol=1e-6)

    statistics = found.statistics
    assert set(statistics) == {"test_loss", "test_close", "clients_loss", "clients_close"}
    np.testing.assert_allclose(statistics["clients_loss"].mean, means.mean(), rtol=1e-4)
    np.testing.assert_allclose(statistics["clients_loss"].worst_tenth, means.max(), rtol=1e-4)
    np.testing.assert_allclose(statistics["clients_close"].worst_tenth, close.min(), atol=1e-6)
    np.testing.assert_allclose(statistics["test_loss"].mean, on_test.mean(1)[has].mean(), rtol=1e-4)
    weights = np.array([SIZES[k] for k in has])
    np.testing.assert_allclose(
        statistics["clients_loss"].weighted_mean, np.average(means, weights=weights), rtol=1e-4
    )


def test_evaluate_local_of_a_run_in_one_compiled_call(data):
    state, _ = run(fs.baselines.local_only(experiment(data)))
    traces = []

    def loss(params, batch, key):
        traces.append(1)
        return linear_loss(params, batch, key)

    score = jax.jit(lambda state: fs.baselines.evaluate_local(loss, state, clients=data))
    found = score(state)
    count = len(traces)
    score(state)
    assert len(traces) == count <= 4
    models = fs.baselines.local_models(state)
    same = fs.baselines.evaluate_local(loss, models, clients=data)
    np.testing.assert_allclose(found.clients["loss"], same.clients["loss"], rtol=1e-5)
    assert found.test == {}
    federated = fs.evaluate(linear_loss, run(experiment(data))[0].params, data)
    better = np.asarray(found.clients["loss"] < federated.clients["loss"])
    assert better[[k for k in range(K) if k != NONE]].all()  # the clients disagree


def test_refusals(data):
    baselines = fs.baselines
    given = experiment(data)

    def refused(message, function, *args, **named):
        with pytest.raises(ValueError, match=message):
            function(*args, **named)

    for baseline in (baselines.centralised, baselines.local_only):
        refused("experiment must be an fs.Experiment; got int", baseline, 3)
    sgd = given._replace(algorithm=fs.fedsgd(linear_loss, optax.sgd(0.1)))
    refused("experiment.algorithm must take local steps", baselines.centralised, sgd)
    twice = given._replace(sampler=fs.sampling.with_replacement(2))
    refused("sampler must not draw with replacement", baselines.local_only, twice)
    refused(
        "state must come from a run of fs.baselines.local_only",
        baselines.local_models,
        given.start(KEY),
    )
    models = {"w": np.zeros((3, 4), np.float32), "b": np.zeros(3, np.float32)}
    score = baselines.evaluate_local
    refused("must be given test, clients or both", score, linear_loss, models)
    refused("one for each of the 3 models; got 8", score, linear_loss, models, None, data)
    refused("test must be an fs.FederatedData; got dict", score, linear_loss, models, {})
    refused("batch_size must be", score, linear_loss, models, data, batch_size=0)
    refused(
        r"leaves \[K, ...\] with one K; got shapes \[\(\), \(4,\)\]",
        score,
        linear_loss,
        zeros(),
        data,
    )
