"""Asynchronous rounds by a setting: those of the functions, and what is refused by name."""

import jax
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.grid import product
from fedjax_sim.settings import build
from fedjax_sim.settings.configurations import resolved_one
from fedjax_sim.settings.setting import Setting

SMALL = {"clients": 6, "rounds": 4, "model": "logistic", "epochs": 1}
FEDBUFF = {"asynchronous": "fedbuff", "buffer": 2, "concurrency": 4, "clock": "lognormal"}


def resolved(**values):
    return Setting.of({**SMALL, **values}).resolved()


@pytest.mark.parametrize(
    ("values", "wrap"),
    [
        (
            {**FEDBUFF, "staleness": 0.3},
            lambda algorithm, clock: fs.asynchronous.fedbuff(algorithm, 2, 4, clock, 0.3),
        ),
        pytest.param(
            {"asynchronous": "fedasync", "concurrency": 3, "clock": "lognormal", "mixing": 0.4},
            lambda algorithm, clock: fs.asynchronous.fedasync(algorithm, 3, clock, 0.4),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["fedbuff", "fedasync"],
)
def test_a_setting_is_the_function(values, wrap):
    setting = resolved(**values)
    assert (setting.mode, setting.sampler) == ("uniform", "everyone")
    by_setting = build.experiment(setting)
    assert by_setting.clock is None
    plain = build.experiment(resolved(mode="uniform", sampler="everyone"))
    clock = fs.clocks.lognormal(jax.random.key(0), 6)
    by_function = plain._replace(algorithm=wrap(plain.algorithm, clock))
    key = jax.random.key(0)
    states, histories = zip(*(x.run(key) for x in (by_setting, by_function)), strict=True)
    for ours, theirs in zip(jax.tree.leaves(states[0]), jax.tree.leaves(states[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (np.asarray(histories[0].rounds.seconds) > 0).all()
    assert float(histories[0].rounds.staleness["max"].max()) > 0


@pytest.mark.slow
def test_a_sweep_traces_its_numbers():
    traces = []

    def experiment(**hyper):
        traces.append(hyper)
        return build.experiment(resolved_one({**SMALL, **FEDBUFF}, hyper))

    grid = product(staleness=[0.0, 2.0], speed_spread=[0.5, 1.5])
    together = fs.sweep(experiment, grid, [0])
    assert sum(isinstance(h["staleness"], jax.core.Tracer) for h in traces) > 0
    for values, run in zip(grid, together.runs, strict=True):
        _, history = build.experiment(resolved(**FEDBUFF, **values)).run(jax.random.key(0))
        np.testing.assert_allclose(run.rounds["update_norm"], history.rounds.update_norm, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**FEDBUFF, "clock": None}, "clock must be given to asynchronous fedbuff"),
        ({**FEDBUFF, "deadline": 3.0}, "deadline must not be given to asynchronous fedbuff"),
        ({**FEDBUFF, "buffer": 5}, "buffer must be at most concurrency"),
        ({**FEDBUFF, "concurrency": 7}, "concurrency must be at most the 6 clients that"),
        ({**FEDBUFF, "sampler": "uniform", "fraction": 0.5}, "at most the 3 clients that"),
        (
            {**FEDBUFF, "attack": "ipm", "malicious": 0.5},
            "attack must not be given to asynchronous fedbuff.*got ipm",
        ),
        ({**FEDBUFF, "staleness": -1.0}, "staleness must be finite and at least 0"),
        ({"buffer": 2}, "buffer belongs to asynchronous fedbuff"),
        ({**FEDBUFF, "mixing": 0.5}, "mixing belongs to asynchronous fedasync"),
        ({**FEDBUFF, "asynchronous": "fedbuf"}, "did you mean 'fedbuff'|must be one of"),
    ],
)
def test_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        resolved(**values)


def test_privacy_of_cohorts_is_refused():
    private = {"privacy": "central", "clip": 1.0, "noise_multiplier": 1.0}
    with pytest.raises(ValueError, match="privacy must not be central in asynchronous rounds"):
        resolved(**FEDBUFF, **private)
