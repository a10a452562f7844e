"""Models of the papers, and a user's own in two lines."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import fedjax_sim as fs
from tests.conftest import standard_promotion

LOCAL = fs.LocalTraining(1, 10)


@pytest.mark.parametrize(
    ("model", "shape", "parameters"),
    [
        (fs.models.logistic_regression(), (784,), 7_850),
        (fs.models.two_nn(), (784,), 199_210),
        (fs.models.cnn(), (28, 28, 1), 1_663_370),
        (fs.models.mlp((8, 8), (32,), 10), (8, 8), 64 * 32 + 32 + 32 * 10 + 10),
    ],
)
def test_parameter_counts(model, shape, parameters):
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == parameters
    out = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((5, *shape), jnp.float32))
    assert out.shape == (5, 10)


def test_the_shakespeare_models_count():
    for vocabulary in (80, 90):
        model = fs.models.character_lstm(vocabulary)
        params = jax.eval_shape(model.init, jax.random.key(0))
        assert sum(x.size for x in jax.tree.leaves(params)) == 796_672 + 265 * vocabulary
        out = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((5, 80), jnp.int32))
        assert out.shape == (5, 80, vocabulary)


@pytest.mark.slow
def test_the_cnn_is_that_of_flaxs_own_layers():
    layers = []
    for channels in (32, 64):
        layers += [nn.Conv(channels, (5, 5)), nn.relu, lambda x: nn.max_pool(x, (2, 2), (2, 2))]
    layers += [lambda x: x.reshape(len(x), -1), nn.Dense(512), nn.relu, nn.Dense(10)]
    own, model = fs.models.from_flax(nn.Sequential(layers), (8, 8, 1)), fs.models.cnn((8, 8, 1))
    params = own.init(jax.random.key(0))
    renamed = dict(zip(model.init(jax.random.key(0)), params.values(), strict=True))
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
    gradients = [
        jax.tree.leaves(jax.grad(lambda p, f=f: jnp.sum(jnp.sin(f(p, x))))(p))
        for f, p in ((own.apply, params), (model.apply, renamed))
    ]
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_a_character_model_learns_a_sequence():
    model = fs.models.character_lstm(vocabulary=7, embedding=4, hidden=(16,), length=6)
    params = model.init(jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(params))
    assert count == 7 * 4 + 4 * (4 * 16 + 16 * 16 + 16) + 17 * 7
    text = np.arange(9 * 6).reshape(9, 6) % 7
    data = fs.FederatedData.from_arrays({"x": text, "y": (text + 1) % 7}, np.arange(9) % 3)
    loss_fn = fs.models.cross_entropy(model.apply)
    algorithm = fs.fedavg(loss_fn, optax.sgd(1.0), fs.LocalTraining(2, 2))
    state = fs.init(algorithm, params, data)
    losses, values = loss_fn(params, data.examples, None)
    assert losses.shape == values["accuracy"].shape == (9,)
    logits = np.asarray(model.apply(params, data.examples["x"]))
    picked = np.take_along_axis(logits, data.examples["y"][..., None], 2)[..., 0]
    by_hand = (np.log(np.exp(logits).sum(-1)) - picked).mean(1)
    np.testing.assert_allclose(losses, by_hand, rtol=1e-5)
    round_fn = fs.make_round(algorithm)
    state, history = jax.jit(
        lambda state: fs.run(round_fn, jax.random.key(0), state, data, fs.sampling.everyone(), 30)
    )(state)
    assert float(history.rounds.train["accuracy"][-1]) > 0.9
    wrong = fs.FederatedData.from_arrays({"x": text, "y": text[:, 0]}, np.arange(9) % 3)
    with pytest.raises(ValueError, match=r"shape \[N, 6\] for .*outputs \[N, 6, 7\]; got \[N\]"):
        fs.init(algorithm, params, wrong)
    with pytest.raises(ValueError, match=r"hidden must be .*got 0"):
        fs.models.character_lstm(hidden=(0,))


def digits():
    dataset = fs.datasets.digits()
    ids = fs.partition.iid(jax.random.key(0), len(dataset.train["y"]), 10)
    return dataset, fs.FederatedData.from_arrays(dataset.train, ids)


def linen():
    module = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(10)])
    params = module.init(jax.random.key(0), jnp.zeros((1, 8, 8)))
    loss_fn = lambda params, batch, key: optax.softmax_cross_entropy_with_integer_labels(
        module.apply(params, batch["x"]), batch["y"]
    )
    return params, loss_fn


def nnx_module():
    module = nnx.Linear(64, 10, rngs=nnx.Rngs(0))
    graph, params = nnx.split(module)
    loss_fn = lambda params, batch, key: optax.softmax_cross_entropy_with_integer_labels(
        nnx.merge(graph, params)(batch["x"].reshape(-1, 64)), batch["y"]
    )
    return params, loss_fn


def equinox():
    module = eqx.nn.MLP(64, 10, 16, 1, key=jax.random.key(0))
    params, static = eqx.partition(module, eqx.is_inexact_array)
    loss_fn = lambda params, batch, key: optax.softmax_cross_entropy_with_integer_labels(
        jax.vmap(eqx.combine(params, static))(batch["x"].reshape(-1, 64)), batch["y"]
    )
    return params, loss_fn


def bare():
    params = {"w": jnp.zeros((64, 10))}
    loss_fn = lambda params, batch, key: optax.softmax_cross_entropy_with_integer_labels(
        batch["x"].reshape(-1, 64) @ params["w"], batch["y"]
    )
    return params, loss_fn


@pytest.mark.parametrize(
    "make",
    [linen, *(pytest.param(make, marks=pytest.mark.slow) for make in (nnx_module, equinox)), bare],
)
@standard_promotion()
def test_a_users_own_model(make):
    params, loss_fn = make()
    _, data = digits()
    algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), LOCAL)
    state = fs.init(algorithm, params, data)
    round_fn = fs.make_round(algorithm)
    state, history = jax.jit(
        lambda state: fs.run(round_fn, jax.random.key(0), state, data, fs.sampling.uniform(5), 5)
    )(state)
    losses = np.asarray(history.rounds.train["loss"])
    assert losses[-1] < 0.9 * losses[0]
    assert jax.tree.structure(state.params) == jax.tree.structure(params)


def test_regression_assumes_no_classes():
    dataset = fs.datasets.wind(jax.random.key(0))
    data = fs.FederatedData.from_arrays(dataset.train, dataset.client_ids)
    model = fs.models.mlp((4,), (16,), 1)
    loss_fn = fs.models.squared_error(model.apply)
    algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining(2, 20))
    state = fs.init(algorithm, model.init(jax.random.key(0)), data)
    test = fs.FederatedData.from_clients([dataset.test])
    before = fs.evaluate(loss_fn, state.params, test).mean["loss"]
    state, _ = jax.jit(
        lambda state: fs.run(
            fs.make_round(algorithm), jax.random.key(0), state, data, fs.sampling.uniform(5), 20
        )
    )(state)
    after = fs.evaluate(loss_fn, state.params, test).mean["loss"]
    assert float(after) < 0.2 * float(before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"y": d["y"].astype(np.float32)}, "must be integers; got float32"),
        (lambda d: d | {"y": d["y"] + 1}, r"must lie in \[0, 10\).*got 10"),
        (lambda d: d | {"y": d["y"] - 1}, r"must lie in \[0, 10\).*got -1"),
        (lambda d: {"image": d["x"], "y": d["y"]}, 'take examples {"x"'),
    ],
)
def test_labels_that_do_not_fit_are_refused(change, message):
    examples = change(fs.datasets.digits().train)
    data = fs.FederatedData.from_arrays(examples, np.arange(1437) % 7)
    model = fs.models.logistic_regression((8, 8), 10)
    algorithm = fs.fedavg(fs.models.cross_entropy(model.apply), optax.sgd(0.1), LOCAL)
    with pytest.raises(ValueError, match=message):
        fs.init(algorithm, model.init(jax.random.key(0)), data)


def test_targets_that_do_not_fit_are_refused():
    model = fs.models.mlp((4,), (), 1)
    algorithm = fs.fedavg(fs.models.squared_error(model.apply), optax.sgd(0.1), LOCAL)
    data = fs.FederatedData.from_clients([{"x": np.ones((3, 4)), "y": np.ones((3, 2))}])
    with pytest.raises(ValueError, match="targets"):
        fs.init(algorithm, model.init(jax.random.key(0)), data)


def test_evaluate_overall_and_by_client():
    _, data = digits()
    model = fs.models.logistic_regression((8, 8))
    loss_fn = fs.models.cross_entropy(model.apply)
    params = model.init(jax.random.key(3))
    small = jax.jit(lambda p: fs.evaluate(loss_fn, p, data, batch_size=100))(params)
    losses, values = loss_fn(params, data.examples, None)
    np.testing.assert_allclose(small.mean["loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(small.mean["accuracy"], values["accuracy"].mean(), rtol=1e-5)
    for k in range(10):
        rows = slice(int(data.offsets[k]), int(data.offsets[k] + data.num_examples[k]))
        np.testing.assert_allclose(small.clients["loss"][k], losses[rows].mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="metric_fn must return one loss for each"):
        fs.evaluate(lambda p, b, k: jnp.float32(0), params, data)
    with pytest.raises(ValueError, match=r"batch_size must be .*got 0"):
        fs.evaluate(loss_fn, params, data, batch_size=0)
    holes = fs.FederatedData.from_clients([np.ones(1), np.ones(0), 3 * np.ones(2), np.ones(0)])
    result = fs.evaluate(lambda p, b, k: b, 0.0, holes)
    np.testing.assert_array_equal(result.clients["loss"], [1, np.nan, 3, np.nan])
