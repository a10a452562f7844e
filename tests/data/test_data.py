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
        (lambda c: c([np.ones(1)] * 2, client_weights=[1, 1e-50]), "fit float32 beside each other"),
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


def test_synthetic_is_what_its_formula_says():
    """x's covariance by client, labels that a linear rule explains, sizes and the tenth."""
    made = fs.datasets.synthetic(KEY, 1.0, 1.0, num_clients=200)
    ids = made.client_ids
    sizes = np.bincount(ids)
    assert sizes.min() >= 45  # int(0.9 x 50)
    whole = len(ids) + len(made.test["y"])
    assert len(ids) == pytest.approx(0.9 * whole, abs=200)
    # log(n - 50) ~ N(4, 2): its median, of 200 draws.
    assert np.median(np.log(np.maximum(sizes / 0.9 - 50, 0.5))) == pytest.approx(4, abs=0.6)
    largest = int(sizes.argmax())
    x = made.train["x"][ids == largest]
    np.testing.assert_allclose(x.var(axis=0), np.arange(1, 61) ** -1.2, rtol=0.15)
    assert set(np.unique(made.train["y"])) == set(range(10))


def test_synthetics_alpha_and_beta_are_deviations():
    """The mean of x over examples and features is B_k, up to N(0, 1/60)."""
    for beta in (0.5, 3.0):
        made = fs.datasets.synthetic(KEY, 0.0, beta, num_clients=150)
        means = [made.train["x"][made.client_ids == k].mean() for k in range(150)]
        assert np.std(means) == pytest.approx(np.sqrt(beta**2 + 1 / 60), rel=0.15)


def test_synthetic_iid_has_one_model():
    made = fs.datasets.synthetic(KEY, iid=True, num_clients=40)
    assert np.abs(made.train["x"].mean(axis=0)).max() < 0.1
    found = fs.partition.describe(made.client_ids, made.train["y"])
    apart = fs.datasets.synthetic(KEY, 1.0, 1.0, num_clients=40)
    skewed = fs.partition.describe(apart.client_ids, apart.train["y"])
    assert found.total_variation < 0.2 < 0.5 < skewed.total_variation
    # One W and b: least squares on half of the clients tells the labels of the others.
    x = np.concatenate([made.train["x"], np.ones((len(made.train["x"]), 1))], axis=1)
    half = made.client_ids < 20
    w, *_ = np.linalg.lstsq(x[half], np.eye(10)[made.train["y"][half]], rcond=None)
    assert ((x[~half] @ w).argmax(axis=1) == made.train["y"][~half]).mean() > 0.6


def test_synthetic_clients_do_not_depend_on_their_number():
    few, many = (fs.datasets.synthetic(KEY, 0.5, 0.5, num_clients=k) for k in (3, 30))
    assert set(many.client_ids) == set(range(30))
    np.testing.assert_array_equal(few.train["x"], many.train["x"][many.client_ids < 3])
    np.testing.assert_array_equal(few.train["y"], many.train["y"][many.client_ids < 3])
    with pytest.raises(ValueError, match="alpha must be finite and at least 0; got -1"):
        fs.datasets.synthetic(KEY, alpha=-1)
    with pytest.raises(ValueError, match=r"num_clients must be .*got 0"):
        fs.datasets.synthetic(KEY, num_clients=0)


@given(
    sizes=st.lists(st.integers(0, 40) | st.integers(0, 10**5), min_size=1, max_size=30).filter(any)
)
def test_full_batches_are_padded_to_a_few_sizes(sizes):
    """Four at most, none worse than one, in examples and client by client."""
    from fedjax_sim.data import padded_sizes

    padded = padded_sizes(np.array(sizes))
    assert list(padded) == sorted(set(padded))
    assert len(padded) <= 4
    assert padded[-1] == max(sizes)

    own = np.maximum([n for n in sizes if n], min(16, max(sizes)))
    held = np.array(padded)[np.searchsorted(padded, own)]
    alone = max(own)
    cost = held.sum() / own.sum() + (held / own).mean()
    assert cost <= alone * len(own) / own.sum() + (alone / own).mean() + 1e-9
    if max(sizes) <= 16 * 2**3:  # four powers of two: each pads to twice its own at most
        assert cost <= 1.25 * (2 + 2)


def test_equal_clients_have_one_padded_size():
    data = fs.FederatedData.from_clients([np.zeros(60)] * 3)
    assert data.padded_sizes == (60,)
    outlier = fs.FederatedData.from_clients([np.zeros(60)] * 99 + [np.zeros(10_000)])
    assert outlier.padded_sizes == (60, 10_000)
