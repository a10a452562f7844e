"""The papers' networks: parameters counted by hand, values by NumPy, and a round of each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.models.resnet import _ResNet
from tests.conftest import standard_promotion

KEY = jax.random.key(0)


def count(model):
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(model.init, KEY)))


@pytest.mark.parametrize("width", [64, 4])
def test_resnets_parameters_by_hand(width):
    w, inputs, classes = width, 3, 10
    total = 9 * inputs * w + 2 * w  # stem: a convolution without bias, scale and shift
    before = w
    for c in (w, 2 * w, 4 * w, 8 * w):
        total += 9 * before * c + 3 * 9 * c * c + 4 * 2 * c
        total += before * c + 2 * c if before != c else 0  # the shortcut's
        before = c
    total += 8 * w * classes + classes
    assert count(fs.models.resnet18(width=width)) == total
    assert width != 64 or total == 11_173_962


def test_the_unpadded_cnns_parameters_by_hand():
    small = (25 + 1) * 6 + (25 * 6 + 1) * 16 + (16 * 4 * 4 + 1) * 120 + 121 * 84 + 85 * 10
    assert count(fs.models.lenet()) == small == 44_426
    large = (25 + 1) * 32 + (25 * 32 + 1) * 64 + (64 * 4 * 4 + 1) * 512 + 513 * 10
    assert count(fs.models.unpadded_cnn()) == large == 582_026


def test_lenet_is_numpys():
    """Of one image of 16 x 18 pixels in two channels."""
    model = fs.models.lenet((16, 18, 2), 3)
    params = jax.tree.map(np.asarray, model.init(KEY))
    x = np.random.default_rng(0).normal(size=(16, 18, 2)).astype(np.float32)
    out = x
    for name in ("layers_0", "layers_3"):
        windows = np.lib.stride_tricks.sliding_window_view(out, (5, 5), (0, 1))
        layer = params[name]
        out = np.einsum("ijcuv,uvco->ijo", windows, layer["kernel"]) + layer["bias"]
        height, width = out.shape[0] // 2, out.shape[1] // 2
        blocks = np.maximum(out, 0)[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)
        out = blocks.max((1, 3))
    out = out.ravel()
    for name in ("layers_7", "layers_9", "layers_11"):
        out = np.maximum(out, 0) if name != "layers_7" else out
        out = out @ params[name]["kernel"] + params[name]["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)(params, x[None])[0], out, rtol=1e-4, atol=1e-5)


def test_the_cifar_cnns_parameters_by_hand():
    dense = 6 * 6 * 64 * 384 + 384 + 384 * 192 + 192 + 192 * 10 + 10
    convolutions = 5 * 5 * 3 * 64 + 64 + 5 * 5 * 64 * 64 + 64
    assert count(fs.models.cifar_cnn()) == dense + convolutions == 1_068_298
    # 32 x 32: 8 x 8 behind the pools; odd sizes are rounded up.
    assert count(fs.models.cifar_cnn((32, 32, 3))) == 1_068_298 + (64 - 36) * 64 * 384
    assert count(fs.models.cifar_cnn((9, 9, 1), 3, 2, (5,))) == (
        5 * 5 * 2 + 2 + 5 * 5 * 2 * 2 + 2 + 3 * 3 * 2 * 5 + 5 + 5 * 3 + 3
    )


@pytest.mark.parametrize(("d", "h", "layers"), [(128, 512, 2), (12, 7, 1), (8, 32, 3)])
def test_the_transformers_parameters_by_hand(d, h, layers):
    v, t = 31, 17
    norm, attention = 2 * d, 4 * (d * d + d)  # query, key, value and output
    each = 2 * norm + attention + d * h + h + h * d + d
    total = v * d + t * d + layers * each + norm + d * v + v
    made = fs.models.transformer(v, t, d, heads=4, layers=layers, hidden=h)
    assert count(made) == total
    text = jax.ShapeDtypeStruct((5, t), jnp.int32)
    assert jax.eval_shape(made.apply, jax.eval_shape(made.init, KEY), text).shape == (5, t, v)


def test_a_time_series_model_by_hand():
    made = fs.models.time_series_mlp(5, features=2, horizon=3, hidden=(4,))
    params = made.init(KEY)
    assert count(made) == 11 * 4 + 5 * 3
    x = np.random.default_rng(0).normal(size=(6, 5, 2)).astype(np.float32)
    (w1, b1), (w2, b2) = ((np.asarray(p["kernel"]), np.asarray(p["bias"])) for p in params.values())
    by_hand = np.maximum(x.reshape(6, 10) @ w1 + b1, 0) @ w2 + b2
    np.testing.assert_allclose(made.apply(params, x), by_hand, atol=1e-5)


# NumPy's forward pass, without a line shared.


def convolved(x, kernel, stride=1, pads=None):
    size = kernel.shape[0]
    pads = (size // 2, size // 2) if pads is None else pads
    x = np.pad(x, ((0, 0), pads, pads, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return np.einsum("nijchw,hwco->nijo", windows[:, ::stride, ::stride], kernel)


def normed(x, p, groups):
    out = np.empty_like(x)
    for n in range(len(x)):
        for part in np.split(np.arange(x.shape[-1]), groups):
            found = x[n][..., part]
            out[n][..., part] = (found - found.mean()) / np.sqrt(found.var() + 1e-5)
    return out * p["scale"] + p["bias"]


def parameters(model):
    """Parameters of which none is 0 or 1 all over; made without compiling anything."""
    rng = np.random.default_rng(0)

    def one(path, x):
        return np.asarray((path[-1].key == "scale") + 0.2 * rng.normal(size=x.shape), np.float32)

    return jax.tree_util.tree_map_with_path(one, jax.eval_shape(model.init, KEY))


def test_the_resnet_is_numpys():
    """Of two blocks: one keeps the shape, the other halves the sides and doubles the channels."""
    model = fs.models.from_flax(_ResNet(5, 4, groups=2, blocks=(1, 1)), (8, 8, 3))
    params = parameters(model)
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)

    def norm(p, name, x):
        return normed(x, p[f"GroupNorm_{name}"], 2)

    def kernel(p, name):
        return p[f"Conv_{name}"]["kernel"].astype(float)

    y = np.maximum(norm(params, 0, convolved(x, kernel(params, 0))), 0)
    for place, stride in enumerate((1, 2)):
        p = params[f"_Block_{place}"]
        inner = np.maximum(norm(p, 0, convolved(y, kernel(p, 0), stride)), 0)
        inner = norm(p, 1, convolved(inner, kernel(p, 1)))
        y = norm(p, 2, convolved(y, kernel(p, 2), stride)) if "Conv_2" in p else y
        y = np.maximum(y + inner, 0)
    assert y.shape == (2, 4, 4, 8)
    by_hand = y.mean(axis=(1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), by_hand, rtol=1e-3, atol=1e-3)


def pooled(x):
    """3x3 with stride 2; of an even size the window sticks out behind, of an odd one evenly."""
    size = x.shape[1]
    pads = (0, 1) if size % 2 == 0 else (1, 1)
    x = np.pad(x, ((0, 0), pads, pads, (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return windows[:, ::2, ::2].max(axis=(-2, -1))


def response(x):
    out = np.empty_like(x)
    for c in range(x.shape[-1]):
        near = x[..., max(0, c - 4) : c + 5]
        out[..., c] = x[..., c] / (1 + 0.001 / 9 * (near**2).sum(axis=-1)) ** 0.75
    return out


@pytest.mark.parametrize("local_response", [True, False])
def test_the_cifar_cnn_is_numpys(local_response):
    model = fs.models.cifar_cnn((6, 6, 2), 3, 12, (7, 5), local_response)
    params = parameters(model)
    # Large, so that the normalisation matters.
    x = 30 * np.random.default_rng(1).normal(size=(2, 6, 6, 2)).astype(np.float32)
    normalise = response if local_response else (lambda x: x)
    ordered = sorted(params, key=lambda name: int(name.removeprefix("layers_")))
    first, second, *dense = (params[name] for name in ordered)
    y = np.maximum(convolved(x, first["kernel"].astype(float)) + first["bias"], 0)
    y = normalise(pooled(y))
    y = np.maximum(convolved(y, second["kernel"].astype(float)) + second["bias"], 0)
    y = pooled(normalise(y)).reshape(2, -1)
    for i, p in enumerate(dense):
        y = y @ p["kernel"] + p["bias"]
        y = np.maximum(y, 0) if i < 2 else y
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), y, rtol=2e-3, atol=2e-2)


def test_the_transformer_is_causal_and_knows_the_order():
    model = fs.models.transformer(vocabulary=9, length=8, width=8, heads=2, layers=2)
    params, apply = parameters(model), jax.jit(model.apply)
    text = np.random.default_rng(0).integers(0, 9, (1, 8))
    changed = np.repeat(text, 8, axis=0)
    changed[np.arange(8), np.arange(8)] = (text[0] + 1) % 9  # row t: another token at t
    swapped = text[:, [1, 0, *range(2, 8)]]
    assert text[0, 0] != text[0, 1]
    out = np.asarray(apply(params, np.concatenate([text, changed, swapped])))
    for t in range(8):
        np.testing.assert_array_equal(out[1 + t, :t], out[0, :t])
        assert (np.abs(out[1 + t, t:] - out[0, t:]).max(axis=-1) > 1e-4).all()
    # A prefix alone gives what it gives in the whole.
    prefix = apply(params, text[:, :5])
    np.testing.assert_allclose(prefix[0], out[0, :5], atol=1e-4)
    assert np.abs(out[-1, -1] - out[0, -1]).max() > 1e-4  # the first two exchanged


def test_a_transformer_refuses_longer_text():
    model = fs.models.transformer(5, length=3, width=4)
    text = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="at most length = 3 positions; got 4"):
        jax.eval_shape(model.apply, jax.eval_shape(model.init, KEY), text)


def test_attention_by_numpy():
    """One layer whose dense part is nothing: softmax over the past of q k / sqrt(d / heads)."""
    model = fs.models.transformer(vocabulary=5, length=4, width=6, heads=2, layers=1, hidden=1)
    params = parameters(model)
    params["Dense_3"] = jax.tree.map(np.zeros_like, params["Dense_3"])
    text = np.array([[3, 1, 4, 1]])

    def norm(x, p):
        centred = x - x.mean(axis=-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * p["scale"]
            + p["bias"]
        )

    def dense(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    x = params["Embed_0"]["embedding"][text[0]] + params["positions"]
    q, k, v = np.split(dense(norm(x, params["LayerNorm_0"]), "Dense_0"), 3, axis=-1)
    met = np.zeros((4, 6))
    for head in (slice(0, 3), slice(3, 6)):
        for t in range(4):
            weights = np.exp(q[t, head] @ k[: t + 1, head].T / np.sqrt(3))
            met[t, head] = weights @ v[: t + 1, head] / weights.sum()
    x = x + dense(met, "Dense_1")
    by_hand = dense(norm(x, params["LayerNorm_2"]), "Dense_4")
    out = jax.jit(model.apply)(params, text)
    np.testing.assert_allclose(out[0], by_hand, rtol=1e-3, atol=1e-3)


def images(shape, classes=3):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, *shape)).astype(np.float32), rng.integers(0, classes, 12)
    return fs.FederatedData.from_arrays({"x": x, "y": y}, np.arange(12) % 3)


def text():
    rows = np.random.default_rng(0).integers(0, 5, (12, 7))
    return fs.FederatedData.from_arrays({"x": rows[:, :-1], "y": rows[:, 1:]}, np.arange(12) % 3)


def series():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(12, *shape)).astype(np.float32) for shape in ((6, 2), (2,)))
    return fs.FederatedData.from_arrays({"x": x, "y": y}, np.arange(12) % 3)


TRAINED = {
    "cifar_cnn": (fs.models.cifar_cnn((8, 8, 1), 3, 4, (8,)), lambda: images((8, 8, 1)), 0.05),
    # ResNet-18's eight blocks take long to compile; two have all that they have.
    "resnet": (
        fs.models.from_flax(_ResNet(3, 4, 2, blocks=(1, 1)), (8, 8, 1)),
        lambda: images((8, 8, 1)),
        0.05,
    ),
    "transformer": (fs.models.transformer(5, 6, 8, 2, 1), text, 0.3),
    "time_series_mlp": (fs.models.time_series_mlp(6, 2, 2, (8,)), series, 0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_each_trains_by_rounds(name):
    """Rounds of clients side by side lower the loss, and nothing is NaN."""
    model, make, rate = TRAINED[name]
    data = make()
    regression = name == "time_series_mlp"
    losses = fs.models.squared_error if regression else fs.models.cross_entropy
    algorithm = fs.fedavg(losses(model.apply), optax.sgd(rate), fs.LocalTraining(1, 2))
    state = fs.init(algorithm, parameters(model), data)
    round_fn = jax.jit(fs.make_round(algorithm, execution=fs.execution.vmapped()))
    trained = []
    for _ in range(8):
        state, metrics = round_fn(KEY, state, data, fs.Cohort([0, 1, 2]))
        trained.append(float(metrics.train["loss"]))
        assert int(metrics.nonfinite) == 0
    assert trained[-1] < trained[0]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: m.cnn((28, 28)), r"input_shape must be \(height, width, channels\); got \(28"),
        (lambda m: m.cifar_cnn(channels=0), "channels must be .*got 0"),
        (lambda m: m.lenet((15, 16, 1)), "input_shape must be at least 16 pixels"),
        (lambda m: m.unpadded_cnn(num_classes=0), "num_classes must be .*got 0"),
        (lambda m: m.cifar_cnn(hidden=(3, 0)), "hidden must be .*got 0"),
        (lambda m: m.cifar_cnn((24, 24, 0)), "input_shape must be .*got 0"),
        (lambda m: m.resnet18(width=3), "width must be a multiple of groups = 2; got 3"),
        (lambda m: m.resnet18(groups=0), "groups must be .*got 0"),
        (lambda m: m.resnet18((3,)), r"input_shape must be .*got \(3,\)"),
        (lambda m: m.transformer(width=10), "width must be a multiple of heads = 4; got 10"),
        (lambda m: m.transformer(layers=0), "layers must be .*got 0"),
        (lambda m: m.time_series_mlp(0), "window must be .*got 0"),
        (lambda m: m.time_series_mlp(3, horizon=0), "horizon must be .*got 0"),
        (lambda m: m.time_series_mlp(3, hidden=(0,)), "hidden must be .*got 0"),
        (lambda m: m.cnn((28, 3, 1)), r"at least 4 pixels high and wide; got \(28, 3, 1\)"),
        (lambda m: m.cnn(28), r"input_shape must be a sequence of whole numbers.*; got 28"),
        (lambda m: m.two_nn(784), "input_shape must be a sequence of whole numbers.*; got 784"),
        (lambda m: m.mlp((3,), 5, 2), "hidden must be a sequence of whole numbers.*; got 5"),
        (lambda m: m.character_lstm(hidden=9), "hidden must be a sequence.*; got 9"),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(fs.models)


@pytest.mark.parametrize(
    ("build", "x", "message"),
    [
        (
            lambda m: m.two_nn((8, 8)),
            np.zeros((3, 7, 8)),
            r"the model cannot take x float32\[N, 7, 8\]: .*\(56, 200\).*\(64, 200\)",
        ),
        (lambda m: m.cnn(), np.zeros((3, 28, 28)), r"the model cannot take x float32\[N, 28, 28\]"),
        (lambda m: m.time_series_mlp(5, 2), np.zeros((3, 2, 5)), r"x must be \[B, 5, 2\]; got"),
        (
            lambda m: m.character_lstm(7, hidden=(2,)),
            np.array([[0, 6, 7]]),
            r"x must lie in \[0, 7\), the vocabulary of the model; got 7 \(1 of 3",
        ),
        (
            lambda m: m.transformer(7, width=4),
            np.array([[-1, 6, -2]]),
            r"x must lie in \[0, 7\), the vocabulary of the model; got -1 \(2 of 3",
        ),
        (lambda m: m.transformer(7, width=4), np.ones((2, 3)), "x must be integers.*float32"),
    ],
)
def test_examples_that_a_model_cannot_take_are_refused(build, x, message):
    model = build(fs.models)
    data = fs.FederatedData.from_clients([{"x": x, "y": np.zeros(len(x), np.int32)}])
    for made in (fs.models.cross_entropy, fs.models.squared_error):
        algorithm = fs.fedavg(made(model.apply), optax.sgd(0.1), fs.LocalTraining())
        with pytest.raises(ValueError, match=message):
            fs.init(algorithm, model.init(KEY), data)


@pytest.mark.parametrize("name", ["logistic", "mlp", "cnn", "cifar_cnn", "resnet18"])
def test_every_model_of_images_fits_a_setting(name):
    from fedjax_sim.settings import build as problem
    from fedjax_sim.settings.setting import Setting

    given = problem.problem(Setting(model=name).resolved())
    with standard_promotion():
        params = jax.eval_shape(given.init, KEY)
        batch = jax.tree.map(lambda x: x[:3], given.data.examples)
        losses, values = jax.eval_shape(lambda p: given.loss_fn(p, batch, None), params)
    assert losses.shape == values["accuracy"].shape == (3,)


@pytest.mark.parametrize("name", ["character_lstm", "transformer"])
def test_models_of_text_take_its_sizes(name):
    from fedjax_sim.datasets import Dataset
    from fedjax_sim.settings import build as problem

    rows = {"x": np.zeros((3, 11), np.int32), "y": np.zeros((3, 11), np.int32)}
    model = problem._model(name, Dataset(rows, rows, num_classes=7))
    params = jax.eval_shape(model.init, KEY)
    out = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((2, 11), jnp.int32))
    assert out.shape == (2, 11, 7)
