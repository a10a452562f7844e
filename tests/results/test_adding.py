"""Results that add up, that are told apart, and what is the best of them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_sim import plots
from fedjax_sim.report import reading
from fedjax_sim.results import Results, Run, joined


def run(lr, seed, score=0.5, **values):
    rounds = {"test_accuracy": np.array([0.1, score]), "train_loss": np.array([2.0, 1 - score])}
    return Run({"lr": lr}, seed, rounds, values, 2)


places = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3]), st.integers(0, 4)), unique=True)


@given(places, st.data())
def test_a_sum_has_the_runs_of_both_by_configuration(all_places, data):
    cut = data.draw(st.integers(0, len(all_places)))
    a, b = (
        Results(tuple(run(*p, score=p[1] / 8) for p in part))
        for part in (all_places[:cut], all_places[cut:])
    )
    found = a + b
    assert sorted((r.configuration["lr"], r.seed) for r in found.runs) == sorted(all_places)
    rates = [r.configuration["lr"] for r in found.runs]
    assert rates == sorted(rates, key=[lr for lr, _ in all_places].index)  # together, as they came
    for mean in found.mean("test_accuracy") if all_places else ():
        scores = [seed / 8 for lr, seed in all_places if lr == mean.configuration["lr"]]
        assert mean.seeds == len(scores)
        assert mean.mean == pytest.approx(np.mean(scores))
    assert sum([a, b]).runs == found.runs
    if a.runs:
        with pytest.raises(ValueError, match=r"must not share a run; both have .*labelled"):
            found + a
        apart = a.labelled(attempt=1) + a.labelled(attempt=2)
        assert len(apart.runs) == 2 * len(a.runs)


def test_labels_are_new_names():
    results = Results((run(0.1, 0, error=1.0),))
    for name in ("lr", "seed", "diverged", "train_loss", "error"):
        with pytest.raises(ValueError, match=f"labels must be new names; .*{name!r}"):
            results.labelled(**{name: 1})
    with pytest.raises(TypeError):
        results + [run(0.2, 0)]


def test_sums_of_other_columns_save_and_read(tmp_path):
    other = {"train_loss": np.array([1.0, math.nan]), "empty": np.array([False, True])}
    found = Results((run(0.1, 0),)) + Results((Run({"rule": "x"}, 0, other, {"error": 1.0}, 2),))
    found.save(tmp_path, {"kind": "sweep"})
    first, second = reading.load(tmp_path).results.runs
    assert (set(first.rounds), set(second.rounds)) == (
        {"test_accuracy", "train_loss", "evaluated"},
        {"train_loss", "empty", "test_accuracy", "evaluated"},
    )
    assert not first.diverged
    assert not second.diverged
    assert second.row()["train_loss"] == 1.0
    assert second.values["error"] == 1.0


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_curves_of_several_results():
    a, b = Results((run(0.1, 0, 0.5),)), Results((run(0.2, 0, 0.9),))
    assert legend(plots.curves([a, b], "test_accuracy")) == ["lr=0.1", "lr=0.2"]
    assert legend(plots.curves([a, a], "test_accuracy")) == ["results=1", "results=2"]
    figure = plots.curves({"mine": a, "theirs": a}, "test_accuracy")
    assert legend(figure) == ["mine", "theirs"]
    assert [list(line.get_ydata()) for line in figure.axes[0].get_lines()] == [[0.1, 0.5]] * 2
    plots.response([a, b], "test_accuracy")
    assert joined([a]) == a
    for wrong in ([], [a, 3], {}):
        with pytest.raises(ValueError, match=r"results must be fs\.Results"):
            plots.curves(wrong, "test_accuracy")


def test_the_best_is_by_validation_where_there_is_one():
    def scored(lr, **columns):
        return Run({"lr": lr}, 0, {k: np.array([x]) for k, x in columns.items()}, {}, 1)

    losses = Results((scored(0.1, test_loss=0.5), scored(0.2, test_loss=0.3)))
    assert (losses.score, losses.best().configuration) == ("test_loss", {"lr": 0.2})
    assert losses.best(lowest=False).configuration == {"lr": 0.1}
    both = Results(
        (
            scored(0.1, test_accuracy=0.8, validation_accuracy=0.7),
            scored(0.2, test_accuracy=0.9, validation_accuracy=0.6),
        )
    )
    assert (both.score, both.best().configuration) == ("validation_accuracy", {"lr": 0.1})
    assert both.best("test_accuracy").configuration == {"lr": 0.2}
    with pytest.raises(ValueError, match="no metric was measured"):
        Results((Run({}, 0, {}, {}, 1),)).best()


def test_what_has_no_name_does_not_join_what_has_one():
    """A run without hyper-parameters would be a line, and a row, without a name."""

    def runs(configuration, seed):
        return Results((Run(configuration, seed, {}, {"error": 0.5}, 1),))

    unnamed, named = runs({}, 0), runs({"lr": 0.1}, 0)
    for a, b in ((unnamed, named), (named, unnamed)):
        with pytest.raises(ValueError, match=r"or none; got runs without any beside \{'lr': 0.1\}"):
            a + b
        assert all(run.configuration for run in joined([a, b]).runs)
    assert len((unnamed + runs({}, 1)).mean("error")) == 1  # one configuration, two seeds
    other = unnamed.labelled(lr=0.2)
    assert [run.configuration for run in sum([named, other]).runs] == [{"lr": 0.1}, {"lr": 0.2}]
