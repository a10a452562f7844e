"""What was not measured is missing; a NaN anywhere else is divergence. One notion, everywhere."""

import csv
import math

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim import plots
from fedjax_sim.compare import measured
from fedjax_sim.compare.comparison import Comparison
from fedjax_sim.host.telling import progress_of
from fedjax_sim.report import page, reading
from fedjax_sim.results import ROUNDS, TABLE, Results, Run
from tests.conftest import linear_loss, zeros

NAN = math.nan


@st.composite
def histories(draw):
    """Columns of a run whose rounds may be empty or not evaluated; and where they have values.

    An empty round in which clients of no weight trained has a loss and no update.
    """
    length = draw(st.integers(1, 12))
    kinds = draw(
        st.lists(
            st.sampled_from(["trained", "empty", "weightless"]), min_size=length, max_size=length
        )
    )
    evaluated = np.array(draw(st.lists(st.booleans(), min_size=length, max_size=length)))
    empty, nobody = (
        np.array([k != "trained" for k in kinds]),
        np.array([k == "empty" for k in kinds]),
    )
    t = np.arange(1.0, length + 1)
    rounds = {
        "train_loss": np.where(nobody, NAN, 1 / t),
        "update_norm": np.where(empty, NAN, 0.5**t),
        "reporting": np.where(nobody, 0, 3),
        "nonfinite": np.zeros(length, int),
        "empty": empty,
        "test_loss": np.where(evaluated, 2 / t, NAN),
        "evaluated": evaluated,
    }
    has = {"train_loss": ~nobody, "update_norm": ~empty, "test_loss": evaluated}
    return rounds, has


def of(*several):
    return Results(
        tuple(
            Run({"run": i}, 0, rounds, {}, len(rounds["empty"])) for i, rounds in enumerate(several)
        )
    )


@given(histories())
def test_what_was_not_measured_is_missing_and_no_divergence(made):
    rounds, has = made
    (run,) = of(rounds).runs
    assert not run.diverged
    for name, there in has.items():
        np.testing.assert_array_equal(run.has(name), there)
    row, long = run.row(), of(rounds).long()
    for name, there in has.items():
        last = rounds[name][there][-1] if there.any() else None
        if name != "update_norm":
            assert row[name] == last
        assert [line[name] is None for line in long] == (~there).tolist()
    metrics = progress_of(rounds, 0, 20, 1.0).metrics
    assert set(metrics) == {name for name, there in has.items() if there.any()}
    assert all(metrics[name] == rounds[name][has[name]][-1] for name in metrics)


@given(
    histories(),
    st.sampled_from(["train_loss", "test_loss"]),
    st.data(),
    st.sampled_from([NAN, math.inf, -math.inf]),
)
def test_a_nan_elsewhere_is_divergence(made, name, data, bad):
    rounds, has = made
    # A loss of a round in which nobody of any weight trained cannot be told from none.
    places = np.flatnonzero(has[name] & (~rounds["empty"] if name == "train_loss" else True))
    if not len(places):
        return
    rounds[name][data.draw(st.sampled_from(places.tolist()))] = bad
    (run,) = of(rounds).runs
    assert run.diverged
    assert run.row()["diverged"] is True
    np.testing.assert_array_equal(run.has(name), has[name])


@given(first=histories(), second=histories(), diverged=st.booleans(), legacy=st.booleans())
def test_saved_and_read_it_is_the_same(tmp_path_factory, first, second, diverged, legacy):
    folder = tmp_path_factory.mktemp("saved")
    results = of(first[0], second[0])
    if diverged:
        second[0]["test_loss"][0] = math.inf
        second[0]["evaluated"][0] = True
    results.save(folder, {"kind": "sweep"})
    if legacy:
        _as_the_first_versions_wrote(folder, results)
    for there, here in zip(results.runs, reading.load(folder).results.runs, strict=True):
        assert here.diverged == there.diverged
        for name in ("train_loss", "test_loss"):
            if name in here.rounds:
                np.testing.assert_allclose(here.measured(name), there.measured(name))
            else:
                assert not len(there.measured(name))


def _as_the_first_versions_wrote(folder, results):
    """NaN where nobody trained, such runs called diverged, and no column `empty`."""
    for name in (TABLE, ROUNDS):
        with (folder / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        names = [key for key in rows[0] if key != "empty"]
        for row in rows:
            for key in ("train_loss", "update_norm") if name == ROUNDS else ():
                row[key] = row[key] or "nan"
            losses = [
                run.rounds["train_loss"]
                for run in results.runs
                if str(run.configuration["run"]) == row["run"]
            ]
            if name == TABLE and np.isnan(losses).any():
                row |= {"diverged": "True", "train_loss": "nan"}
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


def test_of_several_clients_those_without_examples_have_no_metric():
    accuracy = np.array([[0.1, NAN, 0.3], [0.2, NAN, 0.4]])
    rounds = {"clients": accuracy, "evaluated": np.ones(2, bool)}
    assert not Run({}, 0, rounds, {}, 2).diverged
    for bad in ([[0.1, NAN, 0.3], [NAN, NAN, 0.4]], np.full((2, 3), NAN), accuracy + math.inf):
        assert Run({}, 0, rounds | {"clients": np.array(bad)}, {}, 2).diverged


def test_a_target_that_was_not_reached_is_no_divergence():
    assert not Run({}, 0, {}, {"rounds_to_90": NAN}, 1).diverged
    assert Run({}, 0, {}, {"error": NAN}, 1).diverged


def dropouts():
    """Two of the clients, of whom each reports in one round of three."""

    def draw(key, data):
        ids_key, key = jax.random.split(key)
        ids = jax.random.choice(ids_key, data.num_clients, (2,), replace=False)
        return fs.Cohort(ids, reports=jax.random.bernoulli(key, 0.3, (2,)))

    return fs.sampling.custom(2, draw)


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(fs.sampling.bernoulli(0.1), id="bernoulli"),
        pytest.param(fs.sampling.uniform(1), id="uniform", marks=pytest.mark.slow),
        pytest.param(dropouts(), id="dropouts", marks=pytest.mark.slow),
    ],
)
def test_a_healthy_run_with_empty_rounds(data, tmp_path, sampler):
    experiment = fs.Experiment(
        fs.fedavg(linear_loss, optax.sgd(0.02), fs.LocalTraining(1, 4)),
        zeros(),
        data,
        sampler,
        24,
        evaluate=fs.evaluator(linear_loss, data),
        evaluate_every=5,
    )
    told, path = [], tmp_path / "run.csv"
    simulation = fs.simulate(
        experiment, jax.random.key(3), on_progress=told.append, writers=[fs.writers.csv(path)]
    )
    empty = simulation.history.rounds.empty
    assert 0 < empty.sum() < 24
    (run,) = simulation.results().runs
    assert not run.diverged
    losses = np.asarray(simulation.history.rounds.train["loss"])
    assert run.row()["train_loss"] == losses[~np.isnan(losses)][-1]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["train_loss"] == "" for row in rows] == empty.tolist()
    assert math.isfinite(told[-1].metrics["train_loss"])


def test_curves_have_no_gap_where_nobody_trained():
    t = np.arange(1.0, 11)
    gone = [{"train_loss": np.where(t % k == 0, NAN, 1 / t), "empty": t % k == 0} for k in (2, 3)]
    results = Results(tuple(Run({}, seed, rounds, {}, 10) for seed, rounds in enumerate(gone)))
    (line, *_) = plots.curves(results, "train_loss").axes[0].get_lines()
    x, y = line.get_data()
    first, second = ([1, 1, 3, 3, 5, 5, 7, 7, 9, 9], [1, 2, 2, 4, 5, 5, 7, 8, 8, 10])
    wanted = {i: (1 / a + 1 / b) / 2 for i, (a, b) in enumerate(zip(first, second, strict=True), 1)}
    assert list(x) == [i for i in wanted if i % 6]  # in round 6 neither has one
    np.testing.assert_allclose(y, [wanted[int(i)] for i in x])


def test_the_best_is_one_that_did_not_diverge(tmp_path):
    def run(lr, loss, accuracy):
        rounds = {
            "train_loss": np.array(loss),
            "empty": np.array([False, True, False]),
            "test_accuracy": np.array(accuracy),
        }
        return Run({"lr": lr}, 0, rounds, {}, 3)

    healthy, lost = run(0.1, [1.0, NAN, 0.5], [0.5, 0.5, 0.8]), run(9.0, [1.0, NAN, NAN], [0.9] * 3)
    results = Results((lost, healthy))
    assert [mean.diverged for mean in results.mean("test_accuracy")] == [1, 0]
    assert results.best("test_accuracy").configuration == {"lr": 0.1}
    assert results.best("train_loss").configuration == {"lr": 0.1}
    assert {r.configuration["lr"] for r in plots.best(results, "test_accuracy", 1).runs} == {0.1}
    from fedjax_sim.cli import show

    results.save(tmp_path, {"kind": "sweep", "score": "test_accuracy"})
    page.write([tmp_path], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count(">diverged<") == 1
    assert "Best final test_accuracy <strong>0.8</strong> with lr=0.1" in text
    table, _ = show.means(results.mean("test_accuracy"), "test_accuracy", False, {})
    assert [*table.columns[0].cells] == ["best", ""]
    assert [*table.columns[1].cells] == ["0.1", "9"]


def test_a_comparison_calls_diverged_what_a_sweep_does():
    setting = Comparison(fractions=(0.3,), modes=("selected",), seeds=2).resolved()

    def run(seed, loss):
        rounds = {name: np.ones(2) for name in ("bytes_down", "bytes_up", "reporting_share")}
        rounds |= {"train_loss": np.array(loss), "empty": np.array([True, False])}
        rounds |= {"test_accuracy": np.array([0.1, 0.2]), "nonfinite": np.zeros(2, int)}
        return Run({"fraction": 0.3, "mode": "selected"}, seed, rounds, {}, 2)

    for loss, lost in (([NAN, 0.5], 0), ([NAN, NAN], 1)):
        results = Results((run(0, [NAN, 0.7]), run(1, loss)))
        (row,) = measured.rows(setting, measured.curves(setting, results), fs.Communication(1, 1))
        assert row.diverged == lost == sum(r.diverged for r in results.runs)
