"""Models that sweeps keep: of each run the last, or the best behind the very round."""

import math
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.host.keeping import Keep, better, first_best
from tests.conftest import linear_loss, zeros

RATES = [0.01, 0.02, 0.05]


def factory(data, rounds=6, evaluate=lambda params: {"b": params["b"], "w": params["w"]}):
    def experiment(lr):
        algorithm = fs.fedavg(linear_loss, optax.sgd(lr), fs.LocalTraining(1, 4))
        return fs.Experiment(
            algorithm,
            zeros(),
            data,
            fs.sampling.uniform(4),
            rounds,
            evaluate=evaluate,
            evaluate_every=2,
        )

    return experiment


@given(
    name=st.sampled_from(["test_accuracy", "test_loss", "train_loss"]),
    values=st.lists(
        st.sampled_from([0.5, 1.0, 2.0, math.nan, math.inf, -math.inf]), min_size=1, max_size=6
    ),
    evaluated=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_the_best_so_far_is_the_first_of_the_best_that_was_measured(name, values, evaluated):
    def state(round):
        return fs.FederatedState(jnp.float32(round), (), jnp.int32(round), lambda server: server)

    keep, best = Keep("best", name), first_best(state(0))
    expected = (0, math.nan)
    for round, (value, due) in enumerate(zip(values, evaluated, strict=False), 1):
        is_train = name == "train_loss"
        row = types.SimpleNamespace(
            rounds=types.SimpleNamespace(train={"loss": jnp.float32(value)}),
            evaluation={} if is_train else {name: jnp.float32(value)},
            evaluated=jnp.array(due),
        )
        best = better(keep, best, state(round), row)
        wins = value > expected[1] if name == "test_accuracy" else value < expected[1]
        if math.isfinite(value) and (due or is_train) and (wins or expected[0] == 0):
            expected = (round, value)
    assert int(best.round) == int(best.params) == expected[0]
    np.testing.assert_equal(float(best.value), expected[1])


@pytest.fixture(scope="module")
def kept(data, tmp_path_factory):
    """keep_models -> (results, folder); blocks do not come out even, so one repeats a run."""

    def of(kept, **options):
        out = tmp_path_factory.mktemp(kept)
        results = fs.sweep(
            factory(data),
            {"lr": RATES},
            [0, 7],
            out=out,
            keep_models=kept,
            side_by_side=2,
            configuration={"model": "linear"},
            **options,
        )
        return results, out

    return {"final": of("final"), "best": of("best", metric="b")}


def test_the_final_model_is_the_one_last_evaluated(kept):
    results, out = kept["final"]
    for run in results.runs:
        trained = fs.load(out, run.configuration, run.seed, like=zeros())
        np.testing.assert_array_equal(trained.params["b"], run.rounds["b"][-1])
        np.testing.assert_array_equal(trained.params["w"], run.rounds["w"][-1])
        assert trained.configuration == {"model": "linear", **run.configuration}
        assert trained[2:9] == (run.seed, 6, 6, "finished", "final", None, None)
    assert len([*(out / "models").iterdir()]) == len(results.runs) == 6


def test_the_best_model_is_that_of_its_round(kept):
    results, out = kept["best"]
    rounds = set()
    for run in results.runs:
        values = np.where(run.rounds["evaluated"], run.rounds["b"], -np.inf)
        trained = fs.load(out, run.configuration, run.seed)
        assert trained.round == int(np.argmax(values)) + 1
        assert (trained.kept, trained.metric) == ("best", "b")
        assert trained.value == values.max() == trained.params["b"]
        np.testing.assert_array_equal(trained.params["w"], run.rounds["w"][trained.round - 1])
        rounds.add(trained.round)
    assert len(rounds) > 1  # or it would be the final one
    # What is carried changes no number of the run.
    for a, b in zip(results.table(), kept["final"][0].table(), strict=True):
        assert a == b


def test_which_of_them(kept):
    _, out = kept["final"]
    with pytest.raises(ValueError, match=r"holds several models; give configuration and seed of "):
        fs.load(out)
    # What all of those that are meant have in common does not tell them apart.
    with pytest.raises(ValueError, match=r"2 models of lr=0.02; .* of \(seed=0\), \(seed=7\)"):
        fs.load(out, {"lr": 0.02})
    with pytest.raises(ValueError, match=r"no models of lr=0.3; .*, \(lr=0.05, seed=7\)$"):
        fs.load(out, {"lr": 0.3})
    with pytest.raises(ValueError, match="unknown hyper-parameter 'leraning_rate'; known are"):
        fs.load(out, {"leraning_rate": 0.02}, 0)


@pytest.mark.slow
def test_interrupted_and_resumed_the_models_are_the_same(data, kept, tmp_path):
    whole = kept["best"][1]
    told = []

    def stop(progress):
        told.append(progress)
        if len(told) == 5:
            signal.raise_signal(signal.SIGINT)

    options = {
        "out": tmp_path,
        "keep_models": "best",
        "metric": "b",
        "side_by_side": 2,
        "configuration": {"model": "linear"},
    }
    make, grid = factory(data), {"lr": RATES}
    fs.sweep(make, grid, [0, 7], on_progress=stop, checkpoint_every=2, **options)
    assert 0 < len([*(tmp_path / "models").iterdir()]) < 6

    def resume():
        fs.sweep(make, grid, [0, 7], checkpoint_every=2, resume=True, **options)
        for path in (whole / "models").iterdir():
            assert (tmp_path / "models" / path.name).read_bytes() == path.read_bytes()

    resume()
    (tmp_path / "models" / "000001-7.npz").unlink()
    with pytest.warns(UserWarning, match=r"000001-7.npz is missing and is computed again"):
        resume()
    with pytest.raises(ValueError, match='keep_models is "best" there and "final" here; metric is'):
        fs.sweep(
            make, grid, [0, 7], resume=True, **options | {"keep_models": "final", "metric": None}
        )


def test_a_sweep_that_kept_none_says_so(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ValueError, match=r"its sweep kept none, .*keep_models=\"final\""):
        fs.load(tmp_path)


def test_best_without_a_metric_is_by_the_score(data, tmp_path):
    def evaluate(params):
        norm = jnp.sum(params["w"] ** 2)
        return {"test_loss": params["b"], "validation_loss": norm, "odd": params["w"]}

    make = factory(data, rounds=4, evaluate=evaluate)
    fs.sweep(make, {"lr": [0.01]}, [0], out=tmp_path, keep_models="best")
    trained = fs.load(tmp_path)
    assert trained.metric == "validation_loss"
    assert trained.round == 2  # it grows from 0, and round 2 is evaluated first


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep_models": "last"}, "keep_models must be None, final or best; got 'last'"),
        ({"keep_models": "final", "out": None}, "keep_models needs out"),
        ({"keep_models": "final", "metric": "b"}, "metric is what .*got metric='b' and keep"),
        ({"metric": "b"}, "metric is what keep_models=\"best\" goes by; got metric='b' without"),
        ({"keep_models": "best", "metric": "w"}, "must be one of b; got 'w'"),
        ({"keep_models": "best", "metric": "train_x"}, "one of b, train_loss; got 'train_x'"),
    ],
)
def test_what_cannot_be_kept_is_refused(data, tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        fs.sweep(factory(data), {"lr": [0.01]}, [0], **{"out": tmp_path} | options)
    assert not [*tmp_path.iterdir()]


def test_a_function_of_the_key_is_refused(data, tmp_path):
    def experiment(key, lr):
        return factory(data)(lr).run(key)[1]

    with pytest.raises(ValueError, match=r"keep_models needs an experiment that returns an fs.Exp"):
        fs.sweep(experiment, {"lr": [0.01]}, [0], out=tmp_path, keep_models="final")
    with pytest.raises(ValueError, match="got None, and the experiment evaluates nothing"):
        fs.sweep(
            factory(data, evaluate=None),
            {"lr": [0.01]},
            [0],
            out=tmp_path,
            keep_models="best",
            metric=None,
        )


@pytest.mark.slow
def test_clients_alone_keep_their_own_models(data, tmp_path):
    def experiment(lr):
        return fs.baselines.local_only(factory(data, rounds=2)(lr))

    fs.sweep(experiment, {"lr": [0.01, 0.02]}, [0], out=tmp_path, keep_models="final")
    trained = fs.load(tmp_path, {"lr": 0.02})
    assert trained.params["w"].shape == (8, 4)
    state, _ = jax.jit(lambda key: experiment(0.02).run(key))(jax.random.key(0))
    np.testing.assert_allclose(
        trained.params["w"], fs.baselines.local_models(state)["w"], rtol=1e-4, atol=1e-6
    )
