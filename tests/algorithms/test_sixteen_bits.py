"""Models of 16 bits: what a number near 1, near 0 or large would lose there is computed in 32.

Phases are called one by one, outside of a round, so that little is compiled. bfloat16 has 8 bits,
in which 0.999 is 1; float16 has 11, of numbers between 6e-8 and 65504.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim.algorithms.ratios import WithShare
from fedjax_sim.core.types import Coefficients
from tests.algorithms.test_server_optimizers import NAMES, algorithm_2

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
KEY, ONE, LOCAL = jax.random.key(0), jnp.ones(1, bool), fs.LocalTraining(1, None)


def square_loss(w, batch, key):
    return (w - batch.astype(w.dtype)) ** 2


def begun(algorithm, params, message=None):
    """A client's carry before its first step, and its message."""
    if message is None:
        message = algorithm.broadcast(algorithm.init(params), jnp.int32(0))
    return algorithm.client.init(message, algorithm.init_client(params), (), KEY), message


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_algorithm_2_of_small_updates(name, dtype):
    """tau^2 and u^2 of 1e-8 are 0 in float16, and a b2 of 0.999 is 1 in bfloat16."""
    rest = {} if name == "adagrad" else {"b2": 0.999}
    server = getattr(fs.server_optimizers, name)(0.1, b1=0.9, tau=1e-4, **rest)
    w = jnp.zeros(2, dtype)
    state, steps = server.init(w), []
    updates = np.array([[1e-4, -3e-4], [2e-4, 1e-4], [1e-4, 5e-4]])
    for u in updates:
        step, state = server.update(-jnp.asarray(u, dtype), state, w)
        assert step.dtype == dtype
        steps.append(np.asarray(step, np.float64))
    expected = algorithm_2(name, updates, 0.1, 0.9, 0.999, 1e-4)
    np.testing.assert_allclose(np.sum(steps, axis=0), expected, rtol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_momentum_near_1_is_kept(dtype):
    """Of 0.999, one step: v <- 0.999 v, and m <- 0.999 m + 0.001 c."""
    w, u, rate = jnp.zeros((), dtype), jnp.float32(0), optax.sgd(1.0)
    fedavgm = fs.fedavgm(square_loss, rate, LOCAL, momentum=0.999)
    server = fedavgm.init(w)._replace(optimizer=jnp.float32(1))
    after = fedavgm.server_update(server, u, (), None)
    assert float(after.optimizer) == pytest.approx(0.999, rel=1e-5)
    assert after.params.dtype == dtype

    mime = fs.mime(square_loss, 1.0, LOCAL, momentum=0.999)
    server = mime.init(w)._replace(momentum=jnp.float32(1), gradient=jnp.float32(4))
    assert float(mime.server_update(server, u, (), None).momentum) == pytest.approx(1.003, rel=1e-5)
    # A client at x goes along 0.001 c + 0.999 m; without m, along what bfloat16 would lose.
    message = server._replace(momentum=jnp.float32(0))
    moved, _ = mime.client.step(w, message, (), jnp.ones(1), ONE, KEY)
    assert moved.dtype == dtype
    assert float(moved) == pytest.approx(-0.004, rel=1e-2)

    mimelite = fs.mimelite(square_loss, 1.0, LOCAL, momentum=0.999)
    server = mimelite.init(w)._replace(momentum=jnp.float32(1))
    update = (u, WithShare(jnp.float32(4), jnp.float32(1)))
    after = mimelite.server_update(server, update, (), None)
    assert float(after.momentum) == pytest.approx(1.003, rel=1e-5)

    fednova = fs.fednova(square_loss, 0.5, LOCAL, momentum=0.999)
    carry, message = begun(fednova, w)
    for _ in range(2):  # at first g = -2 and w = 1, where g = 0
        carry, _ = fednova.client.step(carry, message, (), jnp.ones(1), ONE, KEY)
    assert float(carry.velocity) == pytest.approx(-2 * 0.999, rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fedsam_looks_up_from_a_small_gradient(dtype):
    """g(w) = 2^-20 (w + 1): from 0 it looks at rho = 1/2, and 1 / |g| is beyond float16."""

    def loss_fn(w, batch, key):
        half = jnp.asarray(0.5, w.dtype)
        return half * batch.astype(w.dtype) * (w + jnp.ones_like(w)) ** 2

    algorithm = fs.fedsam(loss_fn, optax.sgd(2.0**10), LOCAL, rho=0.5)
    carry, message = begun(algorithm, jnp.zeros((), dtype))
    small = jnp.full(1, 2.0**-20)
    carry, _ = algorithm.client.step(carry, message, (), small, ONE, KEY)
    assert float(carry.params) == pytest.approx(-1.5 * 2.0**-10, rel=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_moons_cosines_of_long_features(dtype):
    """Features of length 141, whose squared lengths multiply to 4e8; cosines by hand."""

    def features(w, batch):
        return batch.astype(w.dtype) * w[None]

    def loss_fn(w, batch, key):
        return jnp.zeros(1, w.dtype)

    algorithm = fs.moon(loss_fn, optax.sgd(0.5), LOCAL, 1.0, 0.5, features)
    carry, message = begun(algorithm, jnp.array([1, 1], dtype))
    before = algorithm.init_client(jnp.array([1, -1], dtype))
    batch = jnp.full((1, 2), 100.0)
    carry, metrics = algorithm.client.step(carry, message, before, batch, ONE, KEY)
    # cos(z, z_t) = 1 and cos(z, z') = 0; d cos(z, z') / dw = (1, -1) / 2, of cos(z, z_t) 0.
    assert float(metrics["loss"][0]) == pytest.approx(np.log1p(np.exp(-2.0)), rel=1e-2)
    slope = 2 / (1 + np.exp(2.0))  # the logistic function at -2, over the temperature
    expected = 1 - 0.5 * slope * np.array([0.5, -0.5])
    np.testing.assert_allclose(np.asarray(carry.params, np.float64), expected, rtol=1e-2)


def test_feddf_distils_in_32_bits():
    """The models of three dtypes end together, at what float32 distils."""
    points = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    # Of linear models the mean says what they say on average: nothing would be to distil.
    loss_fn = fs.models.cross_entropy(lambda w, x: jnp.tanh(x.astype(w.dtype) @ w))
    algorithm = fs.feddf(loss_fn, optax.sgd(0.1), LOCAL, {"x": points}, 4, 0.1, None)
    first = np.array([[1.0, 0, -1], [0, 0.5, 0]])
    teachers = first + np.array([[[0.0]], [[1.0]]]) * np.array([[2.0, -1, 0], [0, 1, 1]])
    ones = jnp.ones(2)
    rule = algorithm.aggregation(Coefficients(ones, None))
    ends = []
    for dtype in DTYPES:
        update = WithShare(jnp.asarray(teachers, dtype), ones)
        distilled = rule.combine(update, ones, ones > 0, KEY)
        after = algorithm.server_update(
            algorithm.init(jnp.asarray(first, dtype)), distilled, (), None
        )
        assert after.params.dtype == dtype
        ends.append(np.asarray(after.params, np.float64))
    assert np.abs(ends[0] - teachers.mean(axis=0)).max() > 0.05  # Adam's steps have moved it
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], atol=2e-2)
