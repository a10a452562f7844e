"""Asynchronous algorithms: the factors of staleness, whole runs of them, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import SIZES, linear_loss, several_models, zeros

K, LOCAL = len(SIZES), fs.LocalTraining(1, 4)
FEDAVG = fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL)
CLOCK = fs.clocks.lognormal(jax.random.key(1), K)


def test_factors_of_staleness():
    ages = jnp.array([0.0, 1.0, 4.0, 8.0])
    assert fs.asynchronous.constant()(ages).tolist() == [1, 1, 1, 1]
    np.testing.assert_allclose(fs.asynchronous.polynomial(2.0)(ages), [1, 1 / 4, 1 / 25, 1 / 81])
    np.testing.assert_allclose(fs.asynchronous.hinge(10, 4)(ages), [1, 1, 1, 1 / 41])
    default = fs.asynchronous.fedbuff(FEDAVG, 2, 4, CLOCK).asynchrony.staleness
    np.testing.assert_allclose(default(ages), (1 + ages) ** -0.5, rtol=1e-6)
    mixed = fs.asynchronous.fedasync(FEDAVG, 4, CLOCK, alpha=0.3, staleness=1.0).asynchrony
    np.testing.assert_allclose(mixed.staleness(ages), 0.3 / (1 + ages), rtol=1e-6)


def experiment(data, lr=0.05, staleness=0.5, speed=1.0, rounds=6):
    algorithm = fs.asynchronous.fedbuff(
        fs.fedavg(linear_loss, optax.sgd(lr), LOCAL),
        2,
        5,
        fs.clocks.lognormal(jax.random.key(1), K, step_seconds=speed),
        staleness,
    )
    return fs.Experiment(
        algorithm,
        zeros(),
        data,
        fs.sampling.uniform(5),
        rounds,
        execution=fs.execution.vmapped(),
        evaluate=lambda params: {"b": params["b"]},
    )


@pytest.fixture(scope="module")
def whole(data):
    return fs.simulate(experiment(data), 0)


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(data, whole, tmp_path):
    fs.simulate(experiment(data, rounds=3), 0, out=tmp_path)
    with pytest.raises(ValueError, match="algorithm"):
        fs.simulate(experiment(data, staleness=0.7), 0, out=tmp_path, resume=True)
    resumed = fs.simulate(experiment(data), 0, out=tmp_path, resume=True)
    parts = [(x.state, x.history) for x in (whole, resumed)]
    for a, b in zip(*map(jax.tree.leaves, parts), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert np.all(np.asarray(whole.history.rounds.seconds) > 0)


@pytest.mark.slow
def test_a_sweep_traces_its_numbers(data, whole):
    """Rates, exponents and speeds in one compilation, each as on its own."""
    traces = []

    def make(lr, staleness, speed):
        traces.append(lr)
        return experiment(data, lr, staleness, speed)

    grid = fs.grid.product(lr=[0.05, 0.02], staleness=[0.5, 0.0], speed=[1.0, 2.0])
    results = fs.sweep(make, grid, [0])
    assert len(results.runs) == 8
    assert sum(isinstance(lr, jax.core.Tracer) for lr in traces) == 3  # checked, and traced twice
    rows = {tuple(run.configuration.values()): run.rounds for run in results.runs}
    first = rows[0.05, 0.5, 1.0]
    np.testing.assert_allclose(first["b"], whole.history.evaluation["b"], rtol=1e-4, atol=1e-6)
    seconds = np.cumsum(whole.history.rounds.seconds)
    np.testing.assert_allclose(first["seconds"], seconds, rtol=1e-5)
    np.testing.assert_allclose(rows[0.05, 0.5, 2.0]["seconds"], 2 * seconds, rtol=1e-5)
    ages = whole.history.rounds.staleness
    np.testing.assert_allclose(first["staleness_mean"], ages["mean"], rtol=1e-6)
    np.testing.assert_allclose(first["staleness_max"], ages["max"], rtol=1e-6)
    assert not np.allclose(rows[0.05, 0.0, 1.0]["b"], first["b"])


BUFF = fs.asynchronous.fedbuff
AROUND = {
    "compressed": lambda a: fs.compression.compressed(a, fs.compression.top_k(0.5)),
    "partial": lambda a: fs.partial(a, "b"),
    "local": lambda a: fs.privacy.local(a, clip=1.0, noise_multiplier=1.0),
}
PRIVATE = fs.privacy.central(FEDAVG, clip=1.0, noise_multiplier=1.0, expected_cohort=2)
REFUSED = {
    "buffer must be at most concurrency": lambda: BUFF(FEDAVG, 5, 4, CLOCK),
    "buffer must be a whole number": lambda: BUFF(FEDAVG, 0, 4, CLOCK),
    "concurrency must be at most K": lambda: BUFF(FEDAVG, 2, K + 1, CLOCK),
    "clock must be an fs.Clock": lambda: BUFF(FEDAVG, 2, 4, None),
    "clock.step_seconds must be": lambda: BUFF(FEDAVG, 2, 4, fs.Clock(-CLOCK.up, *CLOCK[1:])),
    "staleness must be finite and at least 0": lambda: BUFF(FEDAVG, 2, 4, CLOCK, -1.0),
    "staleness must be a function .* call it": lambda: BUFF(
        FEDAVG, 2, 4, CLOCK, fs.asynchronous.hinge
    ),
    "alpha must be finite and in": lambda: fs.asynchronous.fedasync(FEDAVG, 4, CLOCK, alpha=0.0),
    "one exchange in a round": lambda: BUFF(fs.mime(linear_loss, 0.1, LOCAL), 2, 4, CLOCK),
    "acts in every round": lambda: BUFF(PRIVATE, 2, 4, CLOCK),
    "asynchronous already": lambda: BUFF(BUFF(FEDAVG, 2, 4, CLOCK), 2, 4, CLOCK),
    "send the difference of two models": lambda: fs.asynchronous.fedasync(
        fs.fedsgd(linear_loss, optax.sgd(0.1)), 4, CLOCK
    ),
    "takes? the rule as it is": lambda: BUFF(feddf(), 2, 4, CLOCK),
}


def feddf():
    loss_fn = fs.models.cross_entropy(fs.models.logistic_regression((2,), 3).apply)
    unlabelled = {"x": np.zeros((8, 2), np.float32)}
    return fs.feddf(loss_fn, optax.sgd(0.1), LOCAL, unlabelled, steps=5, lr=1e-3)


@pytest.mark.parametrize("name", ["compressed", "local"])
def test_a_gradient_is_no_difference_of_models_whatever_is_around_it(name):
    fedsgd = AROUND[name](fs.fedsgd(linear_loss, optax.sgd(0.1)))
    with pytest.raises(ValueError, match="one whose clients send a gradient"):
        fs.asynchronous.fedasync(fedsgd, 4, CLOCK)
    BUFF(fedsgd, 2, 4, CLOCK)
    with pytest.raises(ValueError, match="those of this one send one gradient"):
        fs.partial(fs.privacy.local(fs.fedsgd(linear_loss, optax.sgd(0.1)), 1.0, 1.0), "b")


@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.slow) for x in AROUND])
def test_what_is_around_it_may_be_inside_of_it(data, name):
    results = []
    for algorithm in (
        AROUND[name](BUFF(FEDAVG, 2, 4, CLOCK)),
        BUFF(AROUND[name](FEDAVG), 2, 4, CLOCK),
    ):
        experiment = fs.Experiment(algorithm, zeros(), data, fs.sampling.everyone(), 3)
        results.append(experiment.run(jax.random.key(0))[0].params)
    for around, inside in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(around, inside)


@pytest.mark.parametrize(
    "private",
    [
        lambda a: fs.privacy.central(a, 1.0, 1.0, expected_cohort=2),
        lambda a: fs.privacy.adaptive_clipping(a, 0.1, expected_cohort=2),
    ],
    ids=["central", "adaptive"],
)
def test_privacy_of_drawn_cohorts_is_refused_around_it(private):
    with pytest.raises(ValueError, match="its budget is of cohorts drawn at random"):
        private(BUFF(FEDAVG, 2, 4, CLOCK))


@pytest.mark.parametrize("message", REFUSED)
def test_it_refuses_when_built(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_it_refuses_when_it_is_begun(data):
    buffered = BUFF(FEDAVG, 2, 4, CLOCK)
    with pytest.raises(ValueError, match=r"no inclusion probabilities .* unbiased"):
        fs.make_round(buffered, fs.aggregation.unbiased)
    with pytest.raises(ValueError, match="clock must be None"):
        fs.make_round(buffered, clock=CLOCK)
    with pytest.raises(ValueError, match="acts in every round"):
        fs.make_round(buffered._replace(acts_when_empty=True))
    mixed = fs.asynchronous.fedasync(fs.ifca(linear_loss, optax.sgd(0.1), LOCAL, 2), 4, CLOCK)
    with pytest.raises(ValueError, match="its update has leaves"):
        fs.init(mixed, several_models(), data)
    given = experiment(data)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"at least as many clients .*uniform\(5\)"):
        given._replace(sampler=fs.sampling.uniform(4)).run(key)
    with pytest.raises(ValueError, match="must not draw with replacement"):
        given._replace(sampler=fs.sampling.with_replacement(5)).run(key)
    of_others = given._replace(algorithm=BUFF(FEDAVG, 2, 5, fs.clocks.equal(K + 1)))
    with pytest.raises(ValueError, match=r"clock.step_seconds must have shape \(8,\)"):
        of_others.run(key)
    with pytest.raises(ValueError, match="results of 4 clients in training; it holds those of 5"):
        fs.make_round(buffered)(key, given.start(key), data, fs.Cohort(jnp.arange(5)))
    with pytest.raises(ValueError, match="results of 0 clients in training; it holds those of 5"):
        fs.make_round(FEDAVG)(key, given.start(key), data, fs.Cohort(jnp.arange(5)))
    with_one_factor = given._replace(algorithm=BUFF(FEDAVG, 2, 5, CLOCK, lambda x: 1.0))
    with pytest.raises(ValueError, match="staleness must return a factor for each of 2"):
        with_one_factor.run(key)
    with pytest.raises(ValueError, match="must not be asynchronous"):
        fs.baselines.centralised(given)
