"""Simulated seconds of a round, and deadlines, against numbers computed client by client."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import SIZES, linear_loss, zeros

K = len(SIZES)  # (5, 12, 0, 1, 7, 23, 3, 9)
KEY = jax.random.key(0)
LOCAL = fs.LocalTraining(epochs=2, batch_size=4)
STEPS = np.array([2 * -(-n // 4) for n in SIZES])  # 4, 6, 0, 2, 4, 12, 2, 6
CLOCK = fs.clocks.given(
    [1.0, 0.5, 9.0, 3.0, 2.0, 0.25, 4.0, 0.0], down=[8.0] * 4 + [np.inf] * 4, up=[4.0] * K
)
BYTES = 20  # of four weights and a bias, down as up
TRAVEL = np.array([BYTES / 8 + BYTES / 4] * 4 + [BYTES / 4] * 4)
SECONDS = TRAVEL + STEPS * np.array([1.0, 0.5, 9.0, 3.0, 2.0, 0.25, 4.0, 0.0])
# 11.5, 10.5, -, 13.5, 13, 8, 13, 5


@pytest.fixture(scope="module")
def one_round(data):
    """Cohort -> (state, metrics), of FedAvg under the clock, compiled once for each structure."""
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL)
    round_fn = jax.jit(fs.make_round(algorithm, execution=fs.execution.packed(2), clock=CLOCK))
    start = fs.init(algorithm, zeros(), data)
    return lambda cohort: round_fn(KEY, start, data, cohort)


def cohort_of(ids, slots=6, **fields):
    """A cohort of six slots, of two structures alone, so that two rounds are compiled."""
    defaults = {"mask": True, "reports": True, "work": np.float32(1)}
    if "deadline" in fields:
        defaults |= {"deadline": np.float32(1), "partial": False}
    padding = slots - len(ids)
    arrays = {}
    for name, default in defaults.items():
        values = np.broadcast_to(np.asarray(fields.get(name, default)), len(ids))
        pad = False if name == "mask" else np.ones(1, values.dtype)[0]
        arrays[name] = jnp.asarray(np.concatenate([values, np.full(padding, pad, values.dtype)]))
    return fs.Cohort(jnp.array([*ids, *[0] * padding]), **arrays)


def waited(ids, deadline, reports=True):
    """What the server waits, by the definition: for a client that has no step to do, nothing."""
    times = []
    for k, answers in zip(ids, np.broadcast_to(reports, len(ids)), strict=True):
        if not answers:
            times.append(0.0 if deadline is None else deadline)
        elif STEPS[k]:
            times.append(SECONDS[k] if deadline is None else min(SECONDS[k], deadline))
    return max(times, default=0.0)


@pytest.mark.parametrize("ids", [[0, 1, 5, 7], [7, 7, 7, 7], [2, 2, 2, 2], [2, 3, 6, 4]])
def test_a_round_takes_as_long_as_its_slowest_client(one_round, ids):
    everyone = np.ones(4, bool)
    for mask in (everyone, everyone & (np.arange(4) < 2)):
        for reports in (everyone, np.array([False, True, True, True])):
            _, metrics = one_round(cohort_of(ids, mask=mask, reports=reports))
            given = np.array(ids)[mask]
            expected = waited(given[reports[mask]], None)
            np.testing.assert_allclose(metrics.seconds, expected, rtol=1e-6)


@pytest.mark.parametrize("deadline", [5.0, 10.5, 11.5, 13.0, 100.0, np.inf])
def test_the_late_are_dropped_and_the_server_waits_no_longer(one_round, deadline):
    ids = [0, 1, 3, 4, 5, 7]
    _, metrics = one_round(cohort_of(ids, deadline=np.float32(deadline)))
    in_time = [k for k in ids if SECONDS[k] <= deadline]
    assert int(metrics.reporting) == len(in_time)
    assert int(metrics.client_steps) == STEPS[in_time].sum()
    assert int(metrics.receivers) == 6
    np.testing.assert_allclose(metrics.seconds, waited(ids, deadline), rtol=1e-6)


def test_who_is_dropped_for_the_deadline_is_as_a_dropout(one_round):
    ids = [0, 1, 3, 4, 5, 7]
    late, _ = one_round(cohort_of(ids, deadline=np.float32(12)))
    dropped, metrics = one_round(cohort_of(ids, reports=SECONDS[ids] <= 12))
    jax.tree.map(np.testing.assert_array_equal, late, dropped)
    np.testing.assert_allclose(metrics.seconds, 11.5)


def test_a_dropout_is_waited_for_until_the_deadline(one_round):
    cohort = cohort_of([5, 7], reports=[True, False], deadline=np.float32(12))
    assert float(one_round(cohort)[1].seconds) == 12.0
    cohort = cohort._replace(deadline=np.full(6, np.inf, np.float32))
    assert float(one_round(cohort)[1].seconds) == 8.0


@pytest.mark.parametrize("deadline", [5.0, 8.0, 10.5, 12.9, 13.0])
def test_partial_work_is_the_whole_steps_that_fit(one_round, deadline):
    ids = [0, 1, 3, 4, 5, 7]
    cohort = cohort_of(ids, deadline=np.float32(deadline), partial=True)
    _, metrics = one_round(cohort)
    steps = []
    for k in ids:
        left, a_step = deadline - TRAVEL[k], float(CLOCK.step_seconds[k])
        fit = STEPS[k] if a_step == 0 else int(np.floor(left / a_step + 1e-9))
        steps.append(min(STEPS[k], max(fit, 0)) if left >= 0 else 0)
    assert int(metrics.client_steps) == sum(steps)
    assert int(metrics.reporting) == np.count_nonzero(steps)
    expected = max(
        TRAVEL[k] + s * float(CLOCK.step_seconds[k]) if s else deadline
        for k, s in zip(ids, steps, strict=True)
    )
    np.testing.assert_allclose(metrics.seconds, expected, rtol=1e-6)


def test_partial_work_is_a_stragglers(one_round):
    """A late client's model is that of `work` set to the share by hand; one may stay whole."""
    ids, deadline = [0, 3, 4], np.float32(10)
    partial, metrics = one_round(
        cohort_of(ids, deadline=deadline, partial=[True, True, False], work=np.float32([1, 1, 0.5]))
    )
    # Client 0 has 2.5 s for steps of 1 s, of four; client 3 does not end its first of two, which
    # takes 3 s; client 4, of no partial work, has half of its four steps to do, in 9 s.
    by_hand, by_hand_metrics = one_round(cohort_of(ids, work=np.float32([0.5, 0, 0.5])))
    jax.tree.map(np.testing.assert_array_equal, partial.params, by_hand.params)
    assert int(metrics.client_steps) == int(by_hand_metrics.client_steps) == 4
    assert float(metrics.seconds) == 10.0


def test_all_exchanges_of_a_round_take_time(data):
    """Mime: a pass over the client's examples for its gradient, and then its local steps."""
    algorithm = fs.mime(linear_loss, 0.05, LOCAL)
    clock = fs.clocks.equal(K, step_seconds=2.0, bandwidth=10.0)
    start = fs.init(algorithm, zeros(), data)
    exchange = fs.communication(algorithm, zeros(), data)
    earlier = algorithm.earlier[0].local
    assert earlier.batch_size is None
    assert earlier.epochs == 1
    round_fn = jax.jit(fs.make_round(algorithm, execution=fs.execution.packed(1), clock=clock))
    _, metrics = round_fn(KEY, start, data, cohort_of([0, 1], 2, deadline=np.float32(np.inf)))
    travel = (exchange.down + exchange.up) / 10
    np.testing.assert_allclose(metrics.seconds, travel + 2 * (STEPS[1] + 1), rtol=1e-6)
    late = cohort_of([0, 1], 2, deadline=np.float32(travel + 2 * 5))
    _, metrics = round_fn(KEY, start, data, late)
    assert int(metrics.client_steps) == STEPS[0] + 1  # client 0 has 4 + 1 steps, client 1 has 6 + 1
    assert int(metrics.reporting) == 1
    partial = late._replace(partial=jnp.ones(2, bool))
    _, metrics = round_fn(KEY, start, data, partial)
    assert int(metrics.reporting) == 2
    np.testing.assert_allclose(metrics.seconds, travel + 2 * 5, rtol=1e-6)


def test_seconds_add_up_in_results(data):
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL)
    experiment = fs.Experiment(algorithm, zeros(), data, fs.sampling.everyone(), 3, clock=CLOCK)
    simulation = fs.simulate(experiment, KEY)
    assert simulation.history.rounds.seconds.shape == (3,)
    results = simulation.results()
    np.testing.assert_allclose(results.runs[0].rounds["seconds"], [13.5, 27.0, 40.5], rtol=1e-6)
    np.testing.assert_allclose(results.table()[0]["seconds"], 40.5, rtol=1e-6)
    assert results.long()[1]["seconds"] == results.runs[0].rounds["seconds"][1]
    assert "seconds" not in results.metrics
    without = fs.simulate(experiment._replace(clock=None), KEY)
    assert without.history.rounds.seconds == ()
    assert "seconds" not in without.results().long()[0]
    jax.tree.map(np.testing.assert_array_equal, simulation.state, without.state)


def test_a_sweep_traces_the_clock(data):
    def experiment(speed_spread):
        clock = fs.clocks.lognormal(jax.random.key(7), K, 0.5, speed_spread, 1000.0)
        algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL)
        return fs.Experiment(algorithm, zeros(), data, fs.sampling.everyone(), 2, clock=clock)

    results = fs.sweep(experiment, {"speed_spread": [0.0, 1.0]}, [0])
    for row, spread in zip(results.table(), (0.0, 1.0), strict=True):
        clock = fs.clocks.lognormal(jax.random.key(7), K, 0.5, spread, 1000.0)
        seconds = 2 * BYTES / 1000 + STEPS * np.asarray(clock.step_seconds)
        np.testing.assert_allclose(row["seconds"], 2 * seconds[STEPS > 0].max(), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"deadline": np.zeros(2, np.float32)}, r"cohort\.deadline must be positive; got 0\.0"),
        ({"deadline": np.ones(3, np.float32)}, r"cohort\.deadline must have shape \(2,\)"),
        ({"partial": np.ones(2, bool)}, r"cohort\.partial must come with cohort\.deadline"),
    ],
)
def test_what_is_no_deadline_is_refused(data, fields, says):
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL)
    round_fn = fs.make_round(algorithm, clock=CLOCK)
    cohort = fs.Cohort(jnp.array([0, 1]), **fields)
    with pytest.raises(ValueError, match=says):
        round_fn(KEY, fs.init(algorithm, zeros(), data), data, cohort)


def test_clocks_are_refused_by_name(data):
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL)
    state, late = fs.init(algorithm, zeros(), data), cohort_of([0], deadline=np.float32(3))
    with pytest.raises(ValueError, match=r"clock must be given where the cohort has a deadline"):
        fs.make_round(algorithm)(KEY, state, data, late)
    with pytest.raises(ValueError, match=r"clock must be an fs\.Clock.*got lognormal"):
        fs.make_round(algorithm, clock=fs.clocks.lognormal)
    small = fs.clocks.equal(3)
    with pytest.raises(ValueError, match=r"clock\.step_seconds must have shape \(8,\).*got \(3,\)"):
        fs.make_round(algorithm, clock=small)(KEY, state, data, cohort_of([0]))
    experiment = fs.Experiment(algorithm, zeros(), data, fs.sampling.everyone(), 3, clock=small)
    with pytest.raises(ValueError, match=r"clock\.step_seconds must have shape \(8,\).*got \(3,\)"):
        fs.simulate(experiment, KEY)
