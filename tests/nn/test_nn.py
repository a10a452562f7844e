"""Layers for loops and vmap: values and derivatives against jax.lax's, flax's and NumPy's."""

import itertools
from functools import partial

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jax.test_util import check_grads

import fedjax_sim as fs
from tests.conftest import standard_promotion

pytestmark = pytest.mark.slow
NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True), standard_promotion():
        yield


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def close(a, b, atol=1e-9):
    jax.tree.map(partial(np.testing.assert_allclose, atol=atol), a, b)


def loss_of(conv):
    return lambda x, w: jnp.sum(jnp.sin(conv(x, w)) ** 2)


def second(loss):
    """Reverse over reverse, a scalar of all first derivatives."""
    scalar = lambda x, w: sum(jnp.sum(jnp.cos(g)) for g in jax.grad(loss, (0, 1))(x, w))
    return jax.grad(scalar, (0, 1))


def pair(strides=(1, 1), padding="SAME", **kwargs):
    kwargs = {"window_strides": strides, "padding": padding, "dimension_numbers": NHWC} | kwargs
    return (
        partial(fs.nn.conv_general_dilated, **kwargs),
        partial(lax.conv_general_dilated, **kwargs),
    )


def by_hand(x, w, strides, padding):
    """Four loops, channels last."""
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    (kh, kw), (sh, sw) = w.shape[:2], strides
    rows, columns = (x.shape[1] - kh) // sh + 1, (x.shape[2] - kw) // sw + 1
    y = np.zeros((len(x), rows, columns, w.shape[-1]))
    for n, i, j in np.ndindex(*y.shape[:3]):
        y[n, i, j] = np.tensordot(x[n, i * sh : i * sh + kh, j * sw : j * sw + kw], w, 3)
    return y


def test_values_and_gradients_by_hand():
    x, w, strides, padding = normal(0, 2, 6, 5, 3), normal(1, 3, 2, 3, 4), (2, 1), ((1, 2), (0, 1))
    ours, _ = pair(strides, padding)
    y = by_hand(x, w, strides, padding)
    close(ours(x, w), y)
    # The map is bilinear, so its gradients are found by feeding it the unit arrays.
    ct = np.asarray(normal(2, *y.shape))
    dx, dw = jax.vjp(ours, x, w)[1](jnp.asarray(ct))
    for i in range(0, x.size, 7):
        unit = np.zeros(x.size)
        unit[i] = 1
        found = np.sum(ct * by_hand(unit.reshape(x.shape), w, strides, padding))
        np.testing.assert_allclose(dx.reshape(-1)[i], found, atol=1e-10)
    for i in range(w.size):
        unit = np.zeros(w.size)
        unit[i] = 1
        found = np.sum(ct * by_hand(x, unit.reshape(w.shape), strides, padding))
        np.testing.assert_allclose(dw.reshape(-1)[i], found, atol=1e-10)


@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(1, 2, 3), (3, 3, 9), (3, 6, 3)])
def test_negative_padding_by_hand(groups, inputs, outputs):
    """It cuts pixels off; derivatives of grouped ones are wrong in XLA itself on a CPU."""
    padding = ((-1, 1), (-1, -1))
    x, w = normal(0, 3, 4, 5, inputs), normal(1, 2, 1, inputs // groups, outputs)
    ours, _ = pair((1, 1), padding, feature_group_count=groups)

    def expected(x, w):
        x = np.asarray(x)[:, 1:, 1:-1]
        parts = zip(np.split(x, groups, -1), np.split(np.asarray(w), groups, -1), strict=True)
        return np.concatenate([by_hand(a, b, (1, 1), ((0, 1), (0, 0))) for a, b in parts], -1)

    y = expected(x, w)
    close(jax.jit(ours)(x, w), y)
    c = np.asarray(normal(2, *y.shape))
    dx, dw = jax.jit(jax.grad(lambda x, w: jnp.sum(ours(x, w) * c), (0, 1)))(x, w)
    for place in np.ndindex(*w.shape):
        unit = np.zeros(w.shape)
        unit[place] = 1
        np.testing.assert_allclose(dw[place], np.sum(c * expected(x, unit)), atol=1e-10)
    for place in np.ndindex(*x.shape):
        unit = np.zeros(x.shape)
        unit[place] = 1
        np.testing.assert_allclose(dx[place], np.sum(c * expected(unit, w)), atol=1e-10)
    lanes = jnp.stack([w, 2 * w])
    both = jax.jit(jax.vmap(jax.grad(lambda w: jnp.sum(ours(x, w) * c))))(lanes)
    close(both, jnp.stack([dw, dw]))


@st.composite
def configurations(draw):
    n = draw(st.sampled_from((1, 2, 2, 3)))
    small = lambda high, low=1: st.tuples(*[st.integers(low, high)] * n)
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    window, rhs_dilation = draw(small(3)), draw(small(2))
    lhs_dilation, strides = draw(small(2)), draw(small(3))
    # Where groups are cut by negative padding, XLA's own derivatives are garbage.
    least = -1 if groups == 1 else 0
    padding = draw(st.tuples(*[st.tuples(st.integers(least, 3), st.integers(least, 3))] * n))
    image = tuple(
        (k - 1) * d + 3 + extra for k, d, extra in zip(window, rhs_dilation, draw(small(3, 0)))
    )
    batch, inputs, outputs = (
        draw(st.integers(0, 2)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
    )
    return (
        groups,
        window,
        rhs_dilation,
        lhs_dilation,
        strides,
        padding,
        image,
        batch,
        inputs,
        outputs,
    )


@settings(max_examples=8)
@given(configurations())
def test_every_configuration_agrees_with_xlas_own(configuration):
    groups, window, rhs, lhs, strides, padding, image, batch, inputs, outputs = configuration
    ours, own = pair(
        strides,
        padding,
        lhs_dilation=lhs,
        rhs_dilation=rhs,
        feature_group_count=groups,
        dimension_numbers=None,  # channels first
    )
    x = normal(0, batch, inputs * groups, *image)
    w = normal(1, outputs * groups, inputs, *window)
    f, g = loss_of(ours), loss_of(own)
    values = jax.jit(
        lambda x, w: [(second(loss)(x, w), jax.grad(loss, (0, 1))(x, w)) for loss in (f, g)]
    )
    close(*values(x, w))
    close(*jax.jit(lambda x, w: (ours(x, w), own(x, w)))(x, w))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 2)])
def test_vmap_of_images_kernels_and_both(axes, groups):
    ours, own = pair((2, 1), feature_group_count=groups)
    x, w = normal(0, 2, 5, 4, 4), normal(1, 3, 3, 4 // groups, 6)
    lanes = 3
    batched = [
        a if axis is None else jnp.stack([a * (i + 1) for i in range(lanes)], axis)
        for a, axis in zip((x, w), axes)
    ]

    def one(conv):
        loss = loss_of(conv)
        return lambda x, w: (conv(x, w), jax.grad(loss, (0, 1))(x, w), second(loss)(x, w))

    def around(conv):
        return jax.grad(lambda x, w: jnp.sum(jax.vmap(loss_of(conv), axes)(x, w)), (0, 1))

    results = [
        jax.jit(lambda x, w, conv=conv: (jax.vmap(one(conv), axes)(x, w), around(conv)(x, w)))
        for conv in (ours, own)
    ]
    close(results[0](*batched), results[1](*batched))


@pytest.mark.parametrize(
    ("outer", "inner"), [*itertools.product([(0, 0), (0, None), (None, 0)], repeat=2)]
)
def test_vmap_of_vmap(outer, inner):
    ours, own = pair(feature_group_count=2)
    shape = lambda i: [n for n, axes in zip((2, 3), (outer, inner)) if axes[i] is not None]
    x, w = normal(0, *shape(0), 2, 4, 4, 2), normal(1, *shape(1), 3, 3, 1, 4)
    mapped = lambda conv: jax.vmap(jax.vmap(jax.grad(loss_of(conv), (0, 1)), inner), outer)
    close(jax.jit(mapped(ours))(x, w), jax.jit(mapped(own))(x, w))


def test_through_a_scan_a_checkpoint_and_a_gradient_of_training():
    """Hyper-gradients: the gradient of a loss behind two steps of training, lanes vmapped."""
    x, w = normal(0, 3, 2, 2, 5, 5, 1), normal(1, 3, 3, 3, 1, 2)

    def trained(conv, rate, w, xs):
        step = lambda w, x: (w - rate * jax.grad(loss_of(jax.checkpoint(conv)), 1)(x, w), None)
        return jnp.sum(lax.scan(step, w, xs)[0] ** 2)

    def total(conv):
        return lambda rate, w: jnp.sum(jax.vmap(partial(trained, conv), (None, 0, 0))(rate, w, x))

    ours, own = (jax.jit(jax.value_and_grad(total(conv), (0, 1))) for conv in pair())
    close(ours(0.01, w), own(0.01, w))


def test_derivatives_by_differences_in_both_modes():
    ours, _ = pair((1, 2))
    check_grads(
        jax.jit(ours), (normal(0, 1, 4, 4, 2), normal(1, 2, 2, 2, 1)), 2, modes=["fwd", "rev"]
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kwargs", [{}, {"precision": "highest"}, {"preferred_element_type": "f4"}])
def test_dtypes_and_precision(dtype, kwargs):
    ours, own = pair(**kwargs)
    x, w = normal(0, 2, 5, 5, 2).astype(dtype), normal(1, 3, 3, 2, 4).astype(dtype)
    tolerance = 1e-4 if dtype == jnp.float32 else 0.5
    for a, b in zip(jax.vjp(ours, x, w)[1](ours(x, w)), jax.vjp(own, x, w)[1](own(x, w))):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a.astype("f4"), b.astype("f4"), atol=tolerance, rtol=0.05)
    assert ours(x, w).dtype == own(x, w).dtype


def test_what_is_not_ours_is_passed_on():
    x, w = normal(0, 4, 5, 5, 2), normal(1, 3, 3, 2, 4)
    for a, b, kwargs in (
        (x, w, {"batch_group_count": 2}),
        (jnp.arange(32).reshape(2, 4, 4, 1), jnp.ones((2, 2, 1, 1), int), {}),
        (x + 1j, w * 1j, {}),
    ):
        ours, own = pair(**kwargs)
        close(ours(a, b), own(a, b))
    for bad in (lambda f: f(x, w[..., :1, :]), lambda f: f(x, w[0]), lambda f: f(x, w, strides=3)):
        ours, own = pair()
        with pytest.raises((TypeError, ValueError)) as found:
            bad(ours)
        with pytest.raises(found.type):
            bad(own)


def test_a_kernel_larger_than_its_image_has_no_gradient():
    """No output: a window as large as nothing cannot be lowered."""
    ours, _ = pair(padding="VALID")
    x, w = normal(0, 3, 2, 4, 4, 1), normal(1, 3, 5, 5, 1, 3)
    assert ours(x[0], w[0]).shape == (2, 0, 0, 3)
    gradient = jax.grad(loss_of(ours), (0, 1))
    close(jax.jit(gradient)(x[0], w[0]), (jnp.zeros(x[0].shape), jnp.zeros(w[0].shape)))
    close(jax.jit(jax.vmap(gradient))(x, w), (jnp.zeros(x.shape), jnp.zeros(w.shape)))


def test_lowered_per_platform():
    """Without a GPU at hand: lanes lower to a loop on a CPU, to XLA's grouped one elsewhere."""
    ours, _ = pair()
    step = jax.jit(jax.vmap(jax.grad(loss_of(ours), (0, 1))))
    args = normal(0, 3, 2, 5, 5, 1), normal(1, 3, 3, 3, 1, 2)
    text = {p: step.trace(*args).lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda")}
    assert "feature_group_count = 3" not in text["cpu"]
    assert "stablehlo.while" in text["cpu"]
    assert "feature_group_count = 3" in text["cuda"]
    assert "stablehlo.while" not in text["cuda"]


def test_inside_shard_map():
    """x is the same on all devices, w is not: a test of types, which one device is enough for."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("clients",))
    split = PartitionSpec("clients")
    specs = {"in_specs": (PartitionSpec(), split), "out_specs": split}
    images, kernel = normal(0, 2, 5, 5, 1), normal(1, 1, 3, 3, 1, 2)
    sequences, _, recurrent, bias = lstm_arguments()
    cases = [
        (lambda x, w: fs.nn.max_pool(pair()[0](x, w), (2, 2), (2, 2)), images, kernel),
        (lambda x, w: fs.nn.lstm(x, w, recurrent, bias)[0], sequences, normal(1, 1, 3, 16)),
    ]
    for layer, x, w in cases:
        step = lambda x, w: jax.grad(loss_of(layer), 1)(x, w[0])[None]  # noqa: B023 - called within the loop
        close(jax.jit(jax.shard_map(step, mesh=mesh, **specs))(x, w), step(x, w))


@pytest.mark.slow
def test_drop_in_for_flax():
    x = normal(0, 2, 9, 8, 4)
    cases = (
        {},
        {"strides": 2, "padding": "VALID"},
        {"padding": "CIRCULAR", "kernel_dilation": 2},
        {"feature_group_count": 2, "input_dilation": 2, "padding": 1},
    )
    for kwargs in cases:
        make = partial(linen.Conv, 6, (3, 2), param_dtype=jnp.float64, **kwargs)
        layer, own = make(conv_general_dilated=fs.nn.conv_general_dilated), make()
        params = own.init(jax.random.key(0), x)
        close(layer.apply(params, x), own.apply(params, x))
        made = [
            nnx.Conv(4, 6, (3, 2), param_dtype=jnp.float64, rngs=nnx.Rngs(0), **kwargs, **extra)
            for extra in ({}, {"conv_general_dilated": fs.nn.conv_general_dilated})
        ]
        grads = [nnx.grad(lambda layer: jnp.sum(layer(x) ** 3))(layer) for layer in made]
        close(jax.tree.leaves(grads[0]), jax.tree.leaves(grads[1]))


@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [
        ((2, 2), (2, 2), "VALID"),
        ((3, 2), (3, 2), "VALID"),  # 7 rows: one is cut off
        ((2, 2), (2, 2), "SAME"),  # padded: flax's
        ((2, 2), None, "VALID"),
        ((3, 3), (2, 2), [(1, 1), (0, 0)]),
    ],
)
def test_max_pool_is_flaxs(window, strides, padding):
    ours = lambda x: fs.nn.max_pool(x, window, strides, padding)
    own = lambda x: linen.max_pool(x, window, strides, padding)
    x = jnp.round(normal(0, 2, 7, 6, 3) * 2)  # full of ties
    close(ours(x), own(x), 0)
    y = normal(1, *own(x).shape)
    close(jax.vjp(ours, x)[1](y), jax.vjp(own, x)[1](y), 0)
    xs = jnp.stack([x, -x])
    loss = lambda f: jax.vmap(jax.grad(lambda x: jnp.sum(f(x) ** 3)))
    close(loss(ours)(xs), loss(own)(xs))
    close(ours(x[0]), own(x[0]), 0)
    close(ours(x.at[0, 0, 0, 0].set(jnp.nan)), own(x.at[0, 0, 0, 0].set(jnp.nan)), 0)


def test_max_pool_in_one_and_three_dimensions_and_to_second_order():
    for n in (1, 3):
        x = normal(n, 2, *[4] * n, 2)
        ours = lambda x: fs.nn.max_pool(x, (2,) * n, (2,) * n)  # noqa: B023 - called within the loop
        close(ours(x), linen.max_pool(x, (2,) * n, (2,) * n), 0)
        check_grads(jax.jit(lambda x: ours(x) ** 3), (x,), 2, modes=["fwd", "rev"])  # noqa: B023 - likewise
    with pytest.raises(ValueError, match=r"inputs must have shape .*got \(4, 4\)"):
        fs.nn.max_pool(jnp.ones((4, 4)), (2, 2), (2, 2))


def lstm_by_hand(x, kernel, recurrent, bias):
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    c = h = np.zeros((x.shape[0], recurrent.shape[0]))
    out = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.stack(out, 1), c


def lstm_arguments():
    return normal(0, 2, 5, 3), normal(1, 3, 16), normal(2, 4, 16), normal(3, 16)


def test_lstm_by_hand_and_by_differences():
    arguments = lstm_arguments()
    h, (c, last) = fs.nn.lstm(*arguments)
    by_hand_h, by_hand_c = lstm_by_hand(*map(np.asarray, arguments))
    close((h, c, last), (by_hand_h, by_hand_c, by_hand_h[:, -1]))
    carry = normal(4, 2, 4), normal(5, 2, 4)
    whole = lambda *a: fs.nn.lstm(*a[:4], a[4:])
    check_grads(jax.jit(whole), (arguments[0][:, :2], *arguments[1:], *carry), 2, ["rev"])
    first, carried = fs.nn.lstm(arguments[0][:, :2], *arguments[1:])
    rest, _ = fs.nn.lstm(arguments[0][:, 2:], *arguments[1:], carried)
    close(jnp.concatenate([first, rest], 1), h)


@pytest.mark.slow
def test_lstm_layer_is_flaxs():
    x = normal(0, 3, 5, 4).astype(jnp.float32)
    layer, own = fs.nn.LSTM(6), linen.RNN(linen.OptimizedLSTMCell(6))
    params = layer.init(jax.random.key(0), x)
    close(params, own.init(jax.random.key(0), x), 0)
    assert jax.tree.structure(params) == jax.tree.structure(own.init(jax.random.key(0), x))
    own = linen.RNN(linen.OptimizedLSTMCell(6, param_dtype=jnp.float64))
    x = x.astype(jnp.float64)
    params = jax.tree.map(lambda a: normal(1, 2, *a.shape), params)  # two lanes

    def all_of(layer):
        loss = lambda params, x: jnp.sum(jnp.sin(layer.apply(params, x)) ** 2)
        one = lambda params, x: (layer.apply(params, x), jax.grad(loss, (0, 1))(params, x))
        return jax.jit(jax.vmap(one, (0, None)))(params, x)

    close(all_of(layer), all_of(own))


def test_lstm_keeps_its_kernels_gradient_out_of_the_loop():
    arguments = lstm_arguments()
    gradient = jax.grad(lambda *a: jnp.sum(fs.nn.lstm(*a)[0]), (1, 2))
    carried = [
        v.aval.shape
        for e in jax.make_jaxpr(gradient)(*arguments).eqns
        if e.primitive.name == "scan"
        for v in e.outvars
    ]
    assert carried
    assert (4, 16) not in carried


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, u, b: (x[0], w, u, b), r"x must have shape \[B, T, D\]; got \(5, 3\)"),
        (lambda x, w, u, b: (x, w[:2], u, b), r"kernel must have shape \(3, 16\).*got \(2, 16\)"),
        (lambda x, w, u, b: (x, w, u[:, 1:], b), "recurrent_kernel must have shape"),
        (lambda x, w, u, b: (x, w, u, b[1:]), "bias must have shape"),
        (lambda x, w, u, b: (x, w, u, b, (x[0], x[0])), "carry's c must have shape"),
    ],
)
def test_lstm_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        fs.nn.lstm(*change(*lstm_arguments()))


@pytest.mark.parametrize(
    ("rows", "units"), [(5, 1), (5, 10), (5, 16), (5, 17), (1, 17), (0, 17), (20, 17), (5, 600)]
)
def test_dense_product_is_lax_own(rows, units):
    """Values, both modes, second order, vmapped over either side; and dims it does not handle."""
    dims = (((1,), (0,)), ((), ()))
    x, w = normal(0, rows, 7), normal(1, 7, units)

    def loss(product, x, w):
        return jnp.sum(jnp.sin(product(x, w, dims)) ** 2)

    ours, own = partial(loss, fs.nn.dot_general), partial(loss, lax.dot_general)
    check_grads(ours, (x, w), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)
    for derive in (jax.grad, jax.jacfwd, jax.hessian)[: 3 if units < 100 else 2]:
        close(derive(ours, 1)(x, w), derive(own, 1)(x, w))
    xs, ws = normal(2, 3, rows, 7), normal(3, 3, 7, units)
    for axes in ((0, 0), (None, 0), (0, None)):
        args = (xs if axes[0] == 0 else x, ws if axes[1] == 0 else w)
        close(*(jax.jit(jax.vmap(jax.grad(f, (0, 1)), axes))(*args) for f in (ours, own)))
    twice = [jax.vmap(jax.vmap(jax.grad(f, (0, 1)), (0, None)), (None, 0)) for f in (ours, own)]
    close(*(jax.jit(f)(xs, ws) for f in twice))
    images = normal(4, 2, 3, 7)
    for product in (fs.nn.dot_general, lax.dot_general):
        assert product(images, w, (((2,), (0,)), ((), ()))).shape == (2, 3, units)
    batched = (((2,), (1,)), ((0,), (0,)))
    close(fs.nn.dot_general(xs, ws, batched), lax.dot_general(xs, ws, batched))


def test_dense_product_of_what_is_not_one_float_type():
    x = np.arange(6, dtype=np.int32).reshape(2, 3)
    w = np.arange(120, dtype=np.int32).reshape(3, 40)
    dims = (((1,), (0,)), ((), ()))
    np.testing.assert_array_equal(fs.nn.dot_general(x, w, dims), x @ w)
    halves = jnp.asarray(x, jnp.bfloat16), jnp.asarray(w, jnp.bfloat16) / 64
    product = partial(fs.nn.dot_general, dimension_numbers=dims)
    assert product(*halves).dtype == jnp.bfloat16
    wide = partial(product, preferred_element_type=jnp.float32)
    assert wide(*halves).dtype == jnp.float32
    gradient = jax.grad(lambda w: jnp.sum(wide(halves[0], w) ** 2))(halves[1])
    assert gradient.dtype == jnp.bfloat16
    exact = 2 * x.T @ (x @ (w / 64))
    np.testing.assert_allclose(gradient.astype(np.float32), exact, rtol=2e-2)


@pytest.fixture
def on_a_cpu():
    """For tests that read a compiled program: the forms they look for are a CPU's alone."""
    if jax.default_backend() != "cpu":
        # Elsewhere the same functions are lowered to XLA's own products, and nothing is chosen.
        pytest.skip("other backends choose for themselves")


@pytest.mark.usefixtures("on_a_cpu")
def test_dense_gradient_stays_apart_from_its_transpose():
    """On a CPU no product with 10 columns is left in the compiled gradient's loop."""

    def train(product):
        def step(w, _):
            return w - jax.grad(lambda w: jnp.sum(product(x, w, dims) ** 2))(w), None

        dims = (((1,), (0,)), ((), ()))
        x = jnp.ones((10, 784), jnp.float32)
        return jax.jit(lambda w: lax.scan(step, w, length=3)[0])

    def products(units, product):
        w = jnp.ones((784, units), jnp.float32)
        lines = train(product).lower(w).compile().as_text().splitlines()
        return [line for line in lines if " dot(" in line]

    shapes = " ".join(products(10, fs.nn.dot_general))
    assert "f32[784,10]{1,0} dot(" not in shapes
    assert "f32[10,784]{1,0} dot(" in shapes
    # Of 10 rows and 200 columns: outer products are added, and no product contracts the rows; in
    # more columns x^T is laid out first, and no product contracts the rows of both.
    rows = "lhs_contracting_dims={0}, rhs_contracting_dims={0}"
    for units in (200, 2000):
        assert any(rows in line for line in products(units, lax.dot_general))
        assert not any(rows in line for line in products(units, fs.nn.dot_general))
    gradients = "f32[784,{}]{{1,0}} dot("
    assert gradients.format(200) not in " ".join(products(200, fs.nn.dot_general))
    assert gradients.format(2000) in " ".join(products(2000, fs.nn.dot_general))


@pytest.mark.usefixtures("on_a_cpu")
def test_the_sum_of_outer_products_finds_its_factors_made():
    """The loop over the kernel's elements has nothing of the activation's derivative in it."""
    dims = (((1,), (0,)), ((), ()))

    def loss(w, v, x):
        hidden = jax.nn.relu(fs.nn.dot_general(x, w, dims))
        return jnp.sum(fs.nn.dot_general(hidden, v, dims) ** 2)

    def train(params, x):
        def step(params, _):
            gradients = jax.grad(lambda p: loss(*p, x))(params)
            return jax.tree.map(jnp.subtract, params, gradients), None

        return lax.scan(step, params, length=3)[0]

    params = jnp.ones((784, 200), jnp.float32), jnp.ones((200, 10), jnp.float32)
    text = jax.jit(train).lower(params, jnp.ones((10, 784), jnp.float32)).compile().as_text()
    loops = [part for part in text.split("\n\n") if "f32[784,200]{1,0} add(" in part]
    assert loops
    assert not any(" compare(" in loop or " select(" in loop for loop in loops)


def test_dense_product_inside_shard_map():
    """Of operands of which one alone differs between devices, and so does its gradient."""
    dims = (((1,), (0,)), ((), ()))
    mesh = Mesh(jax.devices()[:2], ("d",))
    xs, w = normal(0, 2 * 5, 7), normal(1, 7, 20)

    def gradients(x, w):
        loss = lambda x, w: jnp.sum(jnp.sin(fs.nn.dot_general(x, w, dims)))
        to_x, to_w = jax.grad(loss, (0, 1))(x, lax.pcast(w, "d", to="varying"))
        return to_x, lax.psum(to_w, "d")

    spec = PartitionSpec("d")
    sharded = jax.shard_map(
        gradients, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=(spec, PartitionSpec())
    )
    whole = jax.grad(lambda x, w: jnp.sum(jnp.sin(x @ w)), (0, 1))
    close(jax.jit(sharded)(xs, w), whole(xs, w))


def conv_of(precision=None):
    return partial(
        fs.nn.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=NHWC,
        precision=precision,
    )


def dense_of(precision=None):
    return partial(
        fs.nn.dot_general, dimension_numbers=(((1,), (0,)), ((), ())), precision=precision
    )


@pytest.mark.parametrize("of", [dense_of, conv_of])
def test_eager_products_without_jit_and_under_debug_nans(of):
    """Op by op, as JAX runs them where it looks for a NaN, and names one."""
    x, w = (normal(0, 5, 7), normal(1, 7, 20))
    if of is conv_of:
        x, w = normal(0, 2, 4, 4, 3), normal(1, 3, 3, 3, 5)
    expected = jax.jit(of())(x, w)
    with jax.disable_jit():
        close(of()(x, w), expected)
        jax.grad(lambda w: jnp.sum(of()(x, w) ** 2))(w)
    with jax.debug_nans(True):
        close(of()(x, w), expected)
        for product in (of(), jax.jit(of())):
            with pytest.raises(FloatingPointError):
                product(x * jnp.nan, w)


@pytest.mark.parametrize("of", [dense_of, conv_of])
def test_a_precision_is_that_of_where_a_product_is_traced(of):
    x, w = (normal(0, 5, 7), normal(1, 7, 20))
    if of is conv_of:
        x, w = normal(0, 2, 4, 4, 3), normal(1, 3, 3, 3, 5)

    def loss(w):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(of()(x, w) ** 2)

    for function in (loss, jax.grad(loss)):
        text = jax.jit(function).lower(w).as_text()
        products = [x for x in text.splitlines() if "dot_general" in x or "convolution(" in x]
        assert products
        assert all("HIGHEST" in line and "DEFAULT" not in line for line in products), products
    close(of(["high", "highest"])(x, w), of()(x, w))


def test_a_weak_operand_does_not_weaken_a_strong_one():
    weak = jnp.broadcast_to(1.0, (5, 7))
    for lhs, rhs, is_weak in (
        (weak, jnp.ones((7, 20), weak.dtype), False),
        (weak, jnp.broadcast_to(1.0, (7, 20)), True),
    ):
        assert jax.eval_shape(dense_of(), lhs, rhs).weak_type == is_weak


def test_a_dense_layer_is_exported_for_any_number_of_rows():
    (rows,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((rows, 7), jnp.float32)
    w = jnp.ones((7, 20), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: dense_of()(x, w)))(x)
    np.testing.assert_allclose(exported.call(jnp.ones((3, 7), jnp.float32)), 7.0)


def test_a_dense_layer_over_an_explicit_mesh_is_lax_own():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    x, w = normal(0, 5, 7), normal(1, 7, 20)
    with jax.set_mesh(mesh):
        dealt = jax.device_put(w, jax.NamedSharding(mesh, PartitionSpec(None, "d")))
        gradient = jax.jit(jax.grad(lambda w: jnp.sum(jnp.sin(dense_of()(x, w)))))(dealt)
    close(gradient, jax.grad(lambda w: jnp.sum(jnp.sin(x @ w)))(w))
