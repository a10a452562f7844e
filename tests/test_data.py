"""Federations and splits: what they hold, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_sim as fs

KEY = jax.random.key(0)


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any), seed=st.integers(0, 9)
)
def test_both_ways_to_build_agree(sizes, seed):
    rng = np.random.default_rng(seed)
    clients = [
        {"x": rng.normal(size=(n, 2)).astype(np.float32), "y": rng.integers(0, 3, n)} for n in sizes
    ]
    one = fs.FederatedData.from_clients(clients)
    # Interleave the clients' rows; each client's own stay in order.
    ids = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    left = [list(range(n)) for n in sizes]
    taken = [(k, left[k].pop(0)) for k in ids]
    rows = {name: np.stack([clients[k][name][i] for k, i in taken]) for name in ("x", "y")}
    two = fs.FederatedData.from_arrays(rows, ids, num_clients=len(sizes))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.num_clients == len(sizes)
    assert one.total_num_examples == sum(sizes)
    assert one.max_num_examples == max(sizes)
    assert one.num_examples.tolist() == sizes
    for k, n in enumerate(sizes):
        start = int(one.offsets[k])
        np.testing.assert_array_equal(one.examples["x"][start : start + n], clients[k]["x"])


def test_rows_out_of_order_are_gathered():
    data = fs.FederatedData.from_arrays(np.array([10, 20, 30, 40]), [1, 0, 1, 0])
    assert data.examples.tolist() == [20, 40, 10, 30]


def make(x, y=None):
    return {"x": np.asarray(x), "y": np.asarray(np.zeros(len(x)) if y is None else y)}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda c: c([]), "at least one client; got none"),
        (lambda c: c({"a": np.ones(1)}), "clients must be a list.*got dict"),
        (lambda c: c([make([1.0, 2.0], [1.0])]), r"same length: got 1 for \['y'\], and 2 for"),
        (lambda c: c([make([1.0]), {"x": np.ones(1)}]), "structure of client 0.*client 1"),
        (lambda c: c([np.ones((1, 2)), np.ones((1, 3))]), "one dtype and one shape.*client 1"),
        (lambda c: c([np.ones(1), np.ones(1, int)]), "one dtype and one shape.*int64"),
        (lambda c: c([np.ones((0, 2)), np.ones((0, 2))]), "needs at least one example"),
        (lambda c: c([np.ones(2), np.array([1.0, np.nan])]), "example 1 of client 1"),
        (lambda c: c([np.array([np.inf])]), "examples must be finite"),
        (lambda c: c([{"x": 1.0}]), "first axis over examples; got the scalar 1.0"),
        (lambda c: c([np.array(["a"])]), "must be numbers; got <U1"),
        (lambda c: c([{}]), "at least one array"),
        (lambda c: c([np.array([2**40])]), "must fit int32"),
        (lambda c: c([np.ones(1)], client_weights=[1, 2]), r"shape \(1,\).*got \(2,\)"),
        (lambda c: c([np.ones(1)], client_weights=[-1.0]), "not negative"),
        (lambda c: c([np.ones(1)], client_weights=[0.0]), "positive sum"),
        (lambda c: c([np.ones(1)], client_weights=[np.nan]), "must be finite"),
        (lambda c: c([np.ones(1)] * 2, client_weights=[3e38, 3e38]), "fit float32 with their sum"),
        (lambda c: c([np.ones(1)] * 2, client_weights=[1, 1e-50]), "fit float32 with their sum"),
    ],
)
def test_from_clients_refuses(build, message):
    with pytest.raises(ValueError, match=message):
        build(fs.FederatedData.from_clients)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda c: c(np.ones(3), [[0, 1], [2]]), "got a ragged list"),
        (lambda c: c(np.ones(3), [0, 1]), "one entry for each of the 3 examples"),
        (lambda c: c(np.ones(2), [0, 2], 2), r"must lie in \[0, 2\); got 2 at row 1"),
        (lambda c: c(np.ones(2), [0, -1]), r"must lie in \[0, 1\); got -1"),
        (lambda c: c(np.ones(2), [0.0, 1.0]), "must be integers; got float64"),
        (lambda c: c(np.ones(0), []), "at least one example"),
        (lambda c: c({"x": np.ones(2), "y": np.ones(3)}, [0, 1]), "same length"),
        (lambda c: jax.jit(lambda x: c(x, [0, 1]).offsets)(jnp.ones(2)), "outside jit"),
    ],
)
def test_from_arrays_refuses(build, message):
    with pytest.raises(ValueError, match=message):
        build(fs.FederatedData.from_arrays)


def test_a_federation_passes_through_jit(data):
    again = jax.jit(lambda d: d)(data)
    assert again.max_num_examples == data.max_num_examples
    assert "8 clients" in repr(again)


LABELS = np.random.default_rng(0).integers(0, 10, 600)


def test_iid():
    ids = fs.partition.iid(KEY, 103, 10)
    assert sorted(np.bincount(ids)) == [10] * 7 + [11] * 3
    assert (ids == fs.partition.iid(KEY, 103, 10)).all()
    assert (ids != fs.partition.iid(jax.random.key(1), 103, 10)).any()


def test_shards_have_few_labels():
    ids = fs.partition.shards(KEY, LABELS, 30, 2)
    assert set(np.bincount(ids)) == {20}
    kinds = [len(np.unique(LABELS[ids == k])) for k in range(30)]
    assert max(kinds) <= 4
    assert np.mean(kinds) < 3.2


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.05, 0.0, 4), (100.0, 9, 10)])
def test_dirichlet_is_skewed_as_asked(alpha, low, high):
    ids = fs.partition.dirichlet(KEY, LABELS, 10, alpha)
    assert len(ids) == 600
    assert np.bincount(ids, minlength=10).min() >= 1
    kinds = np.mean([len(np.unique(LABELS[ids == k])) for k in range(10)])
    assert low <= kinds <= high


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: p.iid(KEY, 5, 6), "num_clients must be at most the 5 examples; got 6"),
        (lambda p: p.iid(KEY, 5, 0), "num_clients must be .*got 0"),
        (lambda p: p.iid(0, 5, 2), "key must be a typed key"),
        (lambda p: p.shards(KEY, LABELS, 100, 7), "700 shards"),
        (lambda p: p.shards(KEY, LABELS, 10, 0), "shards_per_client must be .*got 0"),
        (lambda p: p.shards(KEY, LABELS / 2, 10), "labels must be integers.*float64"),
        (lambda p: p.dirichlet(KEY, LABELS, 10, 0.0), "alpha must be .*positive; got 0"),
        (lambda p: p.dirichlet(KEY, LABELS, 10, 1.0, 61), "min_examples must leave enough"),
        (lambda p: p.dirichlet(KEY, LABELS, 60, 0.01, 9), "was not met in 100 draws"),
    ],
)
def test_partition_refuses(build, message):
    with pytest.raises(ValueError, match=message):
        build(fs.partition)


def test_digits_are_the_uci_digits():
    dataset = fs.datasets.digits()
    assert dataset.train["x"].shape == (1437, 8, 8)
    assert dataset.test["x"].shape == (360, 8, 8)
    labels = np.concatenate([dataset.train["y"], dataset.test["y"]])
    # The class counts of the published test set, optdigits.names.
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert dataset.train["x"].min() == 0
    assert dataset.train["x"].max() == 1


def test_wind_regions_differ_and_repeat():
    one, two = fs.datasets.wind(KEY), fs.datasets.wind(KEY)
    np.testing.assert_array_equal(one.train["x"], two.train["x"])
    assert (fs.datasets.wind(jax.random.key(1)).train["x"][:5] != one.train["x"][:5]).any()
    assert set(one.client_ids) == set(range(10))
    assert len(set(np.bincount(one.client_ids))) > 5
    assert one.num_classes is None
    data = fs.FederatedData.from_arrays(one.train, one.client_ids)
    # At 8 to 9 m/s regions give quite different power: they have curves of their own.
    speed = one.train["x"][:, 0] * 10
    near = (speed > 8) & (speed < 9)
    means = [one.train["y"][near & (one.client_ids == k)].mean() for k in range(10)]
    assert np.nanmax(means) > 1.8 * np.nanmin(means)
    assert data.num_clients == 10
