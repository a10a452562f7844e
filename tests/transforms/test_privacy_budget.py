"""The accountant beside published figures, and the samplers that it has no event of."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fedjax_sim as fs
from fedjax_sim.transforms.privacy import accounting

# sampler, z, rounds, delta, K -> epsilon by PLD, add or remove one (dp-accounting 0.6).
GOLDEN = {
    "poisson": (fs.sampling.bernoulli(0.1), 1.0, 100, 1e-5, None, 7.047),
    "rare": (fs.sampling.bernoulli(0.01), 1.0, 1000, 1e-5, None, 1.828),
    "little noise": (fs.sampling.bernoulli(0.1), 0.7, 200, 1e-3, None, 15.083),
    "everyone": (fs.sampling.everyone(), 4.0, 100, 1e-5, None, 13.207),
    "truncated": (fs.sampling.bernoulli(0.1, capacity=20), 1.0, 100, 1e-5, 100, 7.901),
}
RENYI = {"poisson": 7.904, "rare": 2.101, "everyone": 14.132}


@pytest.mark.parametrize(
    "name",
    [
        "poisson",
        "rare",
        "everyone",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("little noise", "truncated")),
    ],
)
def test_budgets_are_the_golden_ones(name):
    *arguments, expected = GOLDEN[name]
    assert math.isclose(fs.privacy.budget(*arguments), expected, rel_tol=0.01)


@pytest.mark.parametrize("name", RENYI)
def test_the_bracket_is_the_golden_one_and_above(name):
    sampler, z, rounds, delta, _, by_losses = GOLDEN[name]
    epsilon = accounting._renyi(sampler.law, z, rounds, delta)
    assert math.isclose(epsilon, RENYI[name], rel_tol=0.01)
    assert epsilon > by_losses


def analytic_gaussian(z, epsilon):
    """delta of one Gaussian mechanism: Balle and Wang 2018 (arXiv 1805.06530), theorem 8."""
    phi = stats.norm.cdf
    return phi(0.5 / z - epsilon * z) - math.exp(epsilon) * phi(-0.5 / z - epsilon * z)


def test_everyones_budget_is_that_of_one_gaussian_mechanism():
    """R rounds of z are one of z / sqrt(R), whose delta has a closed form."""
    epsilon = fs.privacy.budget(fs.sampling.everyone(), 6.0, 25, 1e-4)
    assert math.isclose(analytic_gaussian(6 / 5, epsilon), 1e-4, rel_tol=0.01)


@pytest.mark.parametrize(
    ("sampler", "epsilon", "rounds", "delta", "num_clients"),
    [
        (fs.sampling.everyone(), 3.0, 50, 1e-5, None),
        pytest.param(fs.sampling.bernoulli(0.05), 8.0, 200, 1e-5, None, marks=pytest.mark.slow),
        pytest.param(
            fs.sampling.bernoulli(0.1, capacity=35), 2.0, 100, 1e-4, 100, marks=pytest.mark.slow
        ),
    ],
)
def test_calibrate_inverts_budget(sampler, epsilon, rounds, delta, num_clients):
    z = fs.privacy.calibrate(sampler, epsilon, rounds, delta, num_clients)
    spent = fs.privacy.budget(sampler, z, rounds, delta, num_clients)
    assert 0.998 * epsilon <= spent <= epsilon
    assert fs.privacy.budget(sampler, 0.99 * z, rounds, delta, num_clients) > epsilon


def test_a_history_rises_to_the_budget():
    law = fs.sampling.bernoulli(0.1).law
    rounds = [1, 100]
    epsilons = accounting.history(law, 1.0, rounds, 1e-5, 1000)
    assert np.all(np.diff(epsilons) > 0)
    for r, epsilon in zip(rounds, epsilons, strict=True):
        spent = fs.privacy.budget(fs.sampling.bernoulli(0.1), 1.0, r, 1e-5)
        assert spent * (1 - 1e-6) <= epsilon <= 1.005 * spent


def test_a_long_history_is_composed_at_64_rounds():
    law = fs.sampling.everyone().law
    epsilons = np.array(accounting.history(law, 30.0, range(1, 201), 1e-5, 1000))
    assert len(np.unique(epsilons)) == 64
    assert np.all(np.diff(epsilons) >= 0)
    for r in (1, 77, 200):
        spent = fs.privacy.budget(fs.sampling.everyone(), 30.0, r, 1e-5)
        assert spent * (1 - 1e-6) <= epsilons[r - 1] <= 1.04 * spent


@pytest.mark.slow
def test_a_capacity_that_the_sampler_takes_changes_no_digit():
    """Where it drops the last clients and the accountant any, a cohort is too large once in 10^9
    rounds, beside which 1e-5 is large."""
    plain = fs.privacy.budget(fs.sampling.bernoulli(0.1), 1.0, 100, 1e-5)
    truncated = fs.sampling.bernoulli(0.1, capacity=35)
    data = fs.FederatedData.from_clients([np.ones(1, np.float32)] * 100)
    truncated.sample(jax.random.key(0), 0, data)  # which refuses a smaller one
    assert math.isclose(fs.privacy.budget(truncated, 1.0, 100, 1e-5, 100), plain, rel_tol=1e-3)


def test_no_noise_costs_everything():
    assert fs.privacy.budget(fs.sampling.everyone(), 0.0, 1, 1e-5) == math.inf


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (fs.sampling.uniform(10), "takes the place of another in m"),
        (fs.sampling.weighted(10), "by their weights"),
        (fs.sampling.with_replacement(10), "several times in a round"),
        (fs.sampling.custom(2, lambda key, data: None), "how its clients are drawn is not known"),
        ("bernoulli", "sampler must be one of fs.sampling.*got str"),
        (fs.sampling.bernoulli, "sampler must be one of fs.sampling.*got function"),
        (fs.sampling.bernoulli(0.1, capacity=50), "num_clients must be given"),
    ],
)
def test_samplers_without_an_event_are_refused(sampler, words):
    for call in (fs.privacy.budget, fs.privacy.calibrate):
        with pytest.raises(ValueError, match=words):
            call(sampler, 1.0, 10, 1e-5)


def test_a_sampler_of_ones_own_says_its_law():
    def draw(key, data):
        return fs.sampling.bernoulli(0.1).sample(key, 0, data)

    sampler = fs.sampling.custom(None, draw, law=fs.sampling.Poisson(0.1))
    assert round(fs.privacy.budget(sampler, 1.0, 100, 1e-5), 2) == 7.05


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((-1.0, 10, 1e-5), "noise_multiplier must be finite and at least 0; got -1"),
        ((1.0, 0, 1e-5), "num_rounds must be a whole number, at least 1"),
        ((1.0, 10, 0.0), r"delta must be finite and in \(0, 1\); got 0"),
        ((1.0, 10, 1.0), r"delta must be finite and in \(0, 1\); got 1"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        fs.privacy.budget(fs.sampling.everyone(), *arguments)


def test_a_calibration_needs_an_epsilon():
    with pytest.raises(ValueError, match="epsilon must be finite and positive; got 0"):
        fs.privacy.calibrate(fs.sampling.everyone(), 0, 10, 1e-5)


def test_traced_numbers_have_no_budget():
    with pytest.raises(ValueError, match="noise_multiplier must be a number for a budget"):
        jax.jit(lambda z: fs.privacy.budget(fs.sampling.everyone(), z, 10, 1e-5))(1.0)
    with pytest.raises(ValueError, match="a number for q for a budget"):
        jax.jit(lambda q: fs.privacy.budget(fs.sampling.bernoulli(q), 1.0, 10, 1e-5))(0.1)
    assert fs.privacy.budget(fs.sampling.everyone(), jnp.float32(0), 1, 1e-5) == math.inf


def test_without_the_accountant_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    for call in (fs.privacy.budget, fs.privacy.calibrate):
        with pytest.raises(ImportError, match=r"pip install fedjax-sim\[dp\]"):
            call(fs.sampling.everyone(), 1.0, 10, 1e-5)
