"""Reddi et al.'s Algorithm 2 (arXiv 2003.00295) against NumPy, and where a setting names it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.settings import build as problem
from fedjax_sim.settings.common import SERVER_OPTIMIZERS
from fedjax_sim.settings.setting import Setting
from tests.conftest import flat, linear_loss, zeros
from tests.helpers.reference import Server

NAMES = ("adam", "yogi", "adagrad")


def algorithm_2(name, updates, lr, b1, b2, tau):
    """The model after these updates u [T, d] from zeros, in float64."""
    w, m, v = np.zeros(updates.shape[1]), np.zeros(updates.shape[1]), tau**2
    for u in updates.astype(np.float64):
        m = b1 * m + (1 - b1) * u
        if name == "adagrad":
            v = v + u**2
        elif name == "yogi":
            v = v - (1 - b2) * u**2 * np.sign(v - u**2)
        else:
            v = b2 * v + (1 - b2) * u**2
        w = w + lr * m / (np.sqrt(v) + tau)
    return w


@settings(max_examples=40)
@given(
    name=st.sampled_from(NAMES),
    updates=st.lists(
        st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=6
    ),
    lr=st.sampled_from((1e-3, 0.1, 1.0)),
    b1=st.sampled_from((0.0, 0.5, 0.9)),
    b2=st.sampled_from((0.5, 0.99, 0.999)),
    tau=st.sampled_from((1e-3, 1e-2, 1.0)),
)
def test_algorithm_2_against_numpy(name, updates, lr, b1, b2, tau):
    optional = {} if name == "adagrad" else {"b2": b2}
    server = getattr(fs.server_optimizers, name)(lr, b1=b1, tau=tau, **optional)
    w = jnp.zeros(3)
    state = server.init(w)
    for u in np.array(updates, np.float32):
        step, state = server.update(-jnp.asarray(u), state, w)
        w = optax.apply_updates(w, step)
    expected = algorithm_2(name, np.array(updates, np.float32), lr, b1, b2, tau)
    # Yogi's sign may fall either way where v and u^2 are equal to rounding.
    np.testing.assert_allclose(w, expected, rtol=1e-3, atol=1e-4 * lr)


def test_the_first_step_of_adagrad_by_hand():
    """lr u / (sqrt(tau^2 + u^2) + tau), where optax's adagrad makes lr u / sqrt(tau^2 + u^2)."""
    u = np.float32(1.2555e-3)
    server, w = fs.server_optimizers.adagrad(0.01), jnp.zeros(())
    step, _ = server.update(-jnp.asarray(u), server.init(w), w)
    assert float(step) == pytest.approx(0.00482, abs=5e-6)
    other = optax.adagrad(0.01, initial_accumulator_value=1e-6)
    step, _ = other.update(-jnp.asarray(u), other.init(w), w)
    assert float(step) == pytest.approx(0.00768, abs=1e-5)


def test_in_a_run_with_traced_numbers(clients, data):
    """FedYogi over 3 rounds of ragged clients, its learning rate an argument of the program."""
    everyone, key = np.arange(len(clients)), jax.random.key(0)

    @jax.jit
    def final(lr, tau):
        server = fs.server_optimizers.yogi(lr, tau=tau)
        algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), fs.LocalTraining(1, None), server)
        state = fs.init(algorithm, zeros(), data)
        round_fn = fs.make_round(algorithm)
        return fs.run(round_fn, key, state, data, fs.sampling.everyone(), 3)[0].params

    reference = Server("fedavg", clients, [len(y) for _, y in clients], 5, 0.05)
    ones, updates = np.ones(len(everyone)), []
    for _ in range(3):
        before = reference.w
        reference.round("selected", everyone, ones, ones, None, ones, 1, None, "epochs")
        updates.append(reference.w - before)
        reference.w = algorithm_2("yogi", np.array(updates), 0.1, 0.9, 0.99, 0.01)
    np.testing.assert_allclose(flat(final(0.1, 0.01)), reference.w, rtol=1e-4)


@pytest.mark.parametrize("name", SERVER_OPTIMIZERS[1:])
def test_a_setting_means_algorithm_2_with_the_papers_constants(name):
    setting = Setting(clients=2, partition="iid", server_optimizer=name).resolved()
    algorithm = problem.experiment(setting).algorithm
    params, updates = {"w": jnp.zeros(2)}, np.array([[1.2e-3, -0.5], [0.03, 0.0]], np.float32)
    server = algorithm.init(params)
    for u in updates:
        server = algorithm.server_update(server, {"w": jnp.asarray(u)}, (), None)
    expected = algorithm_2(name, updates, 0.01, 0.0 if name == "adagrad" else 0.9, 0.99, 1e-3)
    np.testing.assert_allclose(server.params["w"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"lr": 0.0}, "lr must be finite and positive; got 0"),
        ({"lr": 0.1, "tau": 0.0}, "tau must be finite and positive; got 0"),
        ({"lr": 0.1, "b1": 1.0}, r"b1 must be finite and in \[0, 1\); got 1"),
        ({"lr": 0.1, "b2": -0.1}, r"b2 must be finite and in \[0, 1\); got -0.1"),
    ],
)
def test_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        fs.server_optimizers.adam(**numbers)
