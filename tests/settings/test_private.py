"""A setting's privacy: its defaults, its noise for an epsilon, its column, and what is refused."""

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.results import Run
from fedjax_sim.settings import build, private
from fedjax_sim.settings.setting import Setting
from fedjax_sim.transforms.privacy.adaptive import WithClip

CENTRAL = {"privacy": "central", "clip": 0.5, "noise_multiplier": 1.0}
SMALL = {"clients": 20, "fraction": 0.3, "rounds": 12}


def resolved(**values):
    return Setting.of(SMALL | values).resolved()


def test_defaults_are_those_of_which_there_is_a_budget():
    setting = resolved(**CENTRAL)
    assert (setting.mode, setting.sampler, setting.expected_cohort) == ("unbiased", "bernoulli", 6)
    values = setting.values()
    assert {**CENTRAL, "delta": 1e-5}.items() <= values.items()
    assert "epsilon" not in values
    assert Setting.of(values).resolved() == setting
    everybody = resolved(**CENTRAL, fraction=None, sampler="everyone", mode="all_clients")
    assert (everybody.sampler, everybody.mode) == ("everyone", "all_clients")
    noised = resolved(privacy="local", clip=1.0, noise_multiplier=1.0)
    assert (noised.mode, noised.sampler) == ("selected", "uniform")
    assert (resolved().mode, resolved().sampler) == ("selected", "uniform")


def test_the_algorithm_is_private_outermost_but_for_the_clients_own_noise():
    half = {"compress": "top_k", "share": 0.5}
    for values, bits in (
        (CENTRAL, 0.5),
        ({**CENTRAL, "privacy": "local"}, 0.5),
        ({"privacy": "adaptive_clipping", "noise_multiplier": 0.2}, 0.5),
    ):
        experiment = build.experiment(resolved(**values, **half))
        down, up = experiment.communication()
        assert up == pytest.approx(2 * bits * down, rel=0.01)  # a value and its index each
    server = build.experiment(
        resolved(privacy="adaptive_clipping", noise_multiplier=0.2)
    ).algorithm.init(np.zeros(2, np.float32))
    assert isinstance(server, WithClip)


def test_noise_of_an_epsilon_and_its_column():
    """Of 12 rounds four are evaluated; what is spent rises to the epsilon that was asked for."""
    setting = resolved(privacy="central", clip=0.5, epsilon=6.0, delta=1e-3)
    z, sampler = setting.options["noise_multiplier"], build.sampler(setting)
    assert 5.98 < fs.privacy.budget(sampler, z, 12, 1e-3) <= 6
    evaluated = np.arange(1, 13) % 3 == 0
    spent = private.spent(setting, sampler, evaluated)
    assert (spent.delta, spent.epsilon.shape) == (1e-3, (12,))
    np.testing.assert_array_equal(np.isnan(spent.epsilon), ~evaluated)
    epsilons = spent.epsilon[evaluated]
    assert np.all(np.diff(epsilons) > 0)
    assert epsilons[-1] == pytest.approx(6, rel=5e-3)
    run = private.with_column(Run({}, 0, {"evaluated": evaluated}, {}, 12), spent)
    assert run.row()["epsilon"] == epsilons[-1]
    assert not run.diverged
    assert private.with_column(run, None) is run


def test_a_clients_own_noise_is_accounted_for_in_every_round():
    setting = resolved(privacy="local", clip=0.5, noise_multiplier=8.0)
    spent = private.spent(setting, build.sampler(setting), np.arange(12) == 11)
    everyone = fs.privacy.budget(fs.sampling.everyone(), 8.0, 12, 1e-5)
    assert spent.epsilon[-1] == pytest.approx(everyone, rel=1e-3)


def test_no_noise_has_no_column():
    setting = resolved(**{**CENTRAL, "noise_multiplier": 0.0})
    assert private.spent(setting, build.sampler(setting), np.ones(12, bool)) is None
    assert private.spent(resolved(), build.sampler(resolved()), np.ones(12, bool)) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clip": 0.5}, "clip belongs to privacy local and central; there is no privacy"),
        ({"delta": 1e-5}, "delta belongs to privacy .*; there is no privacy"),
        ({**CENTRAL, "quantile": 0.5}, "quantile belongs to privacy adaptive_clipping"),
        ({"privacy": "centre"}, "privacy must be one of .*central.* or none; got 'centre'"),
        ({"privacy": "central", "noise_multiplier": 1.0}, "clip must be given to central"),
        ({"privacy": "central", "clip": 1.0}, "noise_multiplier must be given to central, or eps"),
        ({**CENTRAL, "epsilon": 8.0}, "epsilon must be given in the place of noise_multiplier"),
        ({**CENTRAL, "delta": 1.0}, r"delta must be finite and in \(0, 1\); got 1"),
        ({**CENTRAL, "epsilon": 0.0}, "epsilon must be finite and positive; got 0"),
        ({**CENTRAL, "clip": 0.0}, "clip must be finite and positive; got 0"),
        ({**CENTRAL, "sampler": "uniform"}, "sampler must draw each client on its own"),
    ],
)
def test_what_makes_no_claim_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        resolved(**given)


def test_a_budget_is_of_clients_that_can_be_reached_in_every_round():
    """Of one who comes only in some, the accountant has no event, and so the column no number."""
    with pytest.raises(ValueError, match="availability must not be periodic beside privacy"):
        resolved(**CENTRAL, availability="periodic")
    always = resolved(**CENTRAL, availability="always")
    assert private.spent(always, build.sampler(always), np.ones(12, bool)) is not None
    noised = {"privacy": "local", "clip": 1.0, "noise_multiplier": 1.0}
    local = resolved(**noised, availability="by_label", availability_period=4)
    assert private.spent(local, build.sampler(local), np.ones(12, bool)) is not None


def test_clients_that_noise_themselves_are_drawn_by_any_sampler():
    """Power-of-Choice asks for the model's loss, which no budget needs."""
    noised = {"privacy": "local", "clip": 1.0, "noise_multiplier": 1.0}
    assert resolved(**noised, sampler="power_of_choice").sampler == "power_of_choice"
    with pytest.raises(ValueError, match="because clients come by the model's loss"):
        resolved(**CENTRAL, sampler="power_of_choice")


def test_a_rule_or_an_algorithm_that_breaks_it_is_refused():
    with pytest.raises(ValueError, match="divides by the weight of those that report"):
        _ = build.experiment(resolved(**CENTRAL, mode="selected")).round_fn
    with pytest.raises(ValueError, match="sends a total beside it"):
        build.experiment(resolved(**CENTRAL, algorithm="scaffold"))


@pytest.mark.parametrize("epsilon", [1e-4, pytest.param(0.01, marks=pytest.mark.slow)])
def test_a_small_epsilon_is_not_exceeded(epsilon):
    """Steps of the accountant that do not depend on epsilon would round it up to their length."""
    setting = resolved(privacy="central", clip=0.5, epsilon=epsilon)
    sampler = build.sampler(setting)
    ends = np.arange(setting.rounds) >= setting.rounds - 1
    spent = private.spent(setting, sampler, ends).epsilon[-1]
    assert 0.98 * epsilon < spent <= epsilon
