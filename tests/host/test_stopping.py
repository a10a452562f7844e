"""Longer runs and criteria to stop by: the bits of one run, however it was put together."""

import json
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core.history import RoundMetrics
from fedjax_sim.host.stopping import as_stop, replay
from tests.conftest import linear_loss, zeros
from tests.helpers import killed
from tests.host.test_simulate import same, stopping

KEY = jax.random.key(5)
DATA = killed.federation()


def run(rounds, every=7, **options):
    """Of a model that grows, by programs that compile in no time."""

    def loss(params, batch, key):
        return jnp.sum((params["w"][None] - 3 - 0.01 * batch["x"]) ** 2, -1) + params["b"] ** 2

    algorithm = fs.fedavg(loss, optax.sgd(0.05), fs.LocalTraining(1, None))
    experiment = fs.Experiment(
        algorithm,
        zeros(),
        DATA,
        fs.sampling.bernoulli(0.7),
        rounds,
        execution=fs.execution.vmapped(),
        evaluate=lambda params: {"b": params["b"], "norm": jnp.sum(params["w"] ** 2)},
        evaluate_every=every,
    )
    return fs.simulate(experiment, KEY, **options)


@cache
def in_one_go(rounds, every=7):
    """A run that nothing cuts, of which several tests have the bits."""
    return run(rounds, every)


@pytest.mark.slow
@settings(max_examples=6)
@given(st.data())
def test_more_rounds_are_one_longer_run(tmp_path_factory, draw):
    """Finished or interrupted, in any chunks, from any R to any more."""
    every = draw.draw(st.sampled_from([1, 3]), "evaluate_every")
    number = st.sampled_from([1, 4, 9, 14])  # few, each a program of its own
    rounds = draw.draw(st.lists(number, min_size=2, max_size=3, unique=True), "R")
    ends = draw.draw(st.integers(1, 14), "interrupted after")
    chunks = draw.draw(st.sampled_from([1, 4, None]), "checkpoint_every")
    out = tmp_path_factory.mktemp("longer")
    *fewer, most = sorted(rounds)
    for number in fewer:
        run(
            number, every, out=out, resume=True, checkpoint_every=chunks, on_progress=stopping(ends)
        )
    same(run(most, every, out=out, resume=True, checkpoint_every=chunks), in_one_go(most, every))


def test_what_cannot_have_other_rounds(tmp_path):
    run(10, out=tmp_path)
    with pytest.raises(
        ValueError, match=r"num_rounds must be at least the 10 that are done in out .*; got 8"
    ):
        run(8, out=tmp_path, resume=True)
    path = tmp_path / "experiment.json"
    kept = path.read_text()
    path.write_text(json.dumps({k: v for k, v in json.loads(kept).items() if k != "program"}))
    with pytest.raises(ValueError, match="not known whether anything in it depends on the number"):
        run(12, out=tmp_path, resume=True)
    path.write_text(kept)
    run(20, out=tmp_path, resume=True, checkpoint_every=15, on_progress=stopping(15))
    with pytest.raises(
        ValueError, match=r"more than the 15 that are done .*without the evaluation that a last"
    ):
        run(15, out=tmp_path, resume=True)
    same(
        run(17, out=tmp_path, resume=True), in_one_go(17)
    )  # fewer than it was to have, more than done


def test_a_schedule_of_all_rounds_is_refused(data, tmp_path):
    def decaying(rounds, span):
        rate = optax.linear_schedule(0.05, 0.0, span)
        algorithm = fs.fedavg(linear_loss, lambda t: optax.sgd(rate(t)), fs.LocalTraining(1, 4))
        return fs.Experiment(algorithm, zeros(), data, fs.sampling.uniform(4), rounds)

    fs.simulate(decaying(3, 3), KEY, out=tmp_path)
    with pytest.raises(
        ValueError,
        match=r"num_rounds is 3 there and 5 here; .*the algorithm .* "
        "differs.* More rounds need all else to be as it was",
    ):
        fs.simulate(decaying(5, 5), KEY, out=tmp_path, resume=True)
    longer = fs.simulate(decaying(5, 3), KEY, out=tmp_path, resume=True)
    same(longer, fs.simulate(decaying(5, 3), KEY))


def test_a_criterion_met_by_the_last_evaluation_alone_is_not_met_by_a_longer_run(tmp_path):
    whole = in_one_go(21)
    norm = in_one_go(10).history.evaluation["norm"]
    rising = np.nanmax(norm[:9]) < norm[9] < whole.history.evaluation["norm"][13]
    stop = fs.reaches("norm", float(norm[9]))
    assert rising
    assert run(10, out=tmp_path, stop=stop).status == "stopped"  # at its very last round
    longer = run(21, out=tmp_path, resume=True, stop=stop)
    assert (longer.status, int(longer.state.round)) == ("stopped", 14)
    same(longer, run(21, stop=stop))


def test_another_criterion_goes_on_to_the_bits_of_one_run(tmp_path):
    norms = in_one_go(28).history.evaluation["norm"][6::7]
    assert np.all(np.diff(norms) > 0)
    early, late, later = (fs.reaches("norm", float(x)) for x in norms[[0, 1, 2]])
    assert int(run(28, out=tmp_path, stop=late).state.round) == 14
    with pytest.raises(ValueError, match=r"stop is .* there and .* here, which round 7 of the 14"):
        run(28, out=tmp_path, resume=True, stop=early)
    harder = run(28, out=tmp_path, resume=True, stop=later)
    same(harder, run(28, stop=later))
    assert (harder.status, int(harder.state.round)) == ("stopped", 21)
    same(run(28, out=tmp_path, resume=True), in_one_go(28))  # and none at all


def rows(values, evaluated=None):
    """The history of a run that was measured so, a value a round."""
    values = np.asarray(values, np.float32)
    evaluated = np.ones(len(values), bool) if evaluated is None else np.asarray(evaluated)
    nothing = np.zeros(len(values), np.int32)
    metrics = RoundMetrics({"loss": values}, *[nothing] * (len(RoundMetrics._fields) - 1))
    shown = np.where(evaluated, values, np.nan).astype(np.float32)
    return fs.History(metrics, {"test_loss": shown, "test_accuracy": -shown}, evaluated)


def first_met(stop, history):
    met = REPLAYS[stop](history) if isinstance(stop, str) else replay(as_stop(stop), history)
    met = np.flatnonzero(met[1])
    return int(met[0]) + 1 if len(met) else None


def waited(values, num, delta):
    """By hand: the evaluation after which `num` in a row were no better."""
    best, count = np.float32(np.inf), 0
    for number, value in enumerate(np.asarray(values, np.float32), 1):
        if value < best - np.float32(delta):
            best, count = value, 0
        else:
            count += 1
        if count >= num:
            return number
    return None


ROUNDS = 12


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, np.nan]), min_size=ROUNDS, max_size=ROUNDS),
    st.lists(st.booleans(), min_size=ROUNDS, max_size=ROUNDS),
)
@settings(max_examples=60)
def test_patience_by_hand(values, evaluated):
    history, values = rows(values, evaluated), np.asarray(values)
    at = np.flatnonzero(evaluated) + 1
    for name, delta in (("test_loss", 0.0), ("test_accuracy", 0.5)):
        expected = waited(values[evaluated] if len(at) else [], 2, delta)
        found = first_met(name, history)
        assert found == (None if expected is None else at[expected - 1])
    known = np.flatnonzero(~np.isnan(values)) + 1
    expected = waited(values[known - 1], 2, 0.0)
    assert first_met("train_loss", history) == (None if expected is None else known[expected - 1])


PATIENT = {
    "test_loss": fs.patience("test_loss", 2),
    "test_accuracy": fs.patience("test_accuracy", 2, min_delta=0.5),
    "train_loss": fs.patience("train_loss", 2),
}
REPLAYS = {name: jax.jit(partial(replay, stop)) for name, stop in PATIENT.items()}


def test_patience_is_carried_over_any_interrupt(tmp_path):
    """A count of evaluations and the best are the same wherever a run is cut."""
    stop = fs.any_of(fs.patience("norm", 3, min_delta=1.0), fs.reaches("b", 1e9))
    whole = run(60, every=2, stop=stop)
    done = int(whole.state.round)
    assert whole.status == "stopped"
    assert done > 8
    for end in (3, done - 1):
        out = tmp_path / str(end)
        part = run(60, every=2, stop=stop, out=out, checkpoint_every=end, on_progress=stopping(end))
        assert (part.status, int(part.state.round)) == ("interrupted", end)
        back = run(60, every=2, stop=stop, out=out, resume=True)
        assert back.status == "stopped"
        same(back, whole)


def test_what_remembers_is_read_and_not_counted_again(tmp_path):
    """An average of floats, whose order of sums another compilation may change."""

    def update(mean, row):
        mean = 0.9 * mean + 0.1 * row.rounds.train["loss"]
        return mean, row.evaluated & (mean < 0)

    stop = fs.Stop(0.0, update, "mean")
    part = run(20, every=2, stop=stop, out=tmp_path, checkpoint_every=5, on_progress=stopping(5))
    assert part.status == "interrupted"
    from fedjax_sim.host.checkpoints import Checkpoints

    saved = Checkpoints(tmp_path / "checkpoints").load()
    expected = np.float32(0)
    for loss in part.history.rounds.train["loss"]:
        expected = np.float32(0.9) * expected + np.float32(0.1) * loss
    np.testing.assert_allclose(saved.arrays["stop.0000"], expected, rtol=1e-5)
    same(run(20, every=2, stop=stop, out=tmp_path, resume=True), in_one_go(20, 2))


@pytest.mark.parametrize(
    ("name", "falling"),
    [
        ("test_loss", 1),
        ("clients_loss_mean", 1),
        ("clients_loss_worst_tenth", 1),
        ("clients_accuracy_std", 1),
        ("clients_accuracy_mean", 0),
        ("clients_loss_jain", 0),
    ],
)
def test_which_way_a_metric_is_better(name, falling):
    """A value that gets better every round ends no run by patience, and reaches a target once."""
    values = np.array([4.0, 3.0, 2.0, 1.0]) if falling else np.array([1.0, 2.0, 3.0, 4.0])

    def rows(value):
        return SimpleNamespace(
            evaluation={name: jnp.float32(value)},
            evaluated=jnp.array(True),
            rounds=SimpleNamespace(train={}),
        )

    stop, met = fs.patience(name, 1), []
    remembered = stop.init
    for value in values:
        remembered, ends = stop.update(remembered, rows(value))
        met.append(bool(ends))
    assert met == [False] * 4
    assert [bool(fs.reaches(name, 2.5)(rows(x))) for x in values] == [False, False, True, True]


def test_criteria_that_cannot_be():
    for stop, words in (
        (fs.reaches("acc", 1.0), "got 'acc', and it returns b, norm .clients report train_loss"),
        (fs.patience("acc", 1), "got 'acc', and it returns b, norm"),
        (3, "stop must be a function of a round's History"),
        ((), "any_of needs at least one criterion"),
        (lambda row: row.rounds.train["loss"], r"stop must return a Bool\[\]; got float32\[\]"),
        (fs.Stop(0.0, lambda m, row: ((m, m), row.evaluated)), "stop must keep the structure"),
    ):
        with pytest.raises(ValueError, match=words):
            run(2, stop=stop)
    for call, words in (
        (lambda: fs.patience("test_loss", 0), "evaluations must be .*at least 1; got 0"),
        (lambda: fs.patience("test_loss", 2.5), "evaluations must be .*got 2.5"),
        (lambda: fs.patience("test_loss", 2, min_delta=-1), "min_delta must be .*at least 0"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_several_criteria_end_at_the_first():
    values = [3.0, 2.0, 2.0, 2.0, 1.0]
    both = (fs.reaches("test_loss", 1.0), fs.patience("test_loss", 2))
    assert first_met(both, rows(values)) == 4
    assert first_met(fs.any_of(*both), rows([3.0, 2.0, 1.0, 1.0])) == 3
    assert first_met(fs.any_of(lambda row: jnp.array(False)), rows(values)) is None
