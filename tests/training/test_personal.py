"""Each client's own model on its own examples, beside NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import SIZES, federation, flat, linear_loss, several_models, zeros
from tests.helpers.reference import Server, blocks

LOCAL, KEY = fs.LocalTraining(2, 4, shuffle=False), jax.random.key(0)
K = len(SIZES)


@pytest.fixture(scope="module")
def tests_of_clients():
    """Their own test sets, of none to nine examples; client 2 has no training example."""
    rng = np.random.default_rng(5)
    return [(rng.normal(size=(n, 4)), rng.normal(size=n)) for n in (3, 1, 4, 0, 9, 2, 0, 5)]


def losses(pairs, models):
    """Each client's mean loss of its model, NaN without an example; and the mean over examples."""
    errors = [(x @ w[:-1] + w[-1] - y) ** 2 for (x, y), w in zip(pairs, models, strict=True)]
    by_client = np.array([np.mean(e) if len(e) else np.nan for e in errors])
    return by_client, np.mean(np.concatenate(errors))


def test_what_stays_with_clients_is_read_without_their_data(data):
    """FedRep's clients count their examples to train, which says nothing of their models."""
    algorithm = fs.fedrep(linear_loss, optax.sgd(0.05), LOCAL, "b", head_epochs=1)
    sparse = fs.compression.compressed(algorithm, fs.compression.top_k(0.5))
    for of_clients in (algorithm, sparse):
        state = fs.init(of_clients, zeros(), data)
        kept = jnp.arange(K, dtype=jnp.float32)
        state = dataclasses.replace(state, clients=state.clients._replace(personal={"b": kept}))
        np.testing.assert_array_equal(fs.personal_params(of_clients, state)["b"], kept)


def test_ifcas_clients_use_the_model_that_fits_them_best(clients, data, tests_of_clients):
    algorithm = fs.ifca(linear_loss, optax.sgd(0.05), LOCAL, num_models=2)
    state = fs.init(algorithm, several_models(), data)
    round_fn = jax.jit(fs.make_round(algorithm, execution=fs.execution.vmapped()))
    state, _ = round_fn(KEY, state, data, fs.Cohort(jnp.array([1, 4, 5, 7])))
    # Client 2 has nothing to choose by, and has the first.
    server = Server("ifca", clients, SIZES, 5, 0.05, start=flat(state.params))
    chosen = [server.cluster(k) if SIZES[k] else 0 for k in range(K)]
    assert set(chosen) == {0, 1}
    models = server.w[chosen]
    np.testing.assert_allclose(flat(fs.personal_params(algorithm, state, data)), models, rtol=1e-6)
    with pytest.raises(ValueError, match="data must be given"):
        fs.personal_params(algorithm, state)
    test = federation(tests_of_clients)
    some = np.array([7, 0, 3, 4])

    @jax.jit
    def measure(state):
        return [
            fs.evaluate_clients(linear_loss, algorithm, state, data),
            fs.evaluate_clients(linear_loss, algorithm, state, data, test=test, batch_size=2),
            fs.evaluate_clients(
                linear_loss, algorithm, state, data, test=test, clients=some, lanes=3
            ),
        ]

    on_train, on_test, of_some = measure(state)
    for result, pairs, own in (
        (on_train, clients, models),
        (on_test, tests_of_clients, models),
        (of_some, [tests_of_clients[k] for k in some], models[some]),
    ):
        by_client, mean = losses(pairs, own)
        np.testing.assert_allclose(result.clients["loss"], by_client, rtol=1e-5)
        np.testing.assert_allclose(result.mean["loss"], mean, rtol=1e-5)


def test_models_that_clients_keep(clients, data, tests_of_clients):
    """FedAvg whose clients keep what they trained, and use it."""
    base = fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL)

    def finish(carry, *rest):
        return base.client.finish(carry, *rest)._replace(client_state=carry.params)

    algorithm = base._replace(
        init_client=lambda params: params,
        client=base.client._replace(finish=finish),
        personal=lambda server, client_state, probed: client_state,
    )
    state = fs.init(algorithm, zeros(), data)
    round_fn = jax.jit(fs.make_round(algorithm, execution=fs.execution.vmapped()))
    state, _ = round_fn(KEY, state, data, fs.Cohort(jnp.array([1, 5])))
    server = Server("fedavg", clients, SIZES, 5, 0.05)
    models = np.zeros((K, 5))
    for k in (1, 5):
        models[k] = server.train(k, blocks(SIZES[k], 2, 4, "epochs"))
    own = fs.personal_params(algorithm, state, data)
    np.testing.assert_allclose(flat(own), models, atol=1e-6)
    np.testing.assert_array_equal(flat(fs.personal_params(algorithm, state)), flat(own))
    result = fs.evaluate_clients(
        linear_loss, algorithm, state, data, test=federation(tests_of_clients)
    )
    by_client, mean = losses(tests_of_clients, models)
    np.testing.assert_allclose(result.clients["loss"], by_client, rtol=1e-5)
    np.testing.assert_allclose(result.mean["loss"], mean, rtol=1e-5)


def test_without_personal_models_it_is_the_global_one(data):
    def metric(params, batch, key):
        loss = linear_loss(params, batch, key)
        return loss, {"below_2": jnp.where(loss < 2, 1.0, 0.0)}

    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL)
    state = fs.init(algorithm, jax.tree.map(lambda w: w[0], several_models()), data)
    result, expected = jax.jit(
        lambda state: (
            fs.evaluate_clients(metric, algorithm, state, data),
            fs.evaluate(metric, state.params, data),
        )
    )(state)
    for got, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="algorithm must have personal models"):
        fs.personal_params(algorithm, state, data)


NAMED = ("a", "b", "c")


def named(*names):
    return fs.FederatedData.from_clients([np.ones(2, np.float32)] * len(names), client_names=names)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"test": named("a", "b")}, "test must be of the 3 clients of data.*got 2"),
        ({"test": named("a", "c", "b")}, "client 'b' of data is in the place of 'c'"),
        ({"test": np.ones(3)}, "data must be an fs.FederatedData"),
        ({"clients": [0, 3]}, r"clients must lie in \[0, 3\); got 3"),
        ({"clients": 1}, "clients must be a list of client ids"),
        ({"clients": [0.5]}, "clients must be a list of client ids"),
        ({"batch_size": 0}, "batch_size must be a whole number, at least 1"),
        ({"lanes": 0}, "lanes must be a whole number, at least 1"),
        ({"state": 3}, "state must come from fs.init; got int"),
        ({"metric_fn": lambda params: 1}, "metric_fn must take"),
    ],
)
def test_refusals(wrong, message):
    def loss_fn(w, batch, key):
        return (w - batch) ** 2

    data = named(*NAMED)
    algorithm = fs.ifca(loss_fn, optax.sgd(0.1), LOCAL, num_models=2)
    right = {
        "metric_fn": loss_fn,
        "algorithm": algorithm,
        "state": fs.init(algorithm, np.array([0.0, 1.0]), data),
        "data": data,
    }
    with pytest.raises(ValueError, match=message):
        fs.evaluate_clients(**(right | wrong))


def test_a_state_of_another_federation_is_refused():
    data = named(*NAMED)
    algorithm = fs.scaffold(lambda w, batch, key: (w - batch) ** 2, 0.1, LOCAL)
    state = fs.init(algorithm, 0.0, data)
    with pytest.raises(ValueError, match="federation of 2 clients; it holds states of 3"):
        fs.evaluate_clients(lambda w, b, key: (w - b) ** 2, algorithm, state, named("a", "b"))


def test_a_window_without_the_examples_that_choose_a_model_is_refused():
    """Of no example all models have the loss 0, and the first of equals would be chosen."""

    def loss_fn(w, batch, key):
        return (w - batch) ** 2

    data = fs.FederatedData.from_clients([np.full(2, y, np.float32) for y in (-1, 2, 4)])
    window = fs.FederatedData.window(fs.data.Source.of(data), [0, 2], capacity=4)
    algorithm = fs.ifca(loss_fn, optax.sgd(0.1), LOCAL, num_models=2)
    state = fs.init(algorithm, np.array([0.0, 3.0]), data)
    with pytest.raises(ValueError, match="data must hold all its examples; got a window"):
        fs.personal_params(algorithm, state, window)
    with pytest.raises(ValueError, match="client 1 has none in this window"):
        fs.evaluate_clients(loss_fn, algorithm, state, window, test=data)
    within = fs.evaluate_clients(loss_fn, algorithm, state, window, test=data, clients=[2, 0])
    np.testing.assert_array_equal(within.clients["loss"], [1, 1])
