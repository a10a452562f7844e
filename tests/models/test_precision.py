"""Losses in few bits, and the parameters of float32 that they are of."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import standard_promotion

KEY = jax.random.key(0)


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    data = fs.FederatedData.from_clients([{"x": x[k::4], "y": y[k::4]} for k in range(4)])
    return fs.models.mlp((6,), (8,), 2), data


def products(jaxpr, with_shape=False):
    """The dtypes of all matrix products of a jaxpr."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "bilinear"):
            product = equation.outvars[0].aval
            yield (product.shape, product.dtype) if with_shape else product.dtype
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner, with_shape)


def test_products_are_in_few_bits_and_gradients_in_all():
    model, data = problem()
    loss_fn = fs.models.cross_entropy(model.apply)
    params, batch = model.init(KEY), jax.tree.map(lambda x: x[:5], data.examples)
    few = fs.models.mixed_precision(loss_fn)

    def mean(loss_fn):
        return lambda params: jnp.mean(loss_fn(params, batch, None)[0])

    with standard_promotion():
        dtypes = {*products(jax.make_jaxpr(jax.grad(mean(few)))(params).jaxpr)}
        gradient, exact = jax.grad(mean(few))(params), jax.grad(mean(loss_fn))(params)
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
    for own, other in zip(*map(jax.tree.leaves, (gradient, exact)), strict=True):
        assert own.dtype == jnp.float32
        # bfloat16 has 8 bits, and a few roundings follow each other.
        np.testing.assert_allclose(own, other, atol=0.05 * np.abs(other).max() + 1e-3)


@pytest.mark.parametrize("is_own", [False, True], ids=["of fs.models", "own"])
@pytest.mark.parametrize("make", [fs.models.trained_part, partial(fs.models.lora, rank=2)])
def test_of_an_adapter_the_whole_model_is_in_few_bits(make, is_own):
    """Its frozen parameters, too, beside which products would be float32; in either order."""
    model, data = problem()
    params, batch = model.init(KEY), jax.tree.map(lambda x: x[:5], data.examples)
    adapter = make(params, "*/kernel")
    trained = jax.tree.map(lambda x: x + jnp.asarray(0.1, x.dtype), adapter.init(KEY))
    cross_entropy = fs.models.cross_entropy(model.apply)
    loss_fn = (lambda w, batch, key: cross_entropy(w, batch, key)[0]) if is_own else cross_entropy
    losses = (
        fs.models.mixed_precision(adapter.loss(loss_fn)),
        adapter.loss(fs.models.mixed_precision(loss_fn)),
    )
    with standard_promotion():
        values = [jax.tree.leaves(loss(trained, batch, None)) for loss in losses]
        jaxpr = jax.make_jaxpr(lambda w: losses[0](w, batch, None))(trained).jaxpr
        of_examples = [x for x in products(jaxpr, with_shape=True) if x[0][0] == 5]
    jax.tree.map(np.testing.assert_array_equal, *values)
    assert of_examples == [((5, 8), jnp.bfloat16), ((5, 2), jnp.bfloat16)]


def test_steps_below_a_rounding_add_up():
    """100 steps of 1e-4 from 1: each is lost where the parameter itself is of bfloat16."""

    def loss_fn(params, batch, key):
        return -params * batch["x"]

    data = fs.FederatedData.from_clients([{"x": np.ones(10, np.float32)}])
    local = fs.LocalTraining(epochs=10, batch_size=1, shuffle=False)
    algorithm = fs.fedavg(fs.models.mixed_precision(loss_fn), optax.sgd(1e-4), local)
    with standard_promotion():
        state = fs.init(algorithm, jnp.float32(1), data)
        state, _ = jax.jit(fs.make_round(algorithm))(KEY, state, data, fs.Cohort([0]))
    assert float(state.params) == pytest.approx(1.01, abs=1e-5)
    assert jnp.bfloat16(1) + jnp.bfloat16(1e-4) == jnp.bfloat16(1)


def test_what_asks_for_logits_or_checks_labels_can():
    model, data = problem()
    few = fs.models.mixed_precision(fs.models.cross_entropy(model.apply))
    with standard_promotion():
        fs.init(fs.fedlc(few, optax.sgd(0.1), fs.LocalTraining(), tau=1.0), model.init(KEY), data)
        wrong = fs.FederatedData.from_clients(
            [{"x": np.ones((2, 6), np.float32), "y": np.array([0, 7], np.int32)}]
        )
        with pytest.raises(ValueError, match=r"labels .* must lie in \[0, 2\).*got 7"):
            fs.init(fs.fedavg(few, optax.sgd(0.1), fs.LocalTraining()), model.init(KEY), wrong)


def test_a_loss_that_mixes_examples_is_still_refused():
    def mixing(params, batch, key):
        return params * (batch["x"] - jnp.mean(batch["x"]))

    data = fs.FederatedData.from_clients([{"x": np.arange(10, dtype=np.float32)}])
    algorithm = fs.fedavg(fs.models.mixed_precision(mixing), optax.sgd(0.1), fs.LocalTraining())
    with standard_promotion(), pytest.raises(ValueError, match="mean over the block"):
        fs.init(algorithm, 1.0, data)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="dtype must be a floating type"):
        fs.models.mixed_precision(lambda w, batch, key: w, jnp.int8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda remat: (fs.models.transformer(layers=2, length=8, remat=remat), (4, 8), jnp.int32),
        lambda remat: (fs.models.resnet18(width=4, remat=remat), (2, 8, 8, 3), jnp.float32),
    ],
    ids=["transformer", "resnet18"],
)
def test_what_remat_keeps_and_what_it_computes(make):
    """The same gradients of the same parameters, of fewer numbers kept from the way forward."""
    kept, gradients = [], []
    for remat in (False, True):
        model, shape, dtype = make(remat)
        params, x = model.init(KEY), jnp.ones(shape, dtype)

        def loss(w, model=model, x=x):
            return jnp.mean(model.apply(w, x) ** 2)

        with standard_promotion(), jax.numpy_rank_promotion("allow"):
            pullback = jax.eval_shape(lambda w, loss=loss: jax.vjp(loss, w)[1], params)
            gradients.append(jax.jit(jax.grad(loss))(params))
        kept.append(sum(x.size for x in jax.tree.leaves(pullback)))
    assert kept[1] < 0.8 * kept[0]
    assert jax.tree.structure(gradients[0]) == jax.tree.structure(gradients[1])
    for kept_all, recomputed in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(kept_all, recomputed, rtol=1e-3, atol=1e-5)
