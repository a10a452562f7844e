"""A comparison from Python: seeds and chunks, and what is made of its scores."""

import numpy as np
import pytest

from fedjax_sim.compare.comparison import Comparison
from fedjax_sim.results.targets import rounds_to_target
from fedjax_sim.settings.resolved import cohort_size
from fedjax_sim.settings.setting import Setting
from tests.conftest import slow_after


@pytest.mark.parametrize("execution", slow_after(1, ["vmapped", "packed:3"]))
def test_same_seed_same_history_in_any_chunks(tmp_path, execution):
    from fedjax_sim.compare import comparison

    setting = Comparison(
        Setting(clients=10, rounds=4, execution=execution),
        fractions=(0.5,),
        modes=("selected",),
        seeds=2,
    ).resolved()
    whole = comparison.compare(setting, checkpoint_every=4)
    told = []
    parts = comparison.compare(setting, checkpoint_every=3, on_progress=told.append)
    assert len(told) >= 3  # a first round, up to round 3, and the last
    for one, other in zip(whole.runs, parts.runs, strict=True):
        for name in one.rounds:
            np.testing.assert_array_equal(one.rounds[name], other.rounds[name])
    first, second = (run.rounds["train_loss"] for run in whole.runs)
    assert (first != second).all()


def test_rounds_to_target_by_hand():
    # Best so far 0.2, 0.5, 0.5, 0.9: 0.7 is half way between rounds 3 and 4.
    assert rounds_to_target(np.array([0.2, 0.5, 0.4, 0.9]), 0.7) == pytest.approx(3.5)
    assert rounds_to_target(np.array([0.8, 0.9]), 0.7) == 1
    for target in (0.7, 0.97, 0.99):  # met exactly, above or below its 32 bits
        scores = np.array([0.5, target, 0.995], np.float32)
        assert rounds_to_target(scores, target) == 2
        assert rounds_to_target(scores.astype(np.float64), target) == pytest.approx(2)
    assert rounds_to_target(np.array([0.2, 0.5]), 0.7) is None
    assert rounds_to_target(np.array([np.nan, 0.9]), 0.7) == 2


@pytest.mark.parametrize(
    ("fraction", "clients", "m"), [(0.001, 100, 1), (0.1, 100, 10), (0.5, 5, 3), (1.0, 7, 7)]
)
def test_cohort_size(fraction, clients, m):
    assert cohort_size(fraction, clients) == m
