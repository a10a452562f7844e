"""A loss that mixes the examples of a block is refused; one that does not is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core import independence
from tests.conftest import linear_loss

LOCAL = fs.LocalTraining(1, 4)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype(np.float32)
DATA = fs.FederatedData.from_clients(
    [{"x": X[:5], "y": np.arange(5) % 3}, {"x": X[5:], "y": np.arange(7) % 3}]
)
PARAMS = {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)}


def outputs(params, x):
    return x @ params["w"] + params["b"][None]


def entropy(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


def init(loss_fn, params=PARAMS, data=DATA):
    return fs.init(fs.fedavg(loss_fn, optax.sgd(0.1), LOCAL), params, data)


def normalised(x):
    return (x - x.mean(0, keepdims=True)) / (x.std(0, keepdims=True) + np.float32(1e-5))


MIXING = {
    "batch norm of inputs": lambda p, b, k: entropy(outputs(p, normalised(b["x"])), b["y"]),
    # Hidden at weights of zero, as the first ones are.
    "batch norm of outputs": lambda p, b, k: entropy(normalised(outputs(p, b["x"])), b["y"]),
    "its mean": lambda p, b, k: jnp.broadcast_to(
        entropy(outputs(p, b["x"]), b["y"]).mean(), b["y"].shape
    ),
    "class weights of the block": lambda p, b, k: (
        entropy(outputs(p, b["x"]), b["y"])
        * (b["y"][:, None] == b["y"][None]).sum(1).astype(jnp.float32)
    ),
    "negatives of the block": lambda p, b, k: entropy(
        outputs(p, b["x"]) @ outputs(p, b["x"]).T, jnp.arange(len(b["y"]))
    ),
    "the one before": lambda p, b, k: jnp.roll(entropy(outputs(p, b["x"]), b["y"]), 1),
    "a running sum": lambda p, b, k: jnp.cumsum(entropy(outputs(p, b["x"]), b["y"])),
    "mixup by its key": lambda p, b, k: entropy(
        outputs(p, 0.5 * b["x"] + 0.5 * jnp.flip(b["x"], 0) + 0.01 * jax.random.normal(k, ())),
        b["y"],
    ),
    "a value beside it": lambda p, b, k: (
        entropy(outputs(p, b["x"]), b["y"]),
        {"spread": jnp.broadcast_to(outputs(p, b["x"]).std(), b["y"].shape)},
    ),
    "the block's size": lambda p, b, k: entropy(outputs(p, b["x"]), b["y"]) / len(b["y"]),
    "a place": lambda p, b, k: (
        entropy(outputs(p, b["x"]), b["y"]) * jnp.arange(len(b["y"]), dtype=jnp.float32)
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_loss_that_mixes_examples_is_refused(name):
    with pytest.raises(ValueError, match=r"loss_fn must return of each example a .* of its own"):
        init(MIXING[name])


def dropout(p, batch, key):
    kept = jax.random.bernoulli(key, 0.5, batch["x"].shape)
    return entropy(outputs(p, jnp.where(kept, batch["x"], 0)), batch["y"])


def own_keys(p, batch, key):
    keys = jax.random.split(key, len(batch["y"]))
    noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
    return entropy(outputs(p, batch["x"] + noise), batch["y"])


INDEPENDENT = {
    "dropout": dropout,
    "keys of its own": own_keys,
    "draws with the batch last": lambda p, b, k: entropy(
        outputs(p, b["x"] * jax.random.normal(k, (4, len(b["y"]))).T), b["y"]
    ),
    "compiled": jax.jit(lambda p, b, k: entropy(outputs(p, b["x"]), b["y"])),
    "norm within an example": lambda p, b, k: entropy(outputs(p, normalised(b["x"].T).T), b["y"]),
    "a penalty of the weights": lambda p, b, k: (
        entropy(outputs(p, b["x"]), b["y"]) + (p["w"] ** 2).sum()
    ),
    "of no example": lambda p, b, k: jnp.zeros(len(b["y"])) + (p["w"] ** 2).sum(),
    "not finite": lambda p, b, k: jnp.log(-jnp.abs(outputs(p, b["x"]).sum(1)) - 1),
    "values beside it": lambda p, b, k: (
        entropy(outputs(p, b["x"]), b["y"]),
        {"right": outputs(p, b["x"]).argmax(1) == b["y"], "bad": jnp.full(len(b["y"]), jnp.nan)},
    ),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_loss_that_does_not_is_taken(name):
    init(INDEPENDENT[name])


@settings(max_examples=10)
@given(
    share=st.sampled_from((0.0, 0.01, 0.5, 1.0)),
    draws=st.booleans(),
    dtype=st.sampled_from((np.float32, jnp.bfloat16)),
    integers=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_it_is_refused_exactly_if_it_mixes(share, draws, dtype, integers, seed):
    """Losses with a share of their block's mean, with and without draws, of numbers and tokens."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 9, (6, 3)) if integers else rng.normal(size=(6, 3)).astype(np.float32)
    data = fs.FederatedData.from_clients([{"x": x}])

    def loss_fn(w, batch, key):
        losses = (w[batch["x"]] if integers else batch["x"].astype(w.dtype) * w[None, :3]).sum(1)
        if draws:
            losses = losses * jax.random.normal(key, losses.shape, losses.dtype)
        if not share:
            return losses
        mixed = jnp.asarray(share, losses.dtype)
        return losses + mixed * losses.mean()

    params = jnp.zeros(9, dtype)
    if share > (0.1 if dtype != np.float32 else 0):
        with pytest.raises(ValueError, match="a loss of its own"):
            init(loss_fn, params, data)
    elif not share:
        init(loss_fn, params, data)


@pytest.mark.parametrize(
    "begin",
    [
        lambda make: jax.jit(lambda: init(make())).lower(),
        lambda make: jax.eval_shape(lambda params: init(make(), params), PARAMS),
        lambda make: jax.vmap(lambda x: init(make(), jax.tree.map(lambda w: w + x, PARAMS)).server)(
            jnp.zeros(2)
        ),
        lambda make: fs.simulate(experiment(make()), jax.random.key(0)),
        lambda make: fs.sweep(lambda scale: experiment(make(scale)), {"scale": [1.0, 2.0]}, [0]),
    ],
    ids=["jit", "eval_shape", "vmap", "simulate", "sweep"],
)
def test_it_is_refused_within_a_trace_too(begin):
    """Weights are drawn for the purpose, and so may be being traced; numbers of a grid may be."""

    def make(scale=1.0):
        def loss_fn(p, b, k):
            return scale * MIXING["batch norm of outputs"](p, b, k)

        return loss_fn

    with pytest.raises(ValueError, match="loss_fn must return of each example a loss of its own"):
        begin(make)


def experiment(loss_fn):
    algorithm = fs.fedsgd(loss_fn, optax.sgd(0.1))
    return fs.Experiment(algorithm, PARAMS, DATA, fs.sampling.uniform(1), 1)


def test_what_is_being_traced_is_not_looked_at():
    """A loss with a traced number in it, and traced examples: nothing is there to compare."""

    @jax.jit
    def weights(scale, data):
        mixing = MIXING["batch norm of inputs"]
        init(lambda p, b, k: scale * mixing(p, b, k))
        return init(mixing, data=data).params

    np.testing.assert_array_equal(weights(1.0, DATA)["w"], PARAMS["w"])


def test_a_loss_is_looked_at_once():
    calls = []

    def loss_fn(p, b, k):
        calls.append(jax.tree.leaves(b)[0].shape[0])
        return entropy(outputs(p, b["x"]), b["y"])

    init(loss_fn)
    first = len(calls)
    init(loss_fn)
    assert len(calls) - first == 1  # its shapes alone
    assert set(calls) == {2, 3}


@pytest.mark.parametrize("name", ["batch norm of inputs", "a value beside it", "the block's size"])
def test_an_evaluation_refuses_what_training_does(name):
    metric_fn = MIXING[name]
    says = r"metric_fn must return of each example a .* of its own"
    stacked = jax.tree.map(lambda x: np.stack([x, x]), PARAMS)
    for evaluate in (
        lambda: fs.evaluate(metric_fn, PARAMS, DATA),
        lambda: fs.evaluate(metric_fn, PARAMS, DATA, key=jax.random.key(0)),
        lambda: fs.evaluator(metric_fn, test=DATA)(PARAMS),
        lambda: jax.eval_shape(fs.evaluator(metric_fn, clients=DATA), PARAMS),
        lambda: jax.jit(lambda p: fs.evaluate(metric_fn, p, DATA).mean)(PARAMS),
        lambda: fs.baselines.evaluate_local(metric_fn, stacked, clients=DATA),
    ):
        with pytest.raises(ValueError, match=says):
            evaluate()


def test_a_loss_that_training_has_looked_at_is_not_looked_at_again(monkeypatch):
    def loss_fn(p, b, k):
        return entropy(jax.nn.relu(outputs(p, b["x"])), b["y"])

    def dropping(p, b, k):
        x = b["x"] if k is None else b["x"] * jax.random.normal(k, (1, 4))
        return entropy(outputs(p, x), b["y"])

    looked = []
    drawn = independence._drawn
    monkeypatch.setattr(independence, "_drawn", lambda params: looked.append(1) or drawn(params))
    for function, times in ((loss_fn, 1), (dropping, 2)):  # without a key another computation
        looked.clear()
        init(function)
        for key in (None, jax.random.key(0), None):
            jax.eval_shape(lambda p, key=key: fs.evaluate(function, p, DATA, key=key), PARAMS)  # noqa: B023 - called within the loop
        assert len(looked) == times
    # A model with a function in it, and a number for a model, are evaluated as before.
    metric = lambda p, b, k: jnp.ones(b["y"].shape) * p["scale"]  # noqa: E731 - a metric as users write it
    assert fs.evaluate(metric, {"scale": 2.0, "apply": len}, DATA).mean["loss"] == 2


def test_batch_norm_of_flax_is_refused_in_words():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(x))

    says = "module must have no variables beside its params; got batch_stats.*GroupNorm"
    model = fs.models.model.from_flax(Net(), (4,))
    with pytest.raises(ValueError, match=says):
        model.init(jax.random.key(0))
    # With params from elsewhere, and with statistics that a function of one's own drops.
    module, key = Net(), jax.random.key(0)
    variables = module.init(key, jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match="the model has variables beside its params"):
        init(fs.models.cross_entropy(model.apply), variables["params"])

    def apply(params, x):
        made = {"params": params, "batch_stats": variables["batch_stats"]}
        return module.apply(made, x, mutable=["batch_stats"])[0]

    with pytest.raises(ValueError, match="loss_fn must return of each example a"):
        init(fs.models.cross_entropy(apply), variables["params"])


def test_the_losses_of_other_tests_pass(data):
    fs.init(fs.scaffold(linear_loss, 0.1, LOCAL), {"w": np.zeros(4), "b": np.zeros(())}, data)
