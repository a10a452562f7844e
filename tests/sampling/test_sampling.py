"""Samplers: distinct clients, the probabilities they state, and unbiasedness."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.sampling.samplers import _capped_proportional
from tests.conftest import SIZES, flat, linear_loss, slow_after, zeros

K, DRAWS = len(SIZES), 20_000
SAMPLERS = {
    "uniform": fs.sampling.uniform(3),
    "bernoulli": fs.sampling.bernoulli(0.4),
    "weighted": fs.sampling.weighted(3),
    "with_replacement": fs.sampling.with_replacement(3),
    "everyone": fs.sampling.everyone(),
}


def draw(sampler, data, rounds=DRAWS):
    key = jax.random.key(11)
    return jax.jit(jax.vmap(lambda t: sampler.sample(key, t, data)))(jnp.arange(rounds))


@pytest.mark.parametrize("name", SAMPLERS)
def test_inclusion_is_what_it_says(data, name):
    cohorts = draw(SAMPLERS[name], data)
    ids, mask = np.asarray(cohorts.client_ids), np.asarray(cohorts.mask)
    counts = np.bincount(ids[mask], minlength=K)
    stated = np.full(K, np.nan)
    stated[ids[mask]] = np.asarray(cohorts.inclusion)[mask]
    p = np.array(SIZES) / sum(SIZES)
    expected = {
        "uniform": np.full(K, 3 / 8),
        "bernoulli": np.full(K, 0.4),
        # 23/60 * 3 > 1 is capped; the others share the two places left.
        "weighted": np.where(p > 0.35, 1, 2 * np.array(SIZES) / 37),
        "with_replacement": 3 * p,
        "everyone": np.ones(K),
    }[name]
    seen = counts > 0
    np.testing.assert_allclose(stated[seen], expected[seen], rtol=1e-5)
    np.testing.assert_allclose(counts / DRAWS, expected, atol=5 * np.sqrt(0.75 / DRAWS))
    if name != "with_replacement":
        for one, m in zip(ids[:500], mask[:500], strict=True):
            assert len(set(one[m])) == m.sum()
    if name in ("uniform", "weighted"):
        assert mask.all()
        pairs = {tuple(sorted(one)) for one in ids}
        assert len(pairs) >= (56 if name == "uniform" else 15)  # cohorts mix, 8 choose 3


@pytest.mark.parametrize(
    "name", slow_after(2, ("with_replacement", "weighted", "uniform", "bernoulli", "everyone"))
)
def test_unbiased_is_full_participation_on_average(data, name):
    local = fs.LocalTraining(1, None)
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), local)
    state = fs.init(algorithm, zeros(), data)
    round_fn = fs.make_round(algorithm, fs.aggregation.unbiased)
    key = jax.random.key(0)

    def one(cohort):
        return round_fn(key, state, data, cohort)[0].params

    moved = jax.jit(jax.vmap(one))(draw(SAMPLERS[name], data, 4000))
    everyone = jax.jit(one)(fs.sampling.everyone().sample(key, 0, data))
    for got, want in zip(jax.tree.leaves(moved), jax.tree.leaves(everyone), strict=True):
        error = np.asarray(got).std(axis=0) / np.sqrt(4000)
        np.testing.assert_array_less(np.abs(np.asarray(got).mean(axis=0) - want), 5 * error + 1e-5)


def test_bernoulli_capacity_packs_the_same_cohort(data):
    whole, packed = draw(fs.sampling.bernoulli(0.05), data, 300), None
    with pytest.raises(ValueError, match=r"capacity must hold.*got 4"):
        draw(fs.sampling.bernoulli(0.05, capacity=4), data, 2)
    packed = draw(fs.sampling.bernoulli(0.05, capacity=7), data, 300)
    assert packed.client_ids.shape == (300, 7)
    for a, am, b, bm in zip(
        *(np.asarray(x) for x in (whole.client_ids, whole.mask, packed.client_ids, packed.mask)),
        strict=True,
    ):
        assert a[am].tolist() == b[bm].tolist()
    sizes = np.asarray(whole.mask).sum(axis=1)
    assert 0 in sizes  # it can draw none


capped_proportional = jax.jit(_capped_proportional, static_argnums=1)


@settings(max_examples=60)
@given(
    weights=st.lists(st.integers(0, 1000), min_size=3, max_size=12).filter(lambda w: sum(w) > 0),
    m=st.integers(1, 3),
)
def test_capped_proportional(weights, m):
    w = np.zeros(3 if len(weights) == 3 else 12, np.float32)  # of two lengths: each compiles anew
    w[: len(weights)] = weights
    pi = np.asarray(capped_proportional(w, m), np.float64)
    assert (pi <= 1 + 1e-6).all()
    assert (pi[w == 0] == 0).all()
    np.testing.assert_allclose(pi.sum(), min(m, (w > 0).sum()), rtol=1e-4)
    ordered = np.sort(w.astype(np.float64))[::-1]  # every cap tried, over all that were sorted
    scales = [(m - j) / ordered[j:].sum() for j in range(m) if ordered[j:].sum() > 0]
    exact = next(
        (np.minimum(1, c * w) for j, c in enumerate(scales) if c * ordered[j] <= 1), (w > 0) * 1.0
    )
    np.testing.assert_allclose(pi, exact, rtol=1e-5)
    free = (pi < 1 - 1e-5) & (w > 0)  # those not capped are proportional
    if free.sum() > 1:
        np.testing.assert_allclose(pi[free] / w[free], (pi[free] / w[free])[0], rtol=1e-3)


@pytest.mark.parametrize(
    "name", slow_after(2, ("uniform", "weighted", "with_replacement", "everyone"))
)
@pytest.mark.slow  # its fault is of XLA as users have it
def test_a_federation_of_one(name):
    """Under jit, with all sizes constant: XLA once failed to compile it."""
    data = fs.FederatedData.from_clients([np.ones(1, np.float32)])
    sampler = {"everyone": fs.sampling.everyone()}.get(name) or getattr(fs.sampling, name)(1)
    algorithm = fs.fedavg(lambda w, b, key: (w - b) ** 2 / 2, optax.sgd(1.0), fs.LocalTraining())
    for execution in (fs.execution.vmapped(), fs.execution.packed(1)):
        round_fn = fs.make_round(algorithm, execution=execution)
        state = jax.jit(
            lambda f=round_fn: fs.run(
                f, jax.random.key(0), fs.init(algorithm, 0.0, data), data, sampler, 2
            )
        )()[0]
        assert float(state.params) == 1


def test_weighted_with_fewer_positive_weights_than_slots():
    data = fs.FederatedData.from_clients(
        [np.ones(n, np.float32) for n in (3, 0, 2, 0)], client_weights=[3, 0, 2, 0]
    )
    cohort = draw(fs.sampling.weighted(3), data, 50)
    for ids, mask in zip(np.asarray(cohort.client_ids), np.asarray(cohort.mask), strict=True):
        assert sorted(ids[mask]) == [0, 2]


def test_custom_sampler(data):
    def draw(key, data):
        cohort = fs.sampling.uniform(4).sample(key, 0, data)
        return cohort._replace(reports=jax.random.bernoulli(key, 0.5, (4,)))

    sampler = fs.sampling.custom(4, draw)
    cohorts = [sampler.sample(jax.random.key(0), t, data) for t in range(3)]
    assert len({tuple(np.asarray(c.client_ids)) for c in cohorts}) == 3
    with pytest.raises(ValueError, match="draw must return a cohort of 5 slots"):
        fs.sampling.custom(5, draw).sample(jax.random.key(0), 0, data)
    with pytest.raises(ValueError, match=r"draw must return an fs\.Cohort; got list"):
        fs.sampling.custom(5, lambda key, data: [1]).sample(jax.random.key(0), 0, data)
    algorithm = fs.fedavg(linear_loss, optax.sgd(0.05), fs.LocalTraining())
    state = fs.init(algorithm, zeros(), data)
    round_fn = fs.make_round(algorithm, execution=fs.execution.vmapped())
    state, history = jax.jit(
        lambda state: fs.run(round_fn, jax.random.key(0), state, data, sampler, 6)
    )(state)
    senders = np.asarray(history.rounds.senders)
    assert (senders < 4).any()
    assert (history.rounds.receivers == 4).all()
    assert np.isfinite(flat(state.params)).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fs.sampling.uniform(0), "m must be a whole number, at least 1; got 0"),
        (lambda: fs.sampling.uniform(2.5), "m must be .*got 2.5"),
        (lambda: fs.sampling.weighted(True), "m must be .*got True"),
        (lambda: fs.sampling.bernoulli(0.0), r"q must be finite and in \(0, 1\]; got 0"),
        (lambda: fs.sampling.bernoulli(1.5), "q must be finite and in"),
        (lambda: fs.sampling.bernoulli("0.5"), r"q must be a number, in \(0, 1\]; got '0.5'"),
        (lambda: fs.sampling.bernoulli(jnp.ones(2)), r"q must be a scalar; got shape \(2,\)"),
        (lambda: fs.sampling.bernoulli(0.5, 0), "capacity must be .*got 0"),
    ],
)
def test_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("sampler", [fs.sampling.uniform(9), fs.sampling.weighted(9)])
def test_more_than_there_are(data, sampler):
    with pytest.raises(ValueError, match="m must be at most K = 8 clients; got 9"):
        sampler.sample(jax.random.key(0), 0, data)
