"""Averages of a grid share a program; rules that see all updates do not."""

import jax
import numpy as np
import pytest

from fedjax_sim import grid
from fedjax_sim.settings.configurations import resolved_each, resolved_one
from fedjax_sim.settings.modes import experiment_of, with_numbered_modes
from fedjax_sim.sweeps import sweep

SHARED = {"clients": 10, "rounds": 2, "model": "logistic", "execution": "vmapped"}


def numbered(axes, shared=SHARED):
    given = grid.product(**axes)
    return with_numbered_modes(given, resolved_each(shared, given))


@pytest.mark.parametrize(
    ("axes", "more"),
    [
        ({"mode": ["selected", "median"]}, {}),
        ({"mode": ["selected"]}, {}),
        ({"client_lr": [0.1, 0.2]}, {}),
        ({"mode": ["selected", "uniform"]}, {"before": "bucketing", "bucket_size": 2}),
    ],
)
def test_what_stays_a_program_of_its_own(axes, more):
    kept = numbered(axes, {**SHARED, **more})
    assert not any(isinstance(x, grid.Numbered) for values in kept for x in values.values())


def test_averages_side_by_side_are_each_alone():
    """Zipped with a server rate, so that a mode has values of its own."""
    given = grid.zip(mode=["all_clients", "selected"], server_lr=[2.0, 1.0])
    numbers = with_numbered_modes(given, resolved_each(SHARED, given))
    results = sweep(
        lambda **hyper: experiment_of(numbers, hyper, lambda own: resolved_one(SHARED, own)),
        numbers,
        [0],
    )
    for values, run in zip(given, results.runs, strict=True):
        assert run.configuration == values
        alone = experiment_of(given, values, lambda own: resolved_one(SHARED, own))
        _, history = jax.jit(alone.run)(jax.random.key(0))
        np.testing.assert_allclose(
            run.rounds["update_norm"], history.rounds.update_norm, rtol=1e-5, atol=0
        )
