"""The clock, the deadline and the availability of a setting."""

import jax
import numpy as np
import pytest

from fedjax_sim.settings import build
from fedjax_sim.settings.setting import Setting

VALUES = {"clients": 8, "fraction": 0.5, "clock": "lognormal", "speed_spread": 0.5, "deadline": 9.0}
KEY = jax.random.key(0)


def test_a_setting_has_a_clock_a_deadline_and_a_trace():
    values = VALUES | {"late": "partial", "availability": "by_label", "availability_period": 10}
    experiment = build.experiment(Setting.of(values).resolved())
    assert experiment.clock.step_seconds.shape == (8,)
    cohort = experiment.sampler.sample(KEY, 0, experiment.data)
    assert cohort.deadline.tolist() == [9.0] * 4
    assert cohort.partial.all()
    assert cohort.inclusion is None
    again = build.experiment(Setting.of(values | {"seed": 5}).resolved())
    np.testing.assert_array_equal(experiment.clock.step_seconds, again.clock.step_seconds)
    assert build.experiment(Setting().resolved()).clock is None


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"deadline": 3.0}, "deadline belongs to clock .*lognormal.*; there is no clock"),
        ({"clock": "lognormal", "deadline": 0.0}, "deadline must be finite and positive"),
        ({"clock": "lognormal", "late": "partial"}, "late belongs to a deadline"),
        ({"clock": "equal", "speed_spread": 1.0}, "speed_spread belongs to clock lognormal"),
        ({"availability": "recorded"}, "availability_file must be given to recorded"),
    ],
)
def test_what_belongs_to_no_clock_is_refused(values, says):
    with pytest.raises(ValueError, match=says):
        build.sampler(Setting.of(values).resolved())
