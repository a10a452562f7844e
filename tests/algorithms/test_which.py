"""The table of all algorithms: its bytes, its papers, and special cases that no other test has."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import algorithms
from fedjax_sim.algorithms.facts import Facts
from fedjax_sim.core.registry import declared
from tests.helpers import which

DECLARED = declared(algorithms)
MODEL = 4 * (64 * 30 + 30 + 30 + 30 + 30 * 10 + 10)  # bytes
HEAD, NORM = 4 * (30 * 10 + 10), 4 * (30 + 30)
LOCAL = fs.LocalTraining(epochs=2, batch_size=2)


def loss_fn(w, batch, key):
    return (batch["x"] * w - batch["y"]) ** 2


@pytest.mark.parametrize("name", DECLARED)
def test_every_algorithm_has_its_line(name):
    facts = DECLARED[name].facts
    assert isinstance(facts, Facts)
    for words, longest in ((facts.equation, 110), (facts.special_case, 80), (facts.fault, 110)):
        assert "\n" not in words
        assert len(words) <= longest
    assert facts.equation
    assert facts.special_case
    assert "https://arxiv.org/abs/" in which.paper(DECLARED[name])


@pytest.mark.parametrize(
    ("name", "kept", "down", "up"),
    [
        ("fedavg", 0, MODEL, MODEL),
        ("fednova", 0, MODEL, MODEL + 8),
        ("scaffold", MODEL, 2 * MODEL, 2 * MODEL),
        ("mime", 0, 4 * MODEL, 2 * MODEL),
        ("ifca", 0, 2 * MODEL, MODEL + 4),
        ("apfl", MODEL + 4, MODEL, MODEL),
        ("fedper", HEAD, MODEL - HEAD, MODEL - HEAD),
        ("lgfedavg", MODEL - HEAD, HEAD, HEAD),
        ("fedbn", NORM, MODEL - NORM, MODEL - NORM),
    ],
)
def test_bytes_are_those_of_the_papers(name, kept, down, up):
    assert which.costs(DECLARED[name]) == (kept, down, up)


def test_bytes_are_told_in_models():
    words = {0: "nothing", 8: "8 B", MODEL: "1 model", 2 * MODEL + 4: "2 models + 4 B"}
    assert {number: which.in_models(number) for number in words} == words
    assert which.in_models(HEAD) == "0.13 models"


@pytest.fixture(scope="module")
def after_a_round():
    """algorithm -> the model after a round of three clients, from w = 0.5."""
    rng = np.random.default_rng(3)
    data = fs.FederatedData.from_clients(
        [{name: rng.normal(size=n).astype(np.float32) for name in ("x", "y")} for n in (4, 2, 5)]
    )

    def run(algorithm):
        round_fn = jax.jit(fs.make_round(algorithm, execution=fs.execution.vmapped()))
        state = fs.init(algorithm, jnp.float32(0.5), data)
        return float(round_fn(jax.random.key(1), state, data, fs.Cohort([0, 1, 2]))[0].params)

    return run


def test_special_cases(after_a_round):
    """pFedMe of one inner step is FedAvg; large tau makes FedAvg of FedAdagrad and FedYogi."""
    moved = after_a_round(fs.fedavg(loss_fn, optax.sgd(0.06), LOCAL)) - 0.5
    pfedme = fs.pfedme(loss_fn, LOCAL, lam=15.0, inner_lr=0.04, inner_steps=1, eta=0.1)
    assert after_a_round(pfedme) - 0.5 == pytest.approx(moved, rel=1e-5)
    for adaptive in (fs.fedadagrad, fs.fedyogi):
        algorithm = adaptive(loss_fn, optax.sgd(0.06), LOCAL, server_lr=2e3, b1=0.0, tau=1e3)
        assert after_a_round(algorithm) - 0.5 == pytest.approx(moved, rel=1e-4)
    algorithm = fs.fedadam(loss_fn, optax.sgd(0.06), LOCAL, server_lr=0.1, b1=0.0, b2=0.0, tau=0.2)
    expected = 0.1 * moved / (abs(moved) + 0.2)
    assert after_a_round(algorithm) - 0.5 == pytest.approx(expected, rel=1e-5)
