"""The best model of a run: that of the round that NumPy finds, however the run was put together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from tests.conftest import zeros
from tests.helpers import killed
from tests.host.test_simulate import same, stopping

KEY = jax.random.key(5)
DATA = killed.federation()


def run(rounds, every=3, **options):
    """Of a model that grows, measured by what rises and falls with it."""

    def loss(params, batch, key):
        return jnp.sum((params["w"][None] - 3 - 0.01 * batch["x"]) ** 2, -1) + params["b"] ** 2

    def evaluate(params):
        phase = 9 * params["w"][0]
        return {"wave": jnp.cos(phase), "wave_loss": jnp.sin(phase), **params}

    algorithm = fs.fedavg(loss, optax.sgd(0.05), fs.LocalTraining(1, None))
    experiment = fs.Experiment(
        algorithm,
        zeros(),
        DATA,
        fs.sampling.bernoulli(0.7),
        rounds,
        execution=fs.execution.vmapped(),
        evaluate=evaluate,
        evaluate_every=every,
    )
    return fs.simulate(experiment, KEY, **options)


def check_in_parts(out, fewer, most, *, every, metric, ends):
    how = {"keep_model": "best", "metric": metric, "out": out, "resume": True}
    for rounds in fewer:
        run(rounds, every, on_progress=stopping(ends), checkpoint_every=4, **how)
    kept = run(most, every, **how)
    plain = run(most, every)
    same(kept._replace(best=None), plain)  # keeping it changes no bit of the run
    column = plain.results().runs[0].rounds[metric]
    sign = -1 if "loss" in metric else 1
    best = int(np.nanargmax(sign * column))
    assert int(kept.best.round) == best + 1
    assert float(kept.best.value) == column[best]
    trained = fs.load(out)
    assert (trained.kept, trained.metric) == ("best", metric)
    assert (trained.round, trained.value) == (best + 1, float(column[best]))
    same_params = jax.tree.map(np.array_equal, trained.params, kept.best.params)
    assert all(jax.tree.leaves(same_params))
    if plain.history.evaluated[best]:
        for name in ("w", "b"):
            there = plain.history.evaluation[name][best]
            np.testing.assert_array_equal(trained.params[name], there)


def test_a_best_round_that_a_longer_run_does_not_evaluate_is_taken_back(tmp_path):
    """Round 5 is lower than all of 10 rounds' 3, 6, 9 and 10."""
    first = run(5, keep_model="best", metric="wave_loss", out=tmp_path)
    assert int(first.best.round) == 5
    check_in_parts(tmp_path, [], 10, every=3, metric="wave_loss", ends=10)
    assert fs.load(tmp_path).round == 10
    assert fs.load(tmp_path).value > float(first.best.value)


@pytest.mark.slow
@settings(max_examples=12)
@given(st.data())
def test_the_best_of_a_run_in_parts_is_that_of_the_whole(tmp_path_factory, draw):
    every = draw.draw(st.sampled_from([1, 3]), "evaluate_every")
    metric = draw.draw(st.sampled_from(["wave", "wave_loss", "train_loss"]), "metric")
    number = st.sampled_from([1, 4, 10, 14])  # few, each a program of its own
    *fewer, most = sorted(draw.draw(st.lists(number, min_size=2, max_size=3, unique=True), "R"))
    ends = draw.draw(st.integers(1, 14), "interrupted after")
    out = tmp_path_factory.mktemp("kept")
    check_in_parts(out, fewer, most, every=every, metric=metric, ends=ends)


def test_what_is_never_measured_leaves_the_first_model(tmp_path):
    kept = run(4, 7, keep_model="best", metric="wave", out=tmp_path, on_progress=stopping(1))
    assert kept.status == "interrupted"
    assert int(kept.best.round) == 0
    trained = fs.load(tmp_path)
    assert (trained.round, trained.value, trained.status) == (0, None, "interrupted")
    np.testing.assert_array_equal(trained.params["w"], zeros()["w"])
    with pytest.raises(ValueError, match='keep_model is "best" there and null here; metric is'):
        run(4, 7, out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep_model": "last"}, "keep_model must be final or best; got 'last'"),
        ({"keep_model": None}, "keep_model must be final or best; got None"),
        ({"metric": "wave"}, "metric is what keep_model=\"best\" goes by; got metric='wave' and"),
        ({"keep_model": "best", "metric": "w"}, "must be one of b, wave, wave_loss; got 'w'"),
        ({"keep_model": "best", "metric": "train_x"}, "wave_loss, train_loss; got 'train_x'"),
    ],
)
def test_what_cannot_be_kept(options, says):
    with pytest.raises(ValueError, match=says):
        run(4, **options)
