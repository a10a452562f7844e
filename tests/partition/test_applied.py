"""A split applied to other examples: the same clients, the same shares of each class."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs

P, KEY = fs.partition, jax.random.key(0)


@settings(max_examples=60)
@given(
    size=st.integers(1, 80),
    others=st.integers(1, 60),
    classes=st.integers(1, 5),
    clients=st.integers(1, 12),
    seed=st.integers(0, 5),
)
def test_each_client_has_its_share_of_each_class(size, others, classes, clients, seed):
    rng = np.random.default_rng(seed)
    labels, ids = rng.integers(0, classes, size), rng.integers(0, clients, size)
    other_labels = rng.choice(labels, others)
    key = jax.random.key(seed)
    dealt, again = (
        P.apply_to(key, ids, others, labels=labels, other_labels=other_labels) for _ in range(2)
    )
    np.testing.assert_array_equal(dealt, again)
    assert dealt.shape == (others,)
    assert dealt.dtype == np.int32
    assert set(dealt) <= set(ids)
    for c in np.unique(other_labels):
        mine = np.bincount(ids[labels == c], minlength=clients)
        got = np.bincount(dealt[other_labels == c], minlength=clients)
        exact = mine / mine.sum() * (other_labels == c).sum()
        assert (np.abs(got - exact) < 1).all()
        assert (got[mine == 0] == 0).all()
    # Without labels, the shares of all examples together.
    got = np.bincount(P.apply_to(key, ids, others), minlength=clients)
    exact = np.bincount(ids, minlength=clients) / size * others
    assert (np.abs(got - exact) < 1).all()


def test_shares_are_right_in_expectation():
    ids = np.repeat(np.arange(4), [1, 2, 3, 14])
    counts = [np.bincount(P.apply_to(jax.random.key(i), ids, 10), minlength=4) for i in range(600)]
    # Exactly 0.5, 1, 1.5 and 7; a mean of 600 is within 4 standard errors, 0.5 / 600^0.5 at most.
    np.testing.assert_allclose(np.mean(counts, axis=0), [0.5, 1, 1.5, 7], atol=0.082)


@pytest.mark.parametrize("split", ["shards", "labels", "dirichlet"])
def test_a_skewed_split_has_skewed_test_sets(split):
    rng = np.random.default_rng(0)
    labels, other_labels = (
        rng.permutation(np.arange(1000) % 10),
        rng.permutation(np.arange(200) % 10),
    )
    ids = {
        "shards": lambda: P.shards(KEY, labels, 10),
        "labels": lambda: P.labels(KEY, labels, 10),
        "dirichlet": lambda: P.dirichlet(KEY, labels, 10, 0.3),
    }[split]()
    dealt = P.apply_to(KEY, ids, 200, labels=labels, other_labels=other_labels)
    train = P.describe(ids, labels, 10).counts
    test = P.describe(dealt, other_labels, 10).counts
    # A fifth of what the client trains on, of each class.
    assert (np.abs(test - train / 5) < 1).all()


def test_shifted_features_are_shifted_for_the_others_too():
    """Client k's shift is drawn from (key, k), whatever examples it is given."""
    ids = np.repeat([0, 1, 2], 40)
    dealt = P.apply_to(KEY, ids, 30)
    images = np.random.default_rng(0).normal(size=(30, 8, 8, 1)).astype(np.float32)
    turned, _ = P.rotation(KEY, images, dealt)
    # With twice as many examples, in which every client has others.
    both = np.concatenate([images, images]), np.append(dealt, np.roll(dealt, 1))
    np.testing.assert_array_equal(turned, P.rotation(KEY, *both)[0][:30])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_examples": 0}, "num_examples must be a whole number, at least 1; got 0"),
        ({"client_ids": [0.5]}, "client_ids must be integers"),
        ({"client_ids": [0, -1]}, "client_ids must be at least 0; got -1"),
        ({"labels": [0, 1]}, "must both be given, or neither; got no other_labels"),
        ({"other_labels": [0, 1, 1]}, "must both be given, or neither; got no labels"),
        ({"labels": [0], "other_labels": [0] * 3}, "labels must be one for each of the 2 examples"),
        ({"labels": [0, 1], "other_labels": [0]}, "other_labels must be one for each of the 3"),
        ({"labels": [0, 1], "other_labels": [0, 1, 2]}, "classes that labels has; got 2, which no"),
        ({"labels": [0.0, 1.0], "other_labels": [0, 1, 0]}, "labels must be integers"),
        ({"key": 0}, "key"),
    ],
)
def test_refusals(arguments, message):
    right = {"key": KEY, "client_ids": [0, 1], "num_examples": 3}
    with pytest.raises(ValueError, match=message):
        P.apply_to(**(right | arguments))
