"""Runs: one scan equals a loop, resumes, vmaps over hyper-parameters, differentiates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from tests.conftest import federation, flat, linear_loss, zeros

LOCAL = fs.LocalTraining(2, 4)
SAMPLER = fs.sampling.uniform(4)


@pytest.mark.parametrize(
    "execution",
    [pytest.param(fs.execution.vmapped(), marks=pytest.mark.slow), fs.execution.packed(2)],
)
def test_run_is_a_loop_and_resumes_with_the_same_bits(data, execution):
    algorithm = fs.scaffold(linear_loss, 0.05, LOCAL)
    round_fn = fs.make_round(algorithm, execution=execution)
    key, start = jax.random.key(7), fs.init(algorithm, zeros(), data)

    @partial(jax.jit, static_argnums=1)
    def run(state, rounds, key):
        return fs.run(round_fn, key, state, data, SAMPLER, rounds, lambda p: p["b"])

    whole, history = run(start, 8, key)
    part, first = run(start, 4, key)
    resumed, second = run(part, 4, key)
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second)
    for a, b in zip(
        jax.tree.leaves((whole, history)), jax.tree.leaves((resumed, both)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert history.evaluation.shape == (8,)
    assert float(history.evaluation[-1]) == float(whole.params["b"])
    assert int(whole.round) == 8

    step, state = jax.jit(round_fn), start
    for t in range(8):
        state, metrics = step(key, state, data, SAMPLER.sample(key, state.round, data))
        np.testing.assert_allclose(
            metrics.train["loss"], history.rounds.train["loss"][t], rtol=1e-5
        )
    np.testing.assert_allclose(flat(state.params), flat(whole.params), atol=1e-6)

    other, _ = run(start, 8, jax.random.key(8))
    assert not np.allclose(flat(other.params), flat(whole.params), atol=1e-3)


def test_evaluation_every_r_rounds_and_after_the_last(data):
    """Counted from the experiment's first round, so a resumed run goes on in step."""
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL)
    round_fn = fs.make_round(algorithm, execution=fs.execution.vmapped())
    key = jax.random.key(7)

    def evaluate(params):
        return {"b": params["b"], "up": params["b"] > 0, "nine": jnp.int32(9)}

    # `last` is an argument of the program, but for None.
    @partial(jax.jit, static_argnums=(1, 2))
    def run(state, rounds, every=1, last=None):
        return fs.run(round_fn, key, state, data, SAMPLER, rounds, evaluate, every, last)

    start = fs.init(algorithm, zeros(), data)
    _, every = run(start, 7)
    assert every.evaluated.all()
    assert np.isfinite(every.evaluation["b"]).all()
    for last, rounds in ((None, [3, 6]), (7, [3, 6, 7]), (6, [3, 6]), (9, [3, 6])):
        _, history = run(start, 7, 3, last)
        due = np.isin(np.arange(1, 8), rounds)
        np.testing.assert_array_equal(history.evaluated, due)
        # What an evaluation does not change: the model and its own value.
        expected = np.where(due, every.evaluation["b"], np.nan)
        np.testing.assert_allclose(history.evaluation["b"], expected, rtol=1e-6)
        np.testing.assert_array_equal(history.evaluation["nine"], np.where(due, 9, 0))
        np.testing.assert_array_equal(history.evaluation["up"], due & every.evaluation["up"])
    part, first = run(start, 7, 3)
    _, second = run(part, 7, 3)
    np.testing.assert_array_equal(
        np.concatenate([first.evaluated, second.evaluated]),
        np.isin(np.arange(1, 15), [3, 6, 9, 12]),
    )


def test_a_run_without_evaluation_says_so(data):
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), LOCAL)
    state = fs.init(algorithm, zeros(), data)
    _, history = fs.run(fs.make_round(algorithm), jax.random.key(0), state, data, SAMPLER, 2)
    assert history.evaluation == ()
    assert history.evaluated.tolist() == [False, False]
    assert history.rounds.examples.shape == history.rounds.update_norm.shape == (2,)


@pytest.mark.parametrize(
    "execution",
    [pytest.param(fs.execution.vmapped(), marks=pytest.mark.slow), fs.execution.packed(3)],
)
def test_sweep_is_a_vmap(data, execution):
    traces = []

    def experiment(lr, mu, key):
        traces.append(1)
        algorithm = fs.fedprox(linear_loss, optax.sgd(lr), LOCAL, mu=mu)
        state = fs.init(algorithm, zeros(), data)
        round_fn = fs.make_round(algorithm, fs.aggregation.all_clients, execution)
        state, history = fs.run(round_fn, key, state, data, SAMPLER, 5)
        return state.params, history

    lrs, mus = jnp.array([0.01, 0.02, 0.05, 0.03]), jnp.array([0.0, 1.0, 0.1, 0.0])
    keys = jax.random.split(jax.random.key(0), 4)
    sweep = jax.jit(jax.vmap(experiment))
    together = sweep(lrs, mus, keys)
    sweep(lrs * 2, mus, keys)
    assert len(traces) == 1
    assert sweep._cache_size() == 1
    one = jax.jit(experiment)
    for i in range(4):
        alone = one(lrs[i], mus[i], keys[i])
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6)
    assert len(traces) == 2


def test_learning_rates_sweep_with_shared_cohorts_keeps_control_flow_unbatched(data):
    def experiment(lr, seed=0):
        algorithm = fs.scaffold(linear_loss, lr, LOCAL)
        round_fn = fs.make_round(algorithm, execution=fs.execution.packed(2))
        state = fs.init(algorithm, zeros(), data)
        return fs.run(round_fn, jax.random.key(seed), state, data, SAMPLER, 2)[0].params

    def conditions(jaxpr):
        """The shapes of the conditions of all while loops: () or, if batched, (2,)."""
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "while":
                yield eqn.params["cond_jaxpr"].out_avals[0].shape
            for value in jax.tree.leaves(tuple(eqn.params.values())):
                if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                    yield from conditions(getattr(value, "jaxpr", value))

    def shapes(*args):
        return list(conditions(jax.make_jaxpr(jax.vmap(experiment))(*args).jaxpr))

    lrs = jnp.array([0.01, 0.02])
    assert len(shapes(lrs)) > 2
    assert set(shapes(lrs)) == {()}
    assert (2,) in shapes(lrs, jnp.arange(2))  # the cohorts differ, so do their lengths


def test_gradient_by_the_learning_rate(clients):
    with jax.enable_x64(True):
        data = fs.FederatedData.from_clients([{"x": x, "y": y} for x, y in clients])
        assert data.client_weights.dtype == jnp.float64
        test = {"x": jnp.asarray(clients[5][0]), "y": jnp.asarray(clients[5][1])}
        start = {"w": jnp.zeros(4), "b": jnp.zeros(())}

        def last_loss(lr):
            algorithm = fs.fedavg(linear_loss, optax.sgd(lr), LOCAL)
            round_fn = fs.make_round(algorithm, execution=fs.execution.vmapped())
            state = fs.init(algorithm, start, data)
            state, history = fs.run(
                round_fn,
                jax.random.key(0),
                state,
                data,
                SAMPLER,
                5,
                evaluate=lambda params: linear_loss(params, test, None).mean(),
            )
            return history.evaluation[-1]

        last_loss = jax.jit(last_loss)
        lr, step = jnp.float64(0.02), 1e-5
        central = (last_loss(lr + step) - last_loss(lr - step)) / (2 * step)
        got = jax.jit(jax.grad(last_loss))(lr)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, central, rtol=1e-6)
        assert abs(float(got)) > 1e-3


@pytest.mark.slow
def test_scaffold_differentiates_through_padding_and_empty_clients(data):
    def last(lr, execution):
        algorithm = fs.scaffold(linear_loss, lr, LOCAL)
        round_fn = fs.make_round(algorithm, execution=execution)
        state = fs.init(algorithm, zeros(), data)
        cohort = fs.Cohort(jnp.array([1, 2, 5]), jnp.array([True, True, False]))
        for _ in range(2):
            state, _ = round_fn(jax.random.key(0), state, data, cohort)
        return state.params["b"]

    backward = jax.jit(jax.grad(lambda lr: last(lr, fs.execution.vmapped())))(0.02)
    forward = jax.jit(jax.jacfwd(lambda lr: last(lr, fs.execution.packed(2))))(0.02)
    assert np.isfinite(backward)
    np.testing.assert_allclose(backward, forward, rtol=1e-4)


@pytest.mark.slow
def test_strategies_agree_in_float64(clients):
    with jax.enable_x64(True):
        data = fs.FederatedData.from_clients([{"x": x, "y": y} for x, y in clients])
        start = {"w": jnp.zeros(4), "b": jnp.zeros(())}
        for make in (
            lambda: fs.fedavg(linear_loss, optax.sgd(0.02), LOCAL),
            lambda: fs.scaffold(linear_loss, 0.02, LOCAL),
            lambda: fs.fedsgd(linear_loss, optax.sgd(0.02)),
        ):
            results = []
            for execution in (fs.execution.vmapped(), fs.execution.packed(2)):
                algorithm = make()
                round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
                state = fs.init(algorithm, start, data)
                for ids in ([1, 4, 5, 7], [0, 2, 5, 6], [3, 4, 6, 7]):
                    state, _ = round_fn(jax.random.key(0), state, data, fs.Cohort(jnp.array(ids)))
                assert state.params["w"].dtype == jnp.float64
                results.append(flat(state.params))
            np.testing.assert_allclose(*results, atol=1e-14)


def test_refusals(data):
    algorithm = fs.scaffold(linear_loss, 0.05, LOCAL)
    round_fn, key = fs.make_round(algorithm), jax.random.key(0)
    state = fs.init(algorithm, zeros(), data)

    def refused(message, key=key, sampler=SAMPLER, rounds=2, **options):
        with pytest.raises(ValueError, match=message):
            fs.run(round_fn, key, state, data, sampler, rounds, **options)

    refused("num_rounds must be a whole number.*got 0", rounds=0)
    refused("evaluate_every must be .*got 0", evaluate_every=0)
    refused("m must be at most K = 8 clients; got 9", sampler=fs.sampling.uniform(9))
    refused("sampler must not draw with replacement", sampler=fs.sampling.with_replacement(2))
    refused("sampler must be one of fs.sampling", sampler=4)
    refused("key must be a typed key", key=0)


@pytest.mark.slow
def test_the_same_client_trains_alike_in_any_federation(clients):
    """Same id, same key: the sizes of the others, and so the padding, change no draw."""
    local = fs.LocalTraining(3, 4)
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.02), local)
    cohort = fs.Cohort(jnp.array([4, 1], jnp.int32), jnp.array([True, False]))
    results = []
    for others in (clients, [*clients[:5], (np.ones((90, 4)), np.ones(90))]):
        data = federation(others)
        for execution in (fs.execution.vmapped(), fs.execution.packed(1)):
            round_fn = jax.jit(fs.make_round(algorithm, execution=execution))
            state, _ = round_fn(jax.random.key(0), fs.init(algorithm, zeros(), data), data, cohort)
            results.append(flat(state.params))
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-6)
