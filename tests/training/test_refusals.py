"""What users hand in, function or count, is checked where it is handed in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core.checks import check_count, check_takes
from fedjax_sim.sweeps.checks import check_labels
from tests.conftest import MESH, linear_loss, zeros

KEY = jax.random.key(0)


@pytest.mark.parametrize("more", [False, True], ids=["too few", "too many"])
@pytest.mark.parametrize(
    ("name", "takes", "hand_in"),
    [
        ("aggregation", 3, lambda f, e: fs.make_round(e.algorithm, aggregation=f)),
        ("execution", 7, lambda f, e: fs.make_round(e.algorithm, execution=f)),
        ("inner", 7, lambda f, e: fs.execution.sharded(MESH, f)),
        ("draw", 2, lambda f, e: fs.sampling.custom(2, f)),
        (
            "loss_fn",
            3,
            lambda f, e: fs.init(fs.fedavg(f, optax.sgd(1.0), fs.LocalTraining()), zeros(), e.data),
        ),
        ("client_optimizer", 1, lambda f, e: fs.fedavg(linear_loss, f, fs.LocalTraining())),
        ("metric_fn", 3, lambda f, e: fs.evaluate(f, zeros(), e.data)),
        ("metric_fn", 3, lambda f, e: fs.evaluator(f, e.data)),
        ("metric_fn", 3, lambda f, e: fs.baselines.evaluate_local(f, zeros(), e.data)),
        ("params", 1, lambda f, e: e._replace(params=f).check(KEY)),
        ("evaluate", 1, lambda f, e: e._replace(evaluate=f).check(KEY)),
        ("round_fn", 4, lambda f, e: fs.run(f, KEY, e.start(KEY), e.data, e.sampler, 1)),
        (
            "evaluate",
            1,
            lambda f, e: fs.run(e.round_fn, KEY, e.start(KEY), e.data, e.sampler, 1, evaluate=f),
        ),
        (
            "sampler.sample",
            3,
            lambda f, e: e._replace(sampler=e.sampler._replace(sample=f)).check(KEY),
        ),
        ("stop", 1, lambda f, e: fs.simulate(e, KEY, stop=f)),
        ("on_progress", 1, lambda f, e: fs.simulate(e, KEY, on_progress=f)),
        ("on_progress", 1, lambda f, e: fs.sweep(lambda lr: e, {"lr": [0.1]}, [0], on_progress=f)),
    ],
)
def test_a_function_of_other_arguments_is_refused_by_name(data, name, takes, hand_in, more):
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.1), fs.LocalTraining())
    experiment = fs.Experiment(algorithm, zeros(), data, fs.sampling.uniform(2), num_rounds=1)
    number = takes + (1 if more else -1)
    function = eval(f"lambda {', '.join(f'a{i}' for i in range(number))}: None")
    with pytest.raises(ValueError, match=rf"^{name} must take \("):
        hand_in(function, experiment)


def test_functions_that_can_be_called_so_are_taken():
    for function in (
        lambda cohort, *rest: None,
        lambda cohort, client_weights, all_client_weights, power=1: None,
        functools.partial(lambda power, *weights: None, 2),
        functools.partial(lambda a, b, c, power: None, power=2),
        max,  # does not say what it takes
    ):
        check_takes("aggregation", function, "cohort", "client_weights", "all_client_weights")


COUNTS = st.integers(1, 2**31 - 1)
KINDS = st.sampled_from([int, np.int32, np.int64, np.uint32, np.uint64])


@given(count=COUNTS, kind=KINDS)
def test_a_count_is_an_integer_of_python_wherever_it_came_from(count, kind):
    """NumPy's would widen what it is multiplied with, under x64 alone."""
    assert type(check_count("count", kind(count))) is int
    local = fs.LocalTraining(epochs=kind(count), batch_size=kind(count))
    held = [
        fs.fedavg(linear_loss, optax.sgd(0.1), local).local,
        fs.fedprox(linear_loss, optax.sgd(0.1), local, 0.1).local,
        fs.scaffold(linear_loss, 0.1, local).local,
    ]
    for given_local in held:
        assert given_local == fs.LocalTraining(count, count)
        assert type(given_local.epochs) is type(given_local.batch_size) is int
    for sampler in (fs.sampling.uniform, fs.sampling.weighted, fs.sampling.with_replacement):
        assert type(sampler(kind(count)).size) is int
    assert type(fs.sampling.bernoulli(0.5, kind(count)).size) is int
    assert type(fs.execution.packed(kind(count)).lanes) is int


def test_counts_of_numpy_under_x64_in_every_strategy():
    with jax.enable_x64(True):
        data = fs.FederatedData.from_clients([np.ones(n, np.float32) for n in (3, 2)])
        local = fs.LocalTraining(epochs=np.int64(2), batch_size=np.int64(2))
        algorithm = fs.fedavg(lambda w, batch, key: (batch - w) ** 2, optax.sgd(0.1), local)
        handmade = algorithm._replace(local=local)  # as `_replace` leaves it
        state = fs.init(algorithm, np.float32(0.0), data)
        for strategy in (fs.execution.packed(np.int64(1)), fs.execution.vmapped()):
            round_fn = fs.make_round(handmade, execution=strategy)
            _, metrics = jax.eval_shape(round_fn, KEY, state, data, fs.Cohort(jnp.arange(2)))
            assert metrics.client_steps.dtype == jnp.int32


@pytest.mark.parametrize("values", [[True, 0.1], [0.1, False], [1, True], [np.True_, 2.0]])
def test_an_axis_of_booleans_and_numbers_is_refused(values):
    with pytest.raises(ValueError, match=r"lr must have booleans or numbers, not both; got "):
        check_labels(fs.grid.product(lr=values), opaque=False)
    check_labels(fs.grid.product(shuffle=[True, False], lr=[0.1, 1], rule=[None, 0.1]), False)
