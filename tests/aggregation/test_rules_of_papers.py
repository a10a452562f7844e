"""Each robust rule beside NumPy's float64, on stacks with ties and numbers that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from tests.aggregation import references as numpy

SLOTS, KEY, K = 7, jax.random.key(0), 9
IDS = np.array([8, 3, 5, 0, 7, 2, 1])
WEIGHTS = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0], np.float32)
rules = fs.aggregation
RULES = {
    "median": (rules.median(), lambda d, a, ids: numpy.median(d)),
    "trimmed_mean": (rules.trimmed_mean(0.29), lambda d, a, ids: numpy.trimmed_mean(d, 0.29)),
    "krum": (rules.krum(1), lambda d, a, ids: numpy.multi_krum(d, 1, 1, ids)),
    "multi_krum": (rules.multi_krum(1, 3), lambda d, a, ids: numpy.multi_krum(d, 1, 3, ids)),
    "geometric_median": (
        rules.geometric_median(3, smoothing=0.1),
        lambda d, a, ids: numpy.geometric_median(d, a, 3, 0.1),
    ),
    "centered_clipping": (
        rules.centered_clipping(1.5, 3),
        lambda d, a, ids: numpy.centered_clipping(d, 1.5, 3),
    ),
    "norm_bounded": (rules.norm_bounded(1.5), lambda d, a, ids: numpy.norm_bounded(d, a, 1.5)),
    "nearest_neighbour_mixing": (
        rules.nearest_neighbour_mixing(rules.trimmed_mean(0.2), 2),
        lambda d, a, ids: (
            numpy.trimmed_mean(numpy.mixed(d, 2, ids), 0.2) if len(d) > 4 else np.zeros(d.shape[1])
        ),
    ),
}


def answer_of(rule, counted, ids=IDS, weights=WEIGHTS):
    """The rule's coefficients for these slots."""
    cohort = fs.Cohort(jnp.asarray(ids, jnp.int32), reports=jnp.asarray(counted))
    all_weights = jnp.ones(max(K, len(ids)), jnp.float32)
    return rule(cohort, jnp.asarray(weights, jnp.float32), all_weights)


def combined(rule, stack, counted, ids=IDS, weights=WEIGHTS, key=KEY):
    """The update that a rule makes of a matrix [m, d], in one compilation."""

    @jax.jit
    def update(stack, counted, key):
        return traced(rule, stack, counted, ids, weights, key)

    return update(stack, counted, key)


def traced(rule, stack, counted, ids=IDS, weights=WEIGHTS, key=KEY):
    """The same of arrays that may be traced; the rule is given two leaves."""
    stack, counted = jnp.asarray(stack, jnp.float32), jnp.asarray(counted)
    answer = answer_of(rule, counted, ids, weights)
    stack = jnp.where(counted[:, None], stack, 0)  # as a round does
    tree = {"b": stack[:, 0], "w": stack[:, 1:].reshape(len(stack), 1, -1)}
    update = answer.combine(tree, answer.weights, counted, key)
    return jnp.concatenate([update["b"].reshape(1), update["w"].reshape(-1)])


COMPILED = {
    name: jax.jit(lambda stack, counted, rule=rule: traced(rule, stack, counted))
    for name, (rule, _) in RULES.items()
}
# Quarters are exact in float32, and so are squared distances of them: a tie here is one in NumPy.
QUARTERS = st.sampled_from([-8.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 1.0, 1.0, 8.0])
ENTRIES = st.one_of(QUARTERS, QUARTERS, QUARTERS, st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
STACKS = st.lists(
    st.one_of(
        st.lists(QUARTERS, min_size=5, max_size=5),
        st.just([0.25, -0.5, 1.0, 0.0, 0.5]),
        st.lists(ENTRIES, min_size=5, max_size=5),
    ),
    min_size=SLOTS,
    max_size=SLOTS,
)
MASKS = st.lists(st.sampled_from([True, True, True, False]), min_size=SLOTS, max_size=SLOTS)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=40, deadline=None)
@given(stack=STACKS, mask=MASKS)
def test_equals_numpys_float64(name, stack, mask):
    counted = np.array(mask)
    if not counted.any():
        return
    sent = np.array(stack, np.float32)
    stack = sent.astype(np.float64)
    if name not in ("median", "trimmed_mean"):  # a square of 1e60 is infinite in float32
        stack = np.where(stack > 1e29, np.inf, stack)
    expected = RULES[name][1](stack[counted], WEIGHTS[counted].astype(np.float64), IDS[counted])
    update = COMPILED[name](sent, counted)
    np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_random_stacks(name):
    rng = np.random.default_rng(3)
    for scale in (1e-6, 1.0, 1e4):
        stack = (scale * rng.normal(size=(SLOTS, 5))).astype(np.float32)
        stack[2] = stack[4]
        counted = rng.random(SLOTS) < 0.9
        expected = RULES[name][1](
            stack[counted].astype(np.float64), WEIGHTS[counted].astype(np.float64), IDS[counted]
        )
        update = COMPILED[name](stack, counted)
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-5 * scale)


def test_distances_of_updates_that_are_large_beside_them():
    """Inner products of 1e8 have no digit left of differences of 1; differences have all."""
    stack = np.array([[1e4, 1e4]] * 6) + np.array(
        [[0, 0], [0.5, 0], [0, 1], [-0.5, 1], [30, 30], [1, 2]]
    )
    everyone, ids = np.ones(6, bool), np.arange(6)
    expected = numpy.multi_krum(stack, 1, 1, ids)
    update = combined(rules.krum(1), stack, everyone, ids, np.ones(6))
    np.testing.assert_array_equal(update, expected)
    # The smallest score is the first client's, by hand 0.25 + 1 + 1.25.
    np.testing.assert_array_equal(update, stack[0])


def test_by_hand():
    """Five clients on a line, one of whom is far away."""
    stack = np.array([[0.0, 0], [1, 0], [2, 0], [4, 0], [100, 0]])
    everyone, ids, ones = np.ones(5, bool), np.arange(5), np.ones(5)

    def moved(rule):
        return float(combined(rule, stack, everyone, ids, ones)[0])

    assert moved(rules.median()) == 2
    assert moved(rules.trimmed_mean(0.2)) == pytest.approx(7 / 3)
    # Sums of the two nearest squares: 1 + 4, 1 + 1, 1 + 4, 4 + 9, 96^2 + 98^2.
    assert moved(rules.krum(1)) == 1
    assert moved(rules.multi_krum(1, 3)) == 1  # clients 1, and of equal scores 0 and 2
    assert moved(rules.centered_clipping(2.0)) == pytest.approx((0 + 1 + 2 + 2 + 2) / 5)
    assert moved(rules.norm_bounded(2.0)) == pytest.approx((0 + 1 + 2 + 2 + 2) / 5)
    # The means of the four nearest: 7/4 of the first four, (1 + 2 + 4 + 100)/4 of the last.
    mixed = rules.nearest_neighbour_mixing(rules.trimmed_mean(0.0), 1)
    assert moved(mixed) == pytest.approx((4 * 1.75 + 26.75) / 5)
    assert moved(rules.nearest_neighbour_mixing(rules.median(), 1)) == 1.75


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [3, 1, 2, 0]])
def test_what_is_not_finite_is_mixed_with_nobody(ids):
    """Also where its client's id is the largest, and those before it are finite."""
    stack = np.array([[1.0, 1], [2, 2], [4, 4], [np.nan, 0]])
    seen = []

    def looking(cohort, client_weights, all_client_weights):
        def combine(updates, weights, counted, key):
            seen.append(np.asarray(updates["b"]))
            return jax.tree.map(lambda x: x[0], updates)

        return fs.Coefficients(client_weights, None, combine=combine)

    rule = rules.nearest_neighbour_mixing(looking, 1)
    traced(rule, stack, np.ones(4, bool), np.array(ids), np.ones(4))
    np.testing.assert_allclose(seen[0], [7 / 3, 7 / 3, 7 / 3, np.nan])


@pytest.mark.slow
def test_special_cases():
    """Each rule's simpler self: the plain mean, the mean by examples, the rule itself."""
    stack = np.random.default_rng(1).normal(size=(SLOTS, 5)).astype(np.float32)
    counted = np.array([1, 1, 0, 1, 1, 1, 1], bool)
    mean = stack[counted].mean(axis=0)
    weighted = np.average(stack[counted], axis=0, weights=WEIGHTS[counted])
    same = {
        "share = 0": (rules.trimmed_mean(0.0), mean),
        "an infinite radius": (rules.centered_clipping(np.inf, 2), mean),
        "an infinite radius, by weight": (rules.norm_bounded(np.inf), weighted),
        "krum of all": (rules.multi_krum(0, SLOTS), mean),
        "mixing of all": (rules.nearest_neighbour_mixing(rules.median(), 0), mean),
        "a bucket of all": (rules.bucketing(rules.median(), SLOTS), mean),
        "much smoothing": (rules.geometric_median(2, 1e6), weighted),
        "the middle": (rules.trimmed_mean(0.4999), combined(rules.median(), stack, counted)),
        "krum": (rules.multi_krum(1, 1), combined(rules.krum(1), stack, counted)),
    }
    for name, (rule, expected) in same.items():
        update = combined(rule, stack, counted)
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    for rule in (rules.median(), rules.krum(1), rules.trimmed_mean(0.2)):
        alone, by_one = (combined(x, stack, counted) for x in (rule, rules.bucketing(rule, 1)))
        np.testing.assert_allclose(by_one, alone, rtol=1e-6)


def test_a_bucket_is_a_mean_of_clients_drawn_anew():
    """Every client is in one bucket, ties to no slot, and differs from round to round."""
    stack = np.eye(SLOTS, dtype=np.float32)
    counted = np.array([1, 1, 1, 0, 1, 1, 1], bool)
    seen = []

    def looking(cohort, client_weights, all_client_weights):
        def combine(updates, weights, exists, key):
            buckets = np.concatenate([updates["b"][:, None], updates["w"][:, 0]], axis=1)
            seen.append((buckets, np.asarray(exists), np.asarray(cohort.client_ids)))
            return jax.tree.map(lambda x: x[0], updates)

        return fs.Coefficients(client_weights, None, combine=combine)

    rule = rules.bucketing(looking, 2)
    for place in range(4):
        traced(rule, stack, counted, key=jax.random.key(place))
    for buckets, exists, ids in seen:
        assert exists.tolist() == [True, True, True, False]
        assert ids.tolist() == [0, 1, 2, 3]
        np.testing.assert_array_equal(np.sum(2 * buckets, axis=0), counted)
        assert set(np.unique(buckets[:3])) == {0.0, 0.5}
    assert len({x.tobytes() for x, _, _ in seen}) > 1
    order = np.array([3, 6, 0, 5, 1, 2, 4])
    traced(rule, stack[order], counted[order], IDS[order], WEIGHTS[order])
    np.testing.assert_array_equal(seen[-1][0], seen[0][0])


def test_too_few_report():
    """Krum needs more than 2 f + 2: such a round is an empty one, and its update is 0."""
    stack = np.random.default_rng(2).normal(size=(SLOTS, 5))
    few, enough = np.arange(SLOTS) < 4, np.arange(SLOTS) < 5
    nested = rules.nearest_neighbour_mixing(rules.krum(1), 1)
    for rule in (rules.krum(1), nested, rules.bucketing(rules.krum(1), 1)):
        assert not answer_of(rule, few).weights.any()
        assert answer_of(rule, enough).weights.any()
        assert not combined(rule, stack, few).any()
        assert combined(rule, stack, enough).all()
    dealt = rules.bucketing(rules.krum(0), 2)  # of six clients three buckets, of four two
    assert answer_of(dealt, np.arange(SLOTS) < 6).weights.any()
    assert not answer_of(dealt, few).weights.any()


@pytest.mark.slow
def test_numbers_may_be_traced():
    """f, keep and steps, as share and radius: one program for many."""
    stack = np.random.default_rng(4).normal(size=(SLOTS, 5)).astype(np.float32)
    everyone = np.ones(SLOTS, bool)
    make = {
        "trimmed_mean": (rules.trimmed_mean, [(0.0,), (0.15,), (0.45,)]),
        "krum": (rules.krum, [(0,), (1,), (2,)]),
        "multi_krum": (rules.multi_krum, [(0, 7), (1, 2), (2, 3)]),
        "geometric_median": (rules.geometric_median, [(1, 0.1), (2, 0.01), (3, 1.0)]),
        "centered_clipping": (rules.centered_clipping, [(0.5, 1), (1.0, 2), (9.0, 3)]),
        "norm_bounded": (rules.norm_bounded, [(0.5,), (1.0,), (9.0,)]),
        "mixing": (lambda f: rules.nearest_neighbour_mixing(rules.krum(f), f), [(0,), (1,), (2,)]),
    }
    for name, (rule, values) in make.items():
        many = jax.vmap(lambda *own, rule=rule: traced(rule(*own), stack, everyone))
        together = jax.jit(many)(*map(jnp.array, zip(*values, strict=True)))
        for own, update in zip(values, together, strict=True):
            alone = combined(rule(*own), stack, everyone)
            np.testing.assert_allclose(update, alone, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.trimmed_mean(0.5), r"share must be finite and in \[0, 1/2\); got 0.5"),
        (lambda: rules.trimmed_mean(-0.1), r"share must be finite and in \[0, 1/2\)"),
        (lambda: rules.krum(-1), "f must be a whole number, at least 0; got -1"),
        (lambda: rules.krum(1.5), "f must be a whole number, at least 0; got 1.5"),
        (lambda: rules.multi_krum(1, 0), "keep must be a whole number, at least 1; got 0"),
        (lambda: rules.geometric_median(0), "steps must be a whole number, at least 1; got 0"),
        (lambda: rules.geometric_median(3, 0.0), "smoothing must be finite and positive; got 0"),
        (lambda: rules.centered_clipping(0.0), "radius must be a number, positive or infinite"),
        (lambda: rules.norm_bounded(float("nan")), "radius must be a number, positive or infin"),
        (lambda: rules.norm_bounded("3"), "radius must be a number, positive or infinite; got '3'"),
        (lambda: rules.trimmed_mean("0.1"), r"share must be a number, in \[0, 1/2\); got '0.1'"),
        (lambda: rules.bucketing(rules.median(), 0), "size must be a whole number, at least 1"),
        (lambda: rules.bucketing("median", 2), "rule must be an aggregation rule"),
        (lambda: rules.bucketing(rules.median, 2), r"rule must take \(cohort, client_weights"),
        (lambda: answer_of(rules.krum(3), np.ones(7, bool)), r"m > 2 f \+ 2 .*m = 7 with f = 3.*9"),
        (
            lambda: answer_of(rules.bucketing(rules.krum(1), 2), np.ones(7, bool)),
            r"krum needs a cohort of m > 2 f \+ 2 clients; got m = 4 with f = 1",
        ),
        (
            lambda: answer_of(rules.nearest_neighbour_mixing(rules.median(), 4), np.ones(7, bool)),
            "needs a cohort of m > 2 f clients; got m = 7 with f = 4",
        ),
        (
            lambda: answer_of(rules.bucketing(rules.uniform, 2), np.ones(7, bool)),
            "rule must be one that sees all updates",
        ),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
