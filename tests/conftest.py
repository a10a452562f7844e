"""Strict settings, and the small ragged federation most tests train on."""

import os

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import fedjax_sim as fs

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")  # nothing in the home of who tests

# Two devices, whatever the machine, for the sharded strategy; started here, before a doctest
# can ask for another number.
jax.config.update("jax_num_cpu_devices", 2)
MESH = jax.sharding.Mesh(np.array(jax.devices("cpu")), ("clients",))

settings.register_profile(
    "fedjax_sim", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fedjax_sim")

SIZES = (5, 12, 0, 1, 7, 23, 3, 9)  # ragged, one client of one example, one of none


# optax.adam relies on implicit promotion in its bias correction.
def standard_promotion():
    return jax.numpy_dtype_promotion("standard")


@pytest.fixture(scope="session")
def clients():
    """Linear regression, clients that disagree: a list of (x, y) in float64."""
    rng = np.random.default_rng(0)
    made = []
    for n in SIZES:
        x = rng.normal(size=(n, 4))
        y = x @ rng.normal(size=4) + rng.normal() + 0.1 * rng.normal(size=n)
        made.append((x, y))
    return made


@pytest.fixture(scope="session")
def data(clients):
    return federation(clients)


def federation(clients, client_weights=None):
    return fs.FederatedData.from_clients(
        [{"x": x.astype(np.float32), "y": y.astype(np.float32)} for x, y in clients],
        client_weights,
    )


def linear_loss(params, batch, key):
    return (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2


def zeros():
    return {"w": np.zeros(4, np.float32), "b": np.zeros((), np.float32)}


def flat(params):
    """The reference's vector [w, b]."""
    return np.concatenate([np.asarray(params["w"]), [np.asarray(params["b"])]]).astype(np.float64)
