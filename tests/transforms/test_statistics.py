"""Batch norm in local training: beside NumPy, whatever the padding; kept or averaged; refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import fedjax_sim as fs
from tests.conftest import slow_after

LR, M, SIZES = 0.1, 0.9, (5, 3, 4)
LOCAL, KEY = fs.LocalTraining(2, 4, shuffle=False), jax.random.key(0)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, mask=None):
        norm = nn.BatchNorm(use_running_average=not train, momentum=M, epsilon=0.1)
        x = norm(x, mask=None if mask is None else mask[:, None])
        return nn.Dense(1, use_bias=False)(x)


MODEL = fs.models.from_flax(Net(), (2,))
LOSS = fs.models.squared_error(MODEL.apply)
FEDAVG = fs.fedavg(LOSS, optax.sgd(LR), LOCAL)


@pytest.fixture(scope="module")
def clients():
    rng = np.random.default_rng(0)
    return [(rng.normal(k, 1 + k, (n, 2)), rng.normal(size=(n, 1))) for k, n in enumerate(SIZES)]


@pytest.fixture(scope="module")
def data(clients):
    return fs.FederatedData.from_clients(
        [{"x": x.astype(np.float32), "y": y.astype(np.float32)} for x, y in clients]
    )


@pytest.fixture(scope="module")
def params():
    return MODEL.init(KEY)


def loss_of(vector, x, y):
    """Of [scale (2), bias (2), kernel (2)] on a block, normed by its own statistics."""
    normed = (x - x.mean(0)) / np.sqrt(x.var(0) + 0.1) * vector[:2] + vector[2:4]
    return np.mean((normed @ vector[4:, None] - y) ** 2)


def gradient(vector, x, y):
    steps = 1e-5 * np.eye(6)
    return np.array([loss_of(vector + d, x, y) - loss_of(vector - d, x, y) for d in steps]) / 2e-5


def trained(vector, mean, var, x, y):
    for _ in range(2):
        for first in range(0, len(x), 4):
            rows = slice(first, first + 4)
            mean = M * mean + (1 - M) * x[rows].mean(0)
            var = M * var + (1 - M) * x[rows].var(0)
            vector = vector - LR * gradient(vector, x[rows], y[rows])
    return vector, mean, var


def vector_of(params):
    norm, dense = params["params"]["BatchNorm_0"], params["params"]["Dense_0"]
    parts = (norm["scale"], norm["bias"], dense["kernel"])
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in parts])


@pytest.mark.parametrize("averaged", [False, True])
def test_a_round_beside_numpy(clients, data, params, averaged):
    """The last block of client 0 has one example of four, and that of client 1 three."""
    algorithm = fs.with_statistics(FEDAVG, MODEL.apply, averaged=averaged)
    state = fs.init(algorithm, params, data)
    state, _ = jax.jit(fs.make_round(algorithm, execution=fs.execution.vmapped()))(
        KEY, state, data, fs.Cohort(jnp.arange(2))
    )
    first = vector_of(params), np.zeros(2), np.ones(2)
    results = [trained(*first, *clients[k]) for k in (0, 1)]
    weights = np.array(SIZES[:2]) / sum(SIZES[:2])
    expected = weights @ np.array([vector for vector, _, _ in results])
    np.testing.assert_allclose(vector_of(state.params), expected, atol=2e-5)
    running = state.params["batch_stats"]["BatchNorm_0"]
    for name, place in (("mean", 1), ("var", 2)):
        own = np.array([result[place] for result in results])
        if averaged:
            np.testing.assert_allclose(running[name], weights @ own, rtol=1e-4)
            continue
        np.testing.assert_array_equal(running[name], first[place])
        kept = state.clients.personal[f"batch_stats/BatchNorm_0/{name}"]
        np.testing.assert_allclose(kept[:2], own, rtol=1e-4)
        np.testing.assert_array_equal(kept[2], first[place])
    if not averaged:
        # In inference mode, by the client's own running statistics.
        result = fs.evaluate_clients(LOSS, algorithm, state, data, clients=[1])
        x, y = clients[1]
        normed = (x - results[1][1]) / np.sqrt(results[1][2] + 0.1) * expected[:2] + expected[2:4]
        own = np.mean((normed @ expected[4:, None] - y) ** 2)
        assert float(result.mean["loss"]) == pytest.approx(own, rel=1e-4)
        # Neither statistics nor anything else of them travels: 6 numbers.
        assert tuple(fs.communication(algorithm, params, data)) == (24, 24)


@pytest.mark.parametrize("of_own_loss", [False, True])
def test_fine_tuning_beside_numpy(clients, data, params, of_own_loss):
    """It norms by the block, less its padding, and renews what it is then measured with."""

    def own_loss(params, batch, key):
        if "training_mask" in batch:
            outputs, _ = MODEL.apply.train(params, batch["x"], batch["training_mask"])
        else:
            outputs = MODEL.apply(params, batch["x"])
        return jnp.sum((outputs - batch["y"]) ** 2, axis=1)

    algorithm = fs.with_statistics(FEDAVG, MODEL.apply)
    given = (own_loss, MODEL.apply) if of_own_loss else ()
    tuning = fs.FineTuning(optax.sgd(LR), LOCAL, *given)
    state = fs.init(algorithm, params, data)
    result = fs.evaluate_clients(LOSS, algorithm, state, data, fine_tune=tuning)
    for k, (x, y) in enumerate(clients):
        for evaluation, (vector, mean, var) in (
            (result.before, (vector_of(params), np.zeros(2), np.ones(2))),
            (result.after, trained(vector_of(params), np.zeros(2), np.ones(2), x, y)),
        ):
            normed = (x - mean) / np.sqrt(var + 0.1) * vector[:2] + vector[2:4]
            expected = np.mean((normed @ vector[4:, None] - y) ** 2)
            assert float(evaluation.clients["loss"][k]) == pytest.approx(expected, rel=1e-4)


def test_fine_tuning_refuses_an_apply_without_statistics(data, params):
    algorithm = fs.with_statistics(FEDAVG, MODEL.apply)
    state = fs.init(algorithm, params, data)
    tuning = fs.FineTuning(optax.sgd(LR), LOCAL, apply=fs.models.mlp((2,), (), 1).apply)
    with pytest.raises(ValueError, match=r"fine_tune\.apply must be of fs\.models\.from_flax"):
        fs.evaluate_clients(LOSS, algorithm, state, data, fine_tune=tuning)


AVERAGED = {
    "feddyn": lambda: fs.feddyn(LOSS, optax.sgd(LR), LOCAL, alpha=0.1),
    "fedexp": lambda: fs.partial(fs.fedexp(LOSS, optax.sgd(LR), LOCAL), "params/Dense_0"),
    "fedadam": lambda: fs.fedadam(LOSS, optax.sgd(LR), LOCAL, server_lr=0.5),
    "qfedavg": lambda: fs.qfedavg(LOSS, LR, LOCAL, q=1.0),
    "mimelite": lambda: fs.mimelite(LOSS, LR, LOCAL),
}


@pytest.mark.parametrize("name", slow_after(2, AVERAGED))
def test_averaged_statistics_are_means_whatever_the_server_does(clients, data, params, name):
    """Here they are of the input, so that the parameters do not matter to them."""
    algorithm = fs.with_statistics(AVERAGED[name](), MODEL.apply, averaged=True)
    state = fs.init(algorithm, params, data)
    round_fn = fs.make_round(algorithm, fs.aggregation.all_clients, fs.execution.packed(1))
    cohort = fs.Cohort(jnp.arange(2))

    @jax.jit
    def rounds(state):
        return jax.lax.fori_loop(0, 5, lambda _, s: round_fn(KEY, s, data, cohort)[0], state)

    running = rounds(state).params["batch_stats"]["BatchNorm_0"]
    mean, var = np.zeros(2), np.ones(2)
    weights = np.array(SIZES[:2]) / sum(SIZES)
    for _ in range(5):
        own = [trained(np.ones(6), mean, var, *clients[k])[1:] for k in (0, 1)]
        mean = mean + sum(a * (m - mean) for a, (m, _) in zip(weights, own, strict=True))
        var = var + sum(a * (v - var) for a, (_, v) in zip(weights, own, strict=True))
    np.testing.assert_allclose(running["mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(running["var"], var, rtol=1e-4)


def test_statistics_of_16_bits_keep_their_dtype(data, params):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    algorithm = fs.with_statistics(FEDAVG, MODEL.apply, averaged=True)
    with jax.numpy_dtype_promotion("standard"):  # flax's norm mixes dtypes
        state = fs.init(algorithm, half, data)
        after, _ = jax.eval_shape(
            fs.make_round(algorithm), KEY, state, data, fs.Cohort(jnp.arange(2))
        )
    assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype(jnp.bfloat16)}


def test_bytes_of_averaged_statistics(data, params):
    """Four of them and six parameters: each travels once, and a share of FedDyn's beside."""
    feddyn, fedexp = (
        fs.with_statistics(AVERAGED[name](), MODEL.apply, averaged=True)
        for name in ("feddyn", "fedexp")
    )
    assert tuple(fs.communication(feddyn, params, data)) == (40, 40 + 4)
    # Its two are personal, and it sends two numbers beside.
    assert tuple(fs.communication(fedexp, params, data)) == (32, 32 + 8)


def test_what_clients_measure_is_of_training(clients, data, params):
    """The gradient at the model that is sent, block by block normed by the block's own."""
    first = vector_of(params)
    full = []
    for x, y in clients:
        rows = [slice(at, at + 4) for at in range(0, len(x), 4)]
        full.append(sum(len(x[r]) * gradient(first, x[r], y[r]) for r in rows) / len(x))
    scaffold = fs.with_statistics(
        fs.scaffold(LOSS, LR, LOCAL, option=1), MODEL.apply, averaged=True
    )
    perfedavg = fs.with_statistics(fs.perfedavg(LOSS, 0.5, LR, LOCAL), MODEL.apply, averaged=True)

    @jax.jit
    def measured():
        round_fn = fs.make_round(scaffold, execution=fs.execution.packed(1))
        state, _ = round_fn(KEY, fs.init(scaffold, params, data), data, fs.Cohort(jnp.arange(3)))
        own = fs.personal_params(perfedavg, fs.init(perfedavg, params, data), data)
        return state.clients, own

    control, own = measured()
    assert not np.any(flat_of(control["batch_stats"]))
    for k in range(3):
        mine, his = (jax.tree.map(lambda x, k=k: x[k], tree) for tree in (control, own))
        np.testing.assert_allclose(vector_of(mine), full[k], atol=1e-5)
        np.testing.assert_allclose(vector_of(his), first - 0.5 * full[k], atol=1e-5)


def flat_of(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_fedbn_keeps_all_of_batch_norm(data, params):
    algorithm = fs.with_statistics(fs.fedbn(LOSS, optax.sgd(LR), LOCAL), MODEL.apply)
    assert sorted(fs.init(algorithm, params, data).clients.personal) == [
        "batch_stats/BatchNorm_0/mean",
        "batch_stats/BatchNorm_0/var",
        "params/BatchNorm_0/bias",
        "params/BatchNorm_0/scale",
    ]
    assert tuple(fs.communication(algorithm, params, data)) == (8, 8)


def test_refusals(data, params):
    state = fs.init(FEDAVG, params, data)
    with pytest.raises(ValueError, match=r"algorithm must be given to fs\.with_statistics"):
        fs.make_round(FEDAVG)(KEY, state, data, fs.Cohort([0]))
    with pytest.raises(ValueError, match=r"apply must be of fs\.models\.from_flax"):
        fs.with_statistics(FEDAVG, fs.models.mlp((2,), (), 1).apply)
    with pytest.raises(ValueError, match="averaged must be True or False; got 1"):
        fs.with_statistics(FEDAVG, MODEL.apply, averaged=1)
    for algorithm in (fs.fedsgd(LOSS, optax.sgd(LR)), fs.mime(LOSS, LR, LOCAL)):
        with pytest.raises(ValueError, match="one exchange in a round, in which clients train"):
            fs.with_statistics(algorithm, MODEL.apply, averaged=True)
    compressed = fs.compression.compressed(FEDAVG, fs.compression.top_k(0.5))
    with pytest.raises(ValueError, match=r"algorithm must not be compressed.*compress the result"):
        fs.with_statistics(compressed, MODEL.apply, averaged=True)
    other_rule = FEDAVG._replace(aggregation=lambda coefficients: coefficients)
    with pytest.raises(ValueError, match="algorithm must take the rule as it is"):
        fs.with_statistics(other_rule, MODEL.apply, averaged=True)


@pytest.mark.parametrize(
    ("algorithm", "averaged", "message"),
    [
        (lambda: fs.ditto(LOSS, optax.sgd(LR), LOCAL, 0.1), True, "field `params` of its clients'"),
        (lambda: fs.perfedavg(LOSS, LR, LR, LOCAL), False, "among its personal.*or averaged be"),
        (lambda: fs.fedbn(LOSS, optax.sgd(LR), LOCAL), True, "averaged must be False for an"),
        (
            lambda: fs.fedper(LOSS, optax.sgd(LR), LOCAL, "params/Dense_0"),
            False,
            "algorithm must name 'batch_stats/BatchNorm_0/mean' among its personal parameters",
        ),
        (
            lambda: FEDAVG._replace(
                init=lambda params: [FEDAVG.init(params)],
                params=lambda server: server[0].params,
                broadcast=lambda server, round: FEDAVG.broadcast(server[0], round),
            ),
            True,
            "field `params` of its server's state",
        ),
        (
            lambda: FEDAVG._replace(
                broadcast=lambda server, round: (server.params,),
                client=FEDAVG.client._replace(
                    init=lambda message, *rest: FEDAVG.client.init(
                        FEDAVG.broadcast(FEDAVG.init(message[0]), jnp.int32(0)), *rest
                    )
                ),
            ),
            True,
            "field `params` of its message",
        ),
    ],
)
def test_refusals_from_init(data, params, algorithm, averaged, message):
    algorithm = fs.with_statistics(algorithm(), MODEL.apply, averaged=averaged)
    with pytest.raises(ValueError, match=message):
        fs.init(algorithm, params, data)


def test_several_models_are_refused(data, params):
    algorithm = fs.with_statistics(
        fs.ifca(LOSS, optax.sgd(LR), LOCAL, num_models=3), MODEL.apply, averaged=True
    )
    three = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]), params)
    with pytest.raises(ValueError, match=r"is sent as \[3, 2\], and trained as \[2\]"):
        fs.init(algorithm, three, data)
