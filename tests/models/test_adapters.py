"""Adapters: what is trained, what travels, and the whole model that comes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import standard_promotion

KEY = jax.random.key(0)
MODEL = fs.models.mlp((6,), (8,), 2)
PARAMS = MODEL.init(KEY)


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    return fs.FederatedData.from_clients([{"x": x[k::4], "y": y[k::4]} for k in range(4)])


def test_lora_by_its_formula():
    adapter = fs.models.lora(PARAMS, "*/kernel", rank=2, alpha=6.0)
    trained = adapter.init(KEY)
    merged = adapter.merge(trained)
    jax.tree.map(np.testing.assert_array_equal, merged, PARAMS)  # B = 0
    trained = jax.tree.map(lambda x: x + 0.5, trained)
    merged = fs.models.lora(PARAMS, "*/kernel", rank=2, alpha=6.0).merge(trained)
    flat = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(merged)}
    before = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(PARAMS)}
    assert sorted(trained) == ["layers_1/kernel", "layers_3/kernel"]
    for path, part in trained.items():
        name = "".join(f"['{key}']" for key in path.split("/"))
        a, b = (np.asarray(part[key], np.float64) for key in "ab")
        expected = np.asarray(before[name], np.float64) + 6 / 2 * a @ b
        np.testing.assert_allclose(flat[name], expected, rtol=1e-6)
    spread = fs.models.lora({"w": jnp.zeros((400, 3)), "b": jnp.zeros(3)}, "w", rank=50)
    assert float(jnp.std(spread.init(KEY)["w"]["a"])) == pytest.approx(1 / 20, rel=0.03)


def test_a_convolutions_window_counts_as_inputs():
    params = {"kernel": jnp.zeros((3, 3, 2, 5)), "bias": jnp.zeros(5)}
    trained = fs.models.lora(params, "kernel", rank=4).init(KEY)["kernel"]
    assert (trained["a"].shape, trained["b"].shape) == ((18, 4), (4, 5))
    assert fs.models.lora(params, "kernel", 4).merge({"kernel": trained})["kernel"].shape == (
        *(3, 3),
        *(2, 5),
    )


def test_a_model_of_kernels_alone_may_be_adapted_whole():
    params = {"in": jnp.ones((4, 3)), "out": jnp.ones((3, 2))}
    adapter = fs.models.lora(params, "*", rank=1)
    trained = {
        name: {"a": jnp.ones((*w.shape[:1], 1)), "b": jnp.ones((1, *w.shape[1:]))}
        for name, w in params.items()
    }
    assert jax.tree.map(jnp.shape, adapter.init(KEY)) == jax.tree.map(jnp.shape, trained)
    for merged in jax.tree.leaves(adapter.merge(trained)):
        np.testing.assert_array_equal(merged, np.full(merged.shape, 2.0))


@pytest.mark.parametrize(
    "adapter",
    [fs.models.lora(PARAMS, "*/kernel", rank=2), fs.models.trained_part(PARAMS, "layers_3")],
    ids=["lora", "trained_part"],
)
def test_only_the_adapter_travels_and_the_rest_is_frozen(adapter):
    loss_fn = adapter.loss(fs.models.cross_entropy(MODEL.apply))
    algorithm = fs.fedavg(loss_fn, optax.sgd(0.5), fs.LocalTraining(epochs=2))
    own_data, trained = data(), adapter.init(KEY)
    size = 4 * sum(x.size for x in jax.tree.leaves(trained))
    assert fs.communication(algorithm, trained, own_data) == (size, size)
    with standard_promotion():
        state = fs.init(algorithm, trained, own_data)
        round_fn = jax.jit(fs.make_round(algorithm))
        losses = []
        for _ in range(5):
            state, metrics = round_fn(KEY, state, own_data, fs.Cohort(jnp.arange(4)))
            losses.append(float(metrics.train["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    merged = adapter.merge(state.params)
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    np.testing.assert_array_equal(merged["layers_1"]["bias"], PARAMS["layers_1"]["bias"])


def test_what_asks_for_logits_can():
    adapter = fs.models.lora(PARAMS, "*/kernel", rank=2)
    loss_fn = adapter.loss(fs.models.cross_entropy(MODEL.apply))
    trained, examples = adapter.init(KEY), data().examples
    whole = fs.models.cross_entropy(MODEL.apply).logits(adapter.merge(trained), examples)
    np.testing.assert_array_equal(loss_fn.logits(trained, examples), whole)
    with standard_promotion():
        fs.init(fs.fedlc(loss_fn, optax.sgd(0.1), fs.LocalTraining(), tau=1.0), trained, data())


def test_labels_are_checked_through_it():
    adapter = fs.models.trained_part(PARAMS, "layers_3")
    algorithm = fs.fedavg(
        adapter.loss(fs.models.cross_entropy(MODEL.apply)), optax.sgd(0.1), fs.LocalTraining()
    )
    wrong = fs.FederatedData.from_clients(
        [{"x": np.ones((2, 6), np.float32), "y": np.array([0, 7], np.int32)}]
    )
    with standard_promotion(), pytest.raises(ValueError, match=r"labels .*got 7"):
        fs.init(algorithm, adapter.init(KEY), wrong)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fs.models.lora(PARAMS, "*/bias", rank=2),
            "must name kernels.*layers_1/bias has 1",
        ),
        (lambda: fs.models.lora(PARAMS, "*/kernel", rank=0), "rank must be .*got 0"),
        (lambda: fs.models.lora(PARAMS, "*/kernel", 2, alpha=-1.0), "alpha must be .*at least 0"),
        (lambda: fs.models.lora(PARAMS, "Dense_7", 2), "names no parameter; there are layers_1"),
        (lambda: fs.models.trained_part(PARAMS, "*"), "must leave some of the parameters"),
        (lambda: fs.models.trained_part(PARAMS, 3), "chosen must be the path of a parameter"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "adapter",
    [fs.models.lora(PARAMS, "*/kernel", rank=2), fs.models.trained_part(PARAMS, "*/bias")],
)
def test_the_whole_model_in_its_place_is_refused(adapter):
    """Nothing of it would be trained."""
    algorithm = fs.fedavg(
        adapter.loss(fs.models.cross_entropy(MODEL.apply)), optax.sgd(0.1), fs.LocalTraining()
    )
    for params in (PARAMS, MODEL.init):
        experiment = fs.Experiment(algorithm, params, data(), fs.sampling.uniform(2), 1)
        with pytest.raises(ValueError, match="must be those of the adapter's init, by the names"):
            fs.simulate(experiment, key=0)


def test_it_is_saved_and_read(tmp_path):
    adapter = fs.models.lora(PARAMS, "*/kernel", rank=2)
    trained = adapter.init(KEY)
    fs.save_params(tmp_path / "adapter.npz", trained)
    loaded = fs.load_params(tmp_path / "adapter.npz", like=trained)
    jax.tree.map(np.testing.assert_array_equal, loaded, trained)
