"""Sums of very many terms, against exact ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.core import sums as summing
from fedjax_sim.core.trees import sum_where

TERMS = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.1, 1.0, 2.0**24, 1e-6, -(2.0**24)])


@jax.jit
def in_turn(values, counts):
    """The sum of a padded array, added up in a loop."""

    def body(sums, term):
        x, taken = term
        return summing.add_to(sums, {"x": x, "n": jnp.int32(1)}, taken), None

    shapes = {"x": values[0], "n": jnp.int32(0)}
    return jax.lax.scan(body, summing.zero_sum(shapes), (values, counts))[0].total


@given(terms=st.lists(TERMS, min_size=1, max_size=200), times=st.integers(1, 100))
def test_a_sum_in_a_loop_is_the_exact_one_rounded(terms, times):
    """XLA must not simplify away what keeps the digits: then 0.1 or 2^24 + 1 would tell."""
    terms = (terms * times)[:20_000]
    values = np.full(20_000, np.nan, np.float32)  # NaN in what does not count
    values[: len(terms)] = terms
    sums = in_turn(values, np.arange(20_000) < len(terms))
    exact = math.fsum(np.asarray(terms, np.float32).astype(float))
    size = sum(abs(np.float32(x)) for x in terms)
    assert abs(float(sums["x"]) - exact) <= 2**-23 * float(size) * 1.01
    assert sums["n"].dtype == jnp.float32
    assert int(sums["n"]) == len(terms)


@pytest.mark.parametrize(("term", "terms"), [(0.1, 10**7), (1.0, 2 * 10**7), (1 / 3, 10**6)])
def test_as_many_terms_as_a_long_run_has(term, terms):
    total = jax.jit(
        lambda x: jax.lax.fori_loop(
            0, terms, lambda i, sums: summing.add_to(sums, x), summing.zero_sum(x)
        )
    )(jnp.float32(term)).total
    np.testing.assert_allclose(total, terms * np.float64(np.float32(term)), rtol=1e-7)


def test_an_infinity_stays_one_and_a_few_are_added_plainly():
    sums = summing.zero_sum(jnp.float32(0))
    for x in (1.0, jnp.inf, 2.0):
        sums = summing.add_to(sums, jnp.float32(x))
    assert float(sums.total) == jnp.inf
    plain = summing.zero_sum(jnp.float32(0), terms=summing.FEW)
    assert not jax.tree.leaves(plain.lost)
    assert jax.tree.leaves(summing.zero_sum(jnp.float32(0), terms=summing.FEW + 1).lost)
    assert float(summing.add_to(plain, jnp.float32(2)).total) == 2
    few = summing.FEW_REPORTED
    reported = [summing.zero_sum(jnp.float32(0), terms, few) for terms in (few, few + 1)]
    assert [len(jax.tree.leaves(sums.lost)) for sums in reported] == [0, 1]
    whole = summing.zero_sum({"n": jnp.int32(0), "any": jnp.array(False)}, whole=True)
    whole = summing.add_to(
        summing.add_to(whole, {"n": jnp.int32(2**24), "any": jnp.array(True)}),
        {"n": jnp.int32(1), "any": jnp.array(False)},
    )
    assert int(whole.total["n"]) == 2**24 + 1
    assert bool(whole.total["any"])


def test_a_derivative_goes_through_a_sum():
    def total(x):
        def body(sums, i):
            return summing.add_to(sums, x * i, i < 3), None

        sums = jax.lax.scan(body, summing.zero_sum(x), jnp.arange(5.0))[0]
        return sums.total

    assert float(jax.grad(total)(2.0)) == float(jax.jvp(total, (2.0,), (1.0,))[1]) == 3


@jax.jit
def of_stretches(values, starts, sizes):
    return summing.of_stretches(values, starts, sizes, 5000)


STRETCHES = st.lists(st.integers(0, 3) | st.integers(0, 5000), min_size=8, max_size=8)


@given(sizes=STRETCHES, seed=st.integers(0, 10), gap=st.integers(0, 3))
def test_the_sums_of_stretches(sizes, seed, gap):
    sizes = np.array(sizes, np.int32)
    starts = np.concatenate([[0], np.cumsum(sizes + gap)[:-1]]).astype(np.int32) + gap
    values = np.random.default_rng(seed).exponential(size=45_000).astype(np.float32)
    values[starts[-1] + sizes[-1] :] = np.nan  # in no stretch
    found = of_stretches(values, starts, sizes)
    exact = [values[a : a + n].astype(np.float64).sum() for a, n in zip(starts, sizes, strict=True)]
    np.testing.assert_allclose(found, exact, rtol=3e-7)


@pytest.mark.parametrize("longest", [1, 63, 64, 65, 2047, 2048, 2049])
def test_stretches_as_long_as_a_level_of_the_tree_and_one_more(longest):
    values = jnp.arange(2 * longest + 3, dtype=jnp.int32).astype(jnp.float32)
    starts = np.array([0, longest, longest + 3], np.int32)
    sizes = np.array([longest, 0, longest], np.int32)
    found = summing.of_stretches(values, jnp.asarray(starts), jnp.asarray(sizes), longest)
    exact = [sum(range(a, a + n)) for a, n in zip(starts.tolist(), sizes.tolist(), strict=True)]
    np.testing.assert_allclose(found, exact, rtol=1e-7)


def test_very_many_stretches_do_not_need_the_memory_of_all_their_nodes():
    number, longest = 280_001, 64
    sizes = np.random.default_rng(0).integers(0, longest + 1, number).astype(np.int32)
    starts = (np.cumsum(sizes) - sizes).astype(np.int32)
    values = np.random.default_rng(1).random(sizes.sum(), np.float32)
    given = values, starts, sizes
    compiled = jax.jit(summing.of_stretches, static_argnums=3).lower(*given, longest).compile()
    sums = np.concatenate([[0], np.cumsum(values, dtype=np.float64)])
    np.testing.assert_allclose(
        compiled(*given), sums[starts + sizes] - sums[starts], rtol=1e-6, atol=1e-6
    )
    assert compiled.memory_analysis().temp_size_in_bytes < values.nbytes / 4


def test_a_nan_is_in_its_own_stretch_alone():
    values = jnp.ones(1000).at[100].set(jnp.nan)
    starts, sizes = jnp.array([0, 100, 101]), jnp.array([100, 1, 899])
    found = summing.of_stretches(values, starts, sizes, 899)
    np.testing.assert_array_equal(found, [100, np.nan, 899])


@pytest.mark.parametrize(("loss", "number"), [(0.1, 10**7), (1.0, 2 * 10**7)])
def test_a_client_of_ten_million_examples_has_its_mean(loss, number):
    """Of one value each, so that the exact mean is that value; and a small client beside it."""
    sizes = np.array([3, number, 2], np.int32)
    data = fs.FederatedData(
        examples=jnp.zeros(number + 5, jnp.uint8),
        offsets=jnp.asarray([0, 3, number + 3], jnp.int32),
        num_examples=jnp.asarray(sizes),
        client_weights=jnp.asarray(sizes, jnp.float32),
        max_num_examples=number,
    )

    def metric_fn(params, batch, key):
        return params + batch.astype(jnp.float32), {"accuracy": jnp.ones(batch.shape)}

    scores = jax.jit(
        lambda w, data: (
            fs.evaluate(metric_fn, w, data, batch_size=2**20),
            fs.baselines.evaluate_local(metric_fn, jnp.full(3, w), clients=data).clients,
        )
    )
    found, local = scores(np.float32(loss), data)
    for by_client in (found.clients, local):
        np.testing.assert_allclose(by_client["loss"], np.float32(loss), rtol=1e-6)
        np.testing.assert_array_equal(by_client["accuracy"], 1)
    np.testing.assert_allclose(found.mean["loss"], np.float32(loss), rtol=1e-6)
    weights = fs.client_statistics(found.clients["loss"], data.client_weights, sizes > 0)
    np.testing.assert_allclose(weights.weighted_mean, np.float32(loss), rtol=1e-6)


@pytest.mark.parametrize("strategy", [fs.execution.packed(1), fs.execution.vmapped()], ids=repr)
def test_train_metrics_of_very_many_steps(strategy):
    """0.1 at each of 200,000 steps of two clients, in whatever type the algorithm reports."""
    steps = 200_000

    def step(carry, message, client_state, batch, mask, key):
        size = jnp.sum(mask, dtype=jnp.int32)
        return carry, {
            "loss": (jnp.float32(0.1), jnp.float32(1)),
            "large": (2**14 * size, size),
            "half": (jnp.bfloat16(1), jnp.array(True)),
        }

    algorithm = fs.fedavg(
        lambda w, batch, key: w + batch, optax.sgd(1.0), fs.LocalTraining(steps, None)
    )
    algorithm = algorithm._replace(
        client=fs.ClientUpdate(
            init=lambda message, *rest: message.params,
            step=step,
            finish=lambda carry, *rest: fs.ClientOutput(update=carry),
        )
    )
    data = fs.FederatedData.from_clients([np.ones(1, np.float32)] * 2)
    state = fs.init(algorithm, 0.0, data)
    round_fn = jax.jit(fs.make_round(algorithm, execution=strategy))
    train = round_fn(jax.random.key(0), state, data, fs.Cohort(jnp.arange(2)))[1].train
    np.testing.assert_allclose(train["loss"], np.float32(0.1), rtol=1e-6)
    np.testing.assert_allclose(train["large"], 2**14, rtol=1e-6)
    assert float(train["half"]) == 1


@pytest.mark.parametrize("clients", [300_000])
def test_an_update_summed_over_very_many_clients(clients):
    """The plain mean of equal updates is that update, however many send it."""
    data = fs.FederatedData.from_arrays(np.ones(clients, np.float32), np.arange(clients))
    algorithm = fs.fedavg(
        lambda w, batch, key: -0.1 * w * batch, optax.sgd(1.0), fs.LocalTraining(1, 1, False)
    )
    state = fs.init(algorithm, 0.0, data)
    round_fn = fs.make_round(algorithm, fs.aggregation.uniform, fs.execution.packed(1))
    cohort = fs.Cohort(jnp.arange(clients))
    state, metrics = jax.jit(round_fn)(jax.random.key(0), state, data, cohort)
    np.testing.assert_allclose(state.params, np.float32(0.1), rtol=1e-6)
    assert int(metrics.reporting) == clients


def test_sums_over_slots_are_taken_in_floating_numbers():
    tree = {"half": jnp.ones(3000, jnp.bfloat16), "whole": jnp.full(3, 2**30, jnp.int32)}
    assert float(sum_where(jnp.ones(3000, bool), {"half": tree["half"]})["half"]) == 3000
    assert float(sum_where(jnp.ones(3, bool), {"whole": tree["whole"]})["whole"]) == 3 * 2.0**30
