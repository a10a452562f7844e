"""How a metric spreads over clients, against NumPy; and what `evaluator` names it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.results.targets import rounds_to_target
from fedjax_sim.training.evaluation import client_statistics
from fedjax_sim.training.evaluator import evaluator

CLIENTS = st.lists(
    st.tuples(
        st.floats(-100, 100, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3),
        st.integers(0, 50),
        st.booleans(),
    ),
    min_size=1,
    max_size=25,
)


compiled_statistics = jax.jit(client_statistics, static_argnames="higher_is_better")


@given(clients=CLIENTS, higher_is_better=st.booleans())
def test_client_statistics_against_numpy(clients, higher_is_better):
    # Of two lengths, each of which compiles anew: the others are filled up by clients without
    # examples.
    clients = clients + [(0.0, 0, False)] * (0 if len(clients) == 1 else 25 - len(clients))
    values, weights, has = (np.array(x) for x in zip(*clients, strict=True))
    given_values = np.where(has, values, np.nan).astype(np.float32)  # as `evaluate` has it
    found = compiled_statistics(
        given_values, weights.astype(np.float32), has, higher_is_better=higher_is_better
    )
    v, w = values[has].astype(np.float64), weights[has]
    if not len(v):
        assert all(np.isnan(x) for x in found)
        return
    worst = np.sort(v) if higher_is_better else np.sort(v)[::-1]
    expected = {
        "mean": v.mean(),
        "weighted_mean": np.average(v, weights=w) if w.sum() else np.nan,
        "std": v.std(),
        "worst_tenth": worst[: int(np.ceil(len(v) / 10))].mean(),
        "p10": np.percentile(v, 10),
        "p50": np.median(v),
        "p90": np.percentile(v, 90),
        "jain": v.sum() ** 2 / (len(v) * (v**2).sum()) if v.any() else 1,
    }
    for name, value in found._asdict().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-3, err_msg=name)


def test_client_statistics_by_hand():
    """Twenty clients and one without examples: two are the worst tenth."""
    values = jnp.asarray([*range(1, 21), np.nan], jnp.float32)
    has = ~jnp.isnan(values)
    found = client_statistics(values, jnp.ones(21), has)
    assert float(found.worst_tenth) == (1 + 2) / 2
    assert float(found.p10) == pytest.approx(1 + 0.1 * 19)
    assert float(found.jain) == pytest.approx(210**2 / (20 * 2870))
    lower = client_statistics(values, jnp.ones(21), has, higher_is_better=False)
    assert float(lower.worst_tenth) == (19 + 20) / 2


def test_one_client_that_diverged_makes_all_statistics_nan():
    found = client_statistics(jnp.array([1.0, jnp.inf]), jnp.ones(2), jnp.ones(2, bool))
    assert all(np.isnan(x) for x in found)


def test_client_statistics_under_jit_and_refusals():
    v, w, has = jnp.array([1.0, 3.0]), jnp.array([3.0, 1.0]), jnp.ones(2, bool)
    assert float(jax.jit(client_statistics)(v, w, has).weighted_mean) == 1.5
    with pytest.raises(ValueError, match=r"must have shape \[K\]; got \(2,\), \(3,\) and \(2,\)"):
        client_statistics(v, jnp.ones(3), has)


def metrics(params, batch, key):
    return (batch - params) ** 2, {"above": (batch > params).astype(jnp.float32)}


@pytest.mark.parametrize("vmapped", [False, True])
def test_an_accuracy_is_the_nearest_number_to_its_quotient(vmapped):
    """So that 970 right of 1,000 reach 0.97."""
    places = np.arange(1000.0, dtype=np.float32)
    data = fs.FederatedData.from_clients([places, places[:7]])

    def metric_fn(right, batch, key):
        return -batch, {"accuracy": (batch < right).astype(jnp.float32)}

    def found(right):
        made = fs.evaluate(metric_fn, right, data, batch_size=512)
        return made.mean["accuracy"], made.clients["accuracy"]

    right = np.arange(1001, dtype=np.float32)
    mean, clients = jax.jit(jax.vmap(found) if vmapped else lambda x: jax.lax.map(found, x))(right)
    small = np.minimum(right, 7)
    np.testing.assert_array_equal(mean, (right + small) / np.float32(1007))
    np.testing.assert_array_equal(
        clients, np.stack([right / np.float32(1000), small / np.float32(7)], 1)
    )


def test_a_run_stops_with_the_round_that_meets_the_target_exactly():
    data = fs.FederatedData.from_clients([np.zeros(4, np.float32)])
    test = fs.FederatedData.from_clients([np.arange(10_000, dtype=np.float32)])
    right = jnp.array([9699.0, 9700.0, 9701.0])  # after each round

    def evaluate(params):
        def metric_fn(params, batch, key):
            return batch, {"accuracy": (batch < right[params.astype(int) - 1]).astype(jnp.float32)}

        return {"accuracy": fs.evaluate(metric_fn, params, test).mean["accuracy"]}

    algorithm = fs.fedavg(lambda w, batch, key: -w + 0 * batch, optax.sgd(1.0), fs.LocalTraining())
    experiment = fs.Experiment(
        algorithm, 0.0, data, fs.sampling.everyone(), num_rounds=3, evaluate=evaluate
    )
    simulation = fs.simulate(experiment, jax.random.key(0), stop=fs.reaches("accuracy", 0.97))
    assert simulation.status == "stopped"
    scores = simulation.history.evaluation["accuracy"]
    assert len(scores) == 2
    assert rounds_to_target(scores, 0.97) == 2


def test_evaluator_names_every_mean_and_statistic():
    test = fs.FederatedData.from_clients([np.array([1.0, 3.0])])
    clients = fs.FederatedData.from_clients(
        [np.array([1.0, 3.0]), np.zeros(0), np.array([4.0]), np.array([-1.0])]
    )
    found = {k: float(x) for k, x in jax.jit(evaluator(metrics, test, clients))(2.0).items()}
    assert len(found) == 2 * (1 + 8)
    assert (found["test_loss"], found["test_above"]) == (1, 0.5)
    # By client: losses 1, 4, 9, the highest the worst; shares above 1/2, 1, 0, the lowest.
    assert found["clients_loss_mean"] == pytest.approx(14 / 3)
    assert found["clients_loss_weighted_mean"] == pytest.approx((1 + 1 + 4 + 9) / 4)
    assert found["clients_loss_worst_tenth"] == 9
    assert found["clients_above_worst_tenth"] == 0
    assert found["clients_above_p50"] == 0.5
    only = evaluator(metrics, clients=clients, lower_is_better=("loss", "above"))(2.0)
    assert not any(name.startswith("test_") for name in only)
    assert float(only["clients_above_worst_tenth"]) == 1


def test_evaluator_refuses():
    data = fs.FederatedData.from_clients([np.ones(2)])
    with pytest.raises(ValueError, match="test, clients, validation or several; got none"):
        evaluator(metrics)
    with pytest.raises(ValueError, match=r"must be an fs\.FederatedData; got list"):
        evaluator(metrics, [1.0])
    with pytest.raises(ValueError, match=r"batch_size must be .*got 0"):
        evaluator(metrics, data, batch_size=0)
