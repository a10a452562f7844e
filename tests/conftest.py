"""Strict settings, and the small ragged federation most tests train on."""

import os
import shutil
import sys
import tempfile

# One cache of compiled programs for this session: its workers, and the processes that tests
# start, compile the same things. Set before jax is imported, which reads it; tests that count,
# count traces. In the home of who tests there is nothing.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    MADE = tempfile.mkdtemp(prefix="fedjax-sim-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = MADE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
else:
    MADE = None

# A toy round compiles in 40 % of the time where XLA emits loops itself instead of through MLIR,
# and LLVM, behind XLA's own passes, optimises nothing; the quick tests compile hundreds. Slow
# tests, which train, compile as users do. Workers and the processes that tests start inherit what
# is set here. A jaxlib that knows one of these flags no longer ends at once and names it.
os.environ.setdefault(
    "XLA_FLAGS",
    ""
    if "slow" in sys.argv
    else "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
)

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import fedjax_sim as fs

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Two devices, whatever the machine, for the sharded strategy, or as many as a test asks for that
# starts another session; started here, before a doctest can ask for another number.
DEVICES = "FEDJAX_SIM_TEST_DEVICES"
jax.config.update("jax_num_cpu_devices", int(os.environ.get(DEVICES, "2")))
MESH = jax.sharding.Mesh(np.array(jax.devices("cpu")), ("clients",))

settings.register_profile(
    "fedjax_sim", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fedjax_sim")


def pytest_unconfigure():
    if MADE is not None:
        shutil.rmtree(MADE, ignore_errors=True)


def slow_after(quick, values):
    """The values, those behind the first few marked slow: they compile the same code once more."""
    values = list(values)
    return [*values[:quick], *(pytest.param(x, marks=pytest.mark.slow) for x in values[quick:])]


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


def several_models(number=2):
    """Models that differ, leaves [number, ...], to begin IFCA with."""
    values = np.random.default_rng(1).normal(size=(number, 5)).astype(np.float32) / 4
    return {"w": values[:, :-1], "b": values[:, -1]}


def flat(params):
    """The reference's vector [w, b]; of several models [C, 5]."""
    w, b = np.asarray(params["w"]), np.asarray(params["b"])
    return np.concatenate([w, b[..., None]], axis=-1).astype(np.float64)
