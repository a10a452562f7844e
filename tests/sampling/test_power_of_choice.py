"""Power-of-Choice: candidates drawn as NumPy would, of whom those with the largest loss train."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import SIZES, linear_loss, zeros

K, KEY = len(SIZES), jax.random.key(3)
PARAMS = {"w": np.array([0.5, -1, 0.25, 2], np.float32), "b": np.float32(0.3)}
POWER = fs.sampling.power_of_choice(2, 4, linear_loss)


def losses(clients):
    w, b = PARAMS["w"].astype(float), float(PARAMS["b"])
    return np.array([np.mean((x @ w + b - y) ** 2) if len(y) else -np.inf for x, y in clients])


def test_those_of_largest_loss_train(clients, data):
    own = losses(clients)
    draw = jax.jit(lambda round: POWER.draw(KEY, round, data, PARAMS))
    for round in range(20):
        cohort = draw(round)
        ids = np.asarray(cohort.client_ids)
        assert np.asarray(cohort.mask).all()
        assert len(set(ids)) == 4
        assert 2 not in ids  # who has no examples
        chosen = ids[np.asarray(cohort.work) == 1]
        assert set(chosen) == set(ids[np.argsort(own[ids])[-2:]])
        assert cohort.inclusion is None


def test_candidates_are_drawn_by_weight_one_by_one(data):
    """Each set of two as often as draws in proportion to the weights that are left make it."""
    sampler = fs.sampling.power_of_choice(1, 2, lambda params, batch, key: batch["y"])
    ids = jax.jit(jax.vmap(lambda t: sampler.draw(KEY, t, data, ()).client_ids))(jnp.arange(20_000))
    p = np.array(SIZES) / sum(SIZES)
    pairs = [tuple(sorted(pair)) for pair in np.asarray(ids).tolist()]
    for i, j in itertools.combinations(range(K), 2):
        expected = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        assert abs(pairs.count((i, j)) / 20_000 - expected) < 5 * np.sqrt(expected / 20_000) + 1e-9


def test_a_run_is_given_the_model_and_counts_the_candidates(data):
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), fs.LocalTraining(1, 4))
    experiment = fs.Experiment(algorithm, zeros(), data, POWER, 2, clock=fs.clocks.equal(K))
    _, history = jax.jit(experiment.run)(KEY)
    assert history.rounds.receivers.tolist() == [4, 4]
    assert history.rounds.senders.tolist() == [2, 2]
    after_one = experiment._replace(num_rounds=1).run(KEY)[0]
    second = POWER.draw(KEY, 1, data, after_one.params)
    sizes = np.array(SIZES)[np.asarray(second.client_ids)[np.asarray(second.work) == 1]]
    assert float(history.rounds.seconds[1]) == max(-(-sizes // 4))
    assert int(history.rounds.client_steps[1]) == sum(-(-sizes // 4))


def test_among_the_available(clients, data):
    trace = np.zeros((1, K), bool)
    trace[0, [0, 1, 3]] = True
    cohort = fs.sampling.available(POWER, trace).draw(KEY, 0, data, PARAMS)
    ids, mask = np.asarray(cohort.client_ids), np.asarray(cohort.mask)
    assert sorted(ids[mask]) == [0, 1, 3]
    chosen = ids[mask & (np.asarray(cohort.work) == 1)]
    assert set(chosen) == set(np.array([0, 1, 3])[np.argsort(losses(clients)[[0, 1, 3]])[-2:]])


def test_what_cannot_be_is_refused_with_the_reason(data):
    with pytest.raises(ValueError, match="candidates must be at least m = 3; got 2"):
        fs.sampling.power_of_choice(3, 2, linear_loss)
    with pytest.raises(ValueError, match="candidates must be at most K = 8 clients; got 9"):
        fs.sampling.power_of_choice(3, 9, linear_loss).draw(KEY, 0, data, PARAMS)
    with pytest.raises(ValueError, match=r"loss_fn must take \(params, batch, key\)"):
        fs.sampling.power_of_choice(1, 2, lambda params: 0)
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), fs.LocalTraining(1, 4))
    experiment = fs.Experiment(algorithm, zeros(), data, POWER, 2)
    for baseline in (fs.baselines.centralised, fs.baselines.local_only):
        with pytest.raises(ValueError, match=r"experiment\.sampler must draw without the model"):
            baseline(experiment)
    source = fs.data.Source.of(data)
    with pytest.raises(ValueError, match="it asks for the model, which the rounds before make"):
        fs.simulate(experiment._replace(data=source), KEY)
    unbiased = experiment._replace(aggregation=fs.aggregation.unbiased)
    with pytest.raises(ValueError, match="not known of a draw by the model's loss"):
        unbiased.run(KEY)
