"""Clients' own models measured within a run, and before and after fine-tuning, beside NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.results.trained import trained_params
from fedjax_sim.transforms.compression.uplink import WithResidual
from tests.conftest import SIZES, federation, linear_loss, zeros
from tests.helpers.reference import blocks, gradient
from tests.training.test_personal import losses

LR, KEY, K = 0.03, jax.random.key(1), len(SIZES)
LOCAL = fs.LocalTraining(2, 4, shuffle=False)
ALGORITHM = fs.partial(fs.fedavg(linear_loss, optax.sgd(LR), LOCAL), "b")
TEST_SIZES = (3, 1, 4, 0, 9, 2, 0, 5)


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(5)
    return [(rng.normal(size=(n, 4)), rng.normal(size=n)) for n in TEST_SIZES]


@pytest.fixture(scope="module")
def experiment(data, pairs):
    measure = fs.evaluator(
        linear_loss, federation(pairs), clients=data, personal=ALGORITHM, train=data
    )
    return fs.Experiment(
        ALGORITHM, zeros(), data, fs.sampling.uniform(3), num_rounds=4, evaluate=measure
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def simulation(experiment, folder):
    return fs.simulate(experiment, KEY, out=folder)


def models_of(state):
    """[K, 5], each client's own."""
    w = np.broadcast_to(np.asarray(state.params["w"]), (K, 4))
    return np.concatenate([w, np.asarray(state.clients.personal["b"])[:, None]], axis=1)


def test_a_run_measures_each_clients_own_model(clients, pairs, simulation):
    models = models_of(simulation.state)
    assert len(np.unique(models[:, 4])) > 3
    measured = {name: x[-1] for name, x in simulation.history.evaluation.items()}
    np.testing.assert_allclose(measured["test_loss"], losses(pairs, models)[1], rtol=1e-5)
    of_clients = losses(clients, models)[0]
    np.testing.assert_allclose(measured["clients_loss_mean"], np.nanmean(of_clients), rtol=1e-5)
    weighted = np.nansum(of_clients * SIZES) / sum(SIZES)
    np.testing.assert_allclose(measured["clients_loss_weighted_mean"], weighted, rtol=1e-5)
    worst = np.nanmax(of_clients)
    np.testing.assert_allclose(measured["clients_loss_worst_tenth"], worst, rtol=1e-5)


def test_the_model_that_a_run_leaves_has_the_clients_own_parameters(simulation, folder):
    """In their places, [K, ...]; also where what is sent is compressed."""
    left = fs.load(folder).params
    np.testing.assert_array_equal(left["w"], simulation.state.params["w"])
    np.testing.assert_array_equal(left["b"], simulation.state.clients.personal["b"])
    state = simulation.state
    with_residual = replace(state, clients=WithResidual(state.clients, ()))
    np.testing.assert_array_equal(trained_params(with_residual)["b"], left["b"])


@pytest.mark.slow
def test_runs_and_sweeps_measure_the_same(experiment, simulation, tmp_path):
    """Every second round, too, where a branch passes the state over."""
    _, history = experiment._replace(evaluate_every=2).run(KEY)
    own, other = simulation.history.evaluation["test_loss"], history.evaluation["test_loss"]
    assert history.evaluated.tolist() == [False, True, False, True]
    np.testing.assert_allclose(other[1::2], own[1::2], rtol=1e-6)

    def make(lr):
        algorithm = fs.partial(fs.fedavg(linear_loss, optax.sgd(lr), LOCAL), "b")
        return experiment._replace(algorithm=algorithm)

    results = fs.sweep(
        make,
        {"lr": [LR, 0.01]},
        [1],
        out=tmp_path,
        keep_models="best",
        metric="test_loss",
    )
    np.testing.assert_allclose(results.runs[0].rounds["test_loss"], own, rtol=1e-5)
    kept = fs.load(tmp_path, {"lr": LR}, 1)
    assert kept.value == pytest.approx(float(min(own)), rel=1e-5)


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(experiment, simulation, tmp_path):
    short = experiment._replace(num_rounds=2)
    fs.simulate(short, KEY, out=tmp_path, keep_model="best", metric="test_loss")
    resumed = fs.simulate(
        experiment, KEY, out=tmp_path, resume=True, keep_model="best", metric="test_loss"
    )
    for a, b in zip(
        jax.tree.leaves((simulation.state, simulation.history)),
        jax.tree.leaves((resumed.state, resumed.history)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_measure_of_ones_own(data):
    """Marked explicitly; one that is not is given the model."""
    kept = fs.of_state(lambda state: {"kept": jnp.sum(state.clients.personal["b"] != 0)})
    assert repr(kept).startswith("OfState(measure=")
    experiment = fs.Experiment(ALGORITHM, zeros(), data, fs.sampling.uniform(3), 1, evaluate=kept)
    _, history = experiment.run(KEY)
    assert 1 <= int(history.evaluation["kept"][0]) <= 3
    for wrong, message in ((3, "measure must be a function"), (lambda: 0, "measure must take")):
        with pytest.raises(ValueError, match=message):
            fs.of_state(wrong)


def test_whose_models_are_measured_must_be_said(data):
    with pytest.raises(ValueError, match="train must be given with personal"):
        fs.evaluator(linear_loss, data, personal=ALGORITHM)
    with pytest.raises(ValueError, match="personal must be given with train"):
        fs.evaluator(linear_loss, data, train=data)
    pooled = fs.FederatedData.from_clients([data.examples])
    measure = fs.evaluator(linear_loss, pooled, personal=ALGORITHM, train=data)
    experiment = fs.Experiment(
        ALGORITHM, zeros(), data, fs.sampling.uniform(3), 1, evaluate=measure
    )
    with pytest.raises(ValueError, match="test must be of the 8 clients of data"):
        experiment.check(KEY)


def tuned(clients, models):
    """Each model after two epochs of blocks of four at another rate."""
    after = models.copy()
    for k, (x, y) in enumerate(clients):
        for rows in blocks(len(y), 2, 4, "epochs"):
            after[k] -= 0.1 * gradient(after[k], x[rows], y[rows])
    return after


FINE_TUNING = fs.FineTuning(optax.sgd(0.1), LOCAL)


def test_fine_tuning_beside_numpy(clients, data, pairs, simulation):
    state = simulation.state
    some = np.array([5, 2, 1, 3])

    @jax.jit
    def measure(state):
        return [
            fs.evaluate_clients(
                linear_loss, ALGORITHM, state, data, test=federation(pairs), fine_tune=FINE_TUNING
            ),
            fs.evaluate_clients(
                linear_loss, ALGORITHM, state, data, clients=some, fine_tune=FINE_TUNING, lanes=2
            ),
        ]

    models = models_of(state)
    # Client 2 has no example to train on.
    after = tuned(clients, models)
    np.testing.assert_array_equal(after[2], models[2])
    on_test, of_some = measure(state)
    own = [clients[k] for k in some]
    for result, examples, rows in ((on_test, pairs, range(K)), (of_some, own, some)):
        for evaluation, of_clients in ((result.before, models), (result.after, after)):
            by_client, mean = losses(examples, of_clients[np.array(rows)])
            np.testing.assert_allclose(evaluation.clients["loss"], by_client, rtol=2e-5)
            np.testing.assert_allclose(evaluation.mean["loss"], mean, rtol=2e-5)
    # It trains on every example that it has, in an order of the key's.
    assert repr(on_test).startswith("FineTuned(before=Evaluation(")


def test_clients_that_were_never_trained_on(clients, simulation):
    """Three others: the global model with the first model's own parameter, and fine-tuned."""
    new = clients[3:6]
    result = fs.evaluate_clients(
        linear_loss,
        ALGORITHM,
        simulation.state,
        federation(new),
        fine_tune=FINE_TUNING,
        unseen=True,
    )
    first = np.tile(np.append(np.asarray(simulation.state.params["w"]), 0.0), (3, 1))
    by_client, _ = losses(new, first)
    np.testing.assert_allclose(result.before.clients["loss"], by_client, rtol=2e-5)
    by_client, _ = losses(new, tuned(new, first))
    np.testing.assert_allclose(result.after.clients["loss"], by_client, rtol=2e-5)


def test_a_shuffle_is_of_the_clients_own_stream(data, simulation):
    """Another key, another order; and the lanes change no number."""
    shuffled = FINE_TUNING._replace(local=fs.LocalTraining(1, 4))

    @jax.jit
    def measure(key):
        return fs.evaluate_clients(
            linear_loss, ALGORITHM, simulation.state, data, fine_tune=shuffled, key=key
        ).after.clients["loss"]

    one, other = measure(jax.random.key(0)), measure(jax.random.key(1))
    larger = np.array(SIZES) > 4
    # All but one may be given the same last block by chance, a client of five once in five times.
    assert (np.asarray(one)[larger] != np.asarray(other)[larger]).sum() >= 4
    np.testing.assert_array_equal(one, measure(jax.random.key(0)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fine_tune": 3}, r"fine_tune must be fs.FineTuning\(optimizer, local\).*got int"),
        ({"fine_tune": fs.FineTuning(0.1, LOCAL)}, "fine_tune.optimizer must be an optax"),
        ({"fine_tune": fs.FineTuning(optax.sgd(0.1), 3)}, "local must be an fs.LocalTraining"),
        ({"unseen": 1}, "unseen must be True or False; got 1"),
        ({"key": 3}, "key must be a typed key"),
    ],
)
def test_refusals(data, simulation, wrong, message):
    with pytest.raises(ValueError, match=message):
        fs.evaluate_clients(linear_loss, ALGORITHM, simulation.state, data, **wrong)
