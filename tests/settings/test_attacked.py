"""An attack by settings: who makes it, on what, and the rule that stands against it."""

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.settings import build
from fedjax_sim.settings.setting import Setting

SMALL = {"clients": 10, "rounds": 2, "fraction": 0.6, "epochs": 1}


def experiment(**values):
    return build.experiment(Setting.of(SMALL | values).resolved())


def traced(experiment):
    """The shapes of a round; nothing is compiled."""
    key = jax.random.key(0)
    return experiment.shapes_of_round(key, jax.eval_shape(experiment.start, key))


def test_an_attack_by_a_share_or_by_ids():
    """Drawn by the seed of the split, as the Python interface draws."""
    by_share = experiment(attack="alie", alie_z=1.5, malicious=0.2, mode="krum", f=1)
    drawn = fs.attacks.draw_malicious(jax.random.key(0), 10, 0.2)
    np.testing.assert_array_equal(by_share.malicious, drawn)
    by_ids = experiment(attack="sign_flip", malicious_ids="3, 7")
    assert np.flatnonzero(by_ids.malicious).tolist() == [3, 7]
    assert traced(by_share) is not None
    plain = experiment()
    assert plain.attack is None
    assert plain.malicious is None


def test_labels_are_flipped_in_the_data():
    plain, flipped = experiment(), experiment(attack="flip_labels", malicious_ids="3")
    assert flipped.attack is None
    before, after = (np.asarray(x.data.examples["y"]) for x in (plain, flipped))
    begin, size = int(plain.data.offsets[3]), int(plain.data.num_examples[3])
    rows = np.arange(begin, begin + size)
    np.testing.assert_array_equal(after[rows], 9 - before[rows])
    np.testing.assert_array_equal(np.delete(after, rows), np.delete(before, rows))


def test_what_is_done_before_a_rule():
    nested = experiment(mode="krum", f=0, before="bucketing", bucket_size=2)
    assert traced(nested) is not None
    values = Setting.of(SMALL | {"attack": "ipm", "malicious": 0.3, "mode": "median"}).resolved()
    assert values.values()["ipm_eps"] == 0.5
    assert Setting.of(values.values()).resolved().values() == values.values()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attack": "alie"}, "malicious must be given, .*or malicious_ids.* for attack alie"),
        ({"malicious": 0.2}, "malicious belongs to attack .*; there is no attack"),
        ({"attack": "alie", "malicious": 0.0}, r"malicious must be finite and in \(0, 1\]"),
        ({"attack": "alie", "malicious": 0.2, "malicious_ids": "1"}, "and not both"),
        ({"attack": "alie", "malicious_ids": "1,10"}, r"in \[0, 10\); got 10"),
        ({"attack": "alie", "malicious_ids": "a"}, "malicious_ids must be whole numbers"),
        ({"attack": "alle", "malicious": 0.2}, "attack must be one of .*alie.* or none"),
        ({"mode": "krum"}, "f must be given to krum"),
        ({"mode": "trimmed_mean", "trim": 0.5}, r"trim must be finite and in \[0, 1/2\)"),
        ({"mode": "bucketing"}, "mode must be one of"),
        ({"bucket_size": 2}, "bucket_size belongs to before .*; there is no before"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Setting.of(SMALL | values).resolved()


@pytest.mark.parametrize(
    ("values", "f"),
    [
        ({"malicious": 0.2, "fraction": 0.5}, 1),  # of 5 in a round
        ({"malicious": 0.3, "fraction": 1.0}, 3),
        ({"malicious": 0.3, "sampler": "everyone", "fraction": None}, 3),
        ({"malicious": 0.25, "fraction": 1.0}, 3),  # a half is rounded up, as in the draw
        ({"malicious": 0.3, "fraction": 1.0, "f": 2}, 2),
    ],
)
def test_a_rule_bears_the_clients_that_an_attack_has_in_a_round(values, f):
    setting = Setting.of(SMALL | {"attack": "alie", "mode": "krum", **values}).resolved()
    assert setting.options["f"] == f
    with pytest.raises(ValueError, match="f must be given to krum"):
        Setting.of(SMALL | {"attack": "alie", "mode": "krum", "malicious_ids": "1"}).resolved()


def test_too_few_clients_for_a_rule_are_refused_before_a_round_is_traced():
    """Of a round, and of the arrivals of an asynchronous step."""
    with pytest.raises(ValueError, match=r"krum needs .* got m = 6 with f = 2"):
        experiment(mode="krum", f=2).check(jax.random.key(0))
    buffered = {"asynchronous": "fedbuff", "clock": "equal", "fraction": None, "buffer": 3}
    with pytest.raises(ValueError, match=r"krum needs .* got m = 3 with f = 1"):
        experiment(mode="krum", f=1, concurrency=5, **buffered).check(jax.random.key(0))
    experiment(mode="krum", f=1).check(jax.random.key(0))


def test_what_cannot_be_built():
    with pytest.raises(ValueError, match=r"krum needs a cohort of m > 2 f \+ 2 .*m = 6 with f = 2"):
        traced(experiment(mode="krum", f=2))
    with pytest.raises(ValueError, match="rule must be one that sees all updates"):
        traced(experiment(before="bucketing", bucket_size=2))
