"""Splits: every example once, as skewed as asked, and described by figures checked by hand."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import fedjax_sim as fs

KEY = jax.random.key(0)
LABELS = np.random.default_rng(0).integers(0, 10, 600)
P = fs.partition

SPLITS = {
    "iid": lambda key, y, k, x: P.iid(key, len(y), k),
    "shards": lambda key, y, k, x: P.shards(key, y, k, 1),
    "dirichlet": lambda key, y, k, x: P.dirichlet(key, y, k, x, min_examples=0),
    "hsu": lambda key, y, k, x: P.dirichlet(key, y, k, x, equal_sizes=True),
    "lognormal": lambda key, y, k, x: P.quantity(key, len(y), k, "lognormal", x),
    "power_law": lambda key, y, k, x: P.quantity(key, len(y), k, "power_law", x),
    "quantity": lambda key, y, k, x: P.quantity(key, len(y), k, "dirichlet", x),
}


@pytest.mark.parametrize("name", SPLITS)
@settings(max_examples=30)
@given(
    size=st.integers(1, 80),
    classes=st.integers(1, 6),
    share=st.floats(0, 1),
    parameter=st.sampled_from([1e-300, 1e-6, 0.1, 1.0, 30.0, 1e6]),
    seed=st.integers(0, 3),
)
def test_every_example_goes_to_one_client(name, size, classes, share, parameter, seed):
    labels = np.random.default_rng(seed).integers(0, classes, size)
    clients = max(1, round(share * size))
    ids, again = (SPLITS[name](jax.random.key(seed), labels, clients, parameter) for _ in range(2))
    np.testing.assert_array_equal(ids, again)
    assert ids.shape == (size,)
    assert ids.dtype == np.int32
    sizes = np.bincount(ids, minlength=clients)
    assert len(sizes) == clients  # no id beyond
    assert sizes.sum() == size
    if name != "dirichlet":
        assert sizes.min() >= 1
    if name in ("iid", "hsu", "shards"):
        assert sizes.max() - sizes.min() <= 1


@settings(max_examples=40)
@given(
    classes=st.integers(1, 8),
    clients=st.integers(1, 20),
    held=st.integers(1, 8),
    extra=st.integers(0, 40),
    seed=st.integers(0, 3),
)
def test_every_client_has_just_so_many_classes(classes, clients, held, extra, seed):
    held = min(held, classes)
    if clients * held < classes:
        clients = -(-classes // held)
    rng = np.random.default_rng(seed)
    # Every class has an example for each client, and some classes have more; names have holes.
    labels = 3 * rng.permutation(
        np.append(np.repeat(np.arange(classes), clients), rng.integers(0, classes, extra))
    )
    ids = P.labels(jax.random.key(seed), labels, clients, held)
    counts = P.describe(ids, labels, clients).counts
    assert ((counts > 0).sum(axis=1) == held).all()
    holders = (counts > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1
    for column in counts.T:  # a class is split evenly over who holds it
        assert np.ptp(column[column > 0]) <= 1


def test_splits_of_another_key_differ():
    for split in SPLITS.values():
        ids = [split(jax.random.key(seed), LABELS, 20, 0.5) for seed in (0, 1)]
        assert (ids[0] != ids[1]).any()


def test_iid():
    ids = P.iid(KEY, 103, 10)
    assert sorted(np.bincount(ids)) == [10] * 7 + [11] * 3


def test_shards_have_few_labels():
    ids = P.shards(KEY, LABELS, 30, 2)
    assert set(np.bincount(ids)) == {20}
    found = P.describe(ids, LABELS)
    assert (found.counts > 0).sum(axis=1).max() <= 4
    assert found.classes_per_client < 3.2


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.05, 0.0, 4), (100.0, 9, 10)])
@pytest.mark.parametrize("equal_sizes", [False, True])
def test_dirichlet_is_skewed_as_asked(alpha, low, high, equal_sizes):
    found = P.describe(P.dirichlet(KEY, LABELS, 10, alpha, equal_sizes=equal_sizes), LABELS)
    assert found.num_clients == 10
    assert found.smallest >= 1
    assert low <= found.classes_per_client <= high


def test_hsus_first_clients_have_dirichlets_variance():
    """Of q ~ Dir(alpha p): var q_c = p_c (1 - p_c) / (alpha + 1), until classes run out."""
    labels = np.arange(40_000) % 4
    ids = P.dirichlet(KEY, labels, 400, 1.0, equal_sizes=True)
    shares = P.describe(ids, labels).counts[:150] / 100
    by_multinomial = 0.25 * 0.75 / 100
    expected = 0.25 * 0.75 / 2 * (1 - 1 / 100) + by_multinomial
    assert shares.var(axis=0).mean() == pytest.approx(expected, rel=0.12)


def test_sizes_follow_their_law():
    n, k = 1_000_000, 400
    sizes = np.sort(np.bincount(P.quantity(KEY, n, k, "lognormal", 0.7)))
    assert np.log(sizes).std() == pytest.approx(0.7, rel=0.1)
    sizes = np.sort(np.bincount(P.quantity(KEY, n, k, "power_law", 1.5, min_examples=0)))[::-1]
    shares = np.arange(1, k + 1) ** -1.5
    np.testing.assert_allclose(sizes, n * shares / shares.sum(), atol=1)
    sizes = np.bincount(P.quantity(KEY, n, k, "dirichlet", 2.0), minlength=k)
    # The share of Dirichlet(2, ..., 2): variation sqrt((K - 1) / (2 K + 1)).
    assert sizes.std() / sizes.mean() == pytest.approx(np.sqrt((k - 1) / (2 * k + 1)), rel=0.1)


def test_sizes_at_the_ends_of_a_law():
    for skew in ("lognormal", "power_law"):
        assert set(np.bincount(P.quantity(KEY, 100, 10, skew, 0.0))) == {10}
        sizes = np.bincount(P.quantity(KEY, 100, 10, skew, 1e6), minlength=10)
        assert sorted(sizes) == [1] * 9 + [91]
        sizes = np.bincount(P.quantity(KEY, 100, 10, skew, 1e6, min_examples=0), minlength=10)
        assert sorted(sizes) == [0] * 9 + [100]
    assert np.bincount(P.quantity(KEY, 100, 10, "power_law", 1.0, 7)).min() >= 7


def test_natural_ids_are_counted_as_they_appear():
    assert P.natural(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
    assert P.natural([(1, "x"), (0, "x"), (1, "x")]).tolist() == [0, 1, 0]
    assert P.natural(np.array([70, -3, 70])).tolist() == [0, 1, 0]
    assert P.natural(np.array(["f00", "f01"])).dtype == np.int32


def test_rotation_keeps_the_edge():
    """A turn by next to nothing changes next to nothing, there too."""
    images = np.random.default_rng(0).uniform(size=(3, 8, 8))
    turned, _ = P.rotation(KEY, images, [0, 0, 0], [1e-6])
    np.testing.assert_allclose(turned, images, atol=1e-5)
    x = np.arange(5.0) - 2
    angle = np.deg2rad(30)
    bilinear, _ = P.rotation(KEY, np.ones((1, 5, 5)), [0], [30])
    rows, columns = np.meshgrid(x, x, indexing="ij")
    from_rows = np.cos(angle) * rows + np.sin(angle) * columns  # where a pixel comes from
    from_columns = -np.sin(angle) * rows + np.cos(angle) * columns
    inside = np.clip(3 - np.abs(from_rows), 0, 1) * np.clip(3 - np.abs(from_columns), 0, 1)
    np.testing.assert_allclose(bilinear[0], inside, atol=1e-12)  # a square that fades in a pixel


def test_numbers_of_numpy_are_numbers():
    images = np.ones((2, 4, 4))
    one, _ = P.rotation(KEY, images, [0, 1], np.float32(30))
    other, _ = P.rotation(KEY, images, [0, 1], 30)
    np.testing.assert_array_equal(one, other)
    split = P.quantity(KEY, 20, 4, min_examples=np.int64(3))
    assert np.bincount(split).min() >= 3


def test_rotation_by_hand():
    image = np.arange(6.0).reshape(1, 2, 3)
    turned, angles = P.rotation(KEY, image, [0], [180])
    np.testing.assert_array_equal(turned, image[:, ::-1, ::-1])
    assert angles.tolist() == [180]
    square = np.arange(2 * 3 * 3 * 2).reshape(2, 3, 3, 2)  # two channels
    turned, _ = P.rotation(KEY, square, [0, 0], [-90])
    for i in range(2):
        for c in range(2):
            np.testing.assert_array_equal(turned[i, :, :, c], np.rot90(square[i, :, :, c], -1))


def test_a_turn_by_any_angle_goes_the_same_way():
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(1, 25, 25, 1)), (0, 2, 2, 0))
    smooth *= np.hypot(*np.meshgrid(*[np.arange(-12, 13)] * 2))[None, :, :, None] < 9
    near, _ = P.rotation(KEY, smooth, [0], [90.01])
    exact, _ = P.rotation(KEY, smooth, [0], [90])
    np.testing.assert_allclose(near, exact, atol=5e-3 * np.abs(smooth).max())


def test_a_clients_shift_is_its_own():
    rng = np.random.default_rng(0)
    x, ids = rng.normal(size=(40, 5, 5)).astype(np.float32), rng.integers(0, 8, 40)
    for shift in (
        lambda x, ids: P.rotation(KEY, x, ids, 30.0),
        lambda x, ids: P.noise(KEY, x, ids, 0.5),
    ):
        all_of_them, values = shift(x, ids)
        assert len(set(values)) == 8
        assert all_of_them.dtype == np.float32
        few, first = shift(x[ids < 3], ids[ids < 3])  # three clients of the eight
        np.testing.assert_array_equal(first, values[:3])
        np.testing.assert_array_equal(few, all_of_them[ids < 3])
        assert (np.abs(values) <= 30).all()


def test_noise_has_its_level():
    ids = np.repeat([0, 1, 2, 3], 5000)
    noisy, levels = P.noise(KEY, np.ones((20_000, 4)), ids, [0.0, 0.5, 2.0])
    assert set(levels) <= {0.0, 0.5, 2.0}
    for k, level in enumerate(levels):
        mine = noisy[ids == k]
        assert mine.std() == pytest.approx(level, rel=0.03)
        assert mine.mean() == pytest.approx(1, abs=0.05)


def test_whole_numbers_stay_whole():
    images = np.full((1, 9, 9), 200, np.uint8)
    turned, _ = P.rotation(KEY, images, [0], [10])
    assert turned.dtype == np.uint8
    assert turned[0, 4, 4] == 200


def test_figures_by_hand():
    # Client 0: 3 of class 5 and 1 of 7; client 1: none; client 2: 2 of class 7.
    found = P.describe([0, 0, 2, 0, 0, 2], [5, 5, 7, 5, 7, 7], num_clients=3)
    assert found[:2] == (3, 6)
    assert found.sizes.tolist() == [4, 0, 2]
    assert (found.smallest, found.median, found.mean, found.largest) == (0, 2, 2, 4)
    assert found.variation == pytest.approx(np.sqrt(8 / 3) / 2)
    assert found.empty == 1
    assert found.classes.tolist() == [5, 7]
    assert found.counts.tolist() == [[3, 1], [0, 0], [0, 2]]
    assert found.classes_per_client == 1.5
    # Of all a half is of each class: client 0 is 1/4 away and client 2 a half.
    assert found.total_variation == pytest.approx((0.25 + 0.5) / 2)
    plain = P.describe([0, 0, 2])
    assert (plain.num_clients, plain.counts, plain.total_variation) == (3, None, None)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: P.iid(KEY, 5, 6), "num_clients must be at most the 5 examples; got 6"),
        (lambda: P.iid(KEY, 5, 0), "num_clients must be .*got 0"),
        (lambda: P.iid(0, 5, 2), "key must be a typed key"),
        (lambda: P.shards(KEY, LABELS, 100, 7), "700 shards"),
        (lambda: P.shards(KEY, LABELS, 10, 0), "shards_per_client must be .*got 0"),
        (lambda: P.shards(KEY, LABELS / 2, 10), "labels must be integers.*float64"),
        (lambda: P.shards(KEY, None, 10), "labels must be integers.*got None"),
        (lambda: P.shards(KEY, LABELS[:, None], 10), r"labels must be integers.*\(600, 1\)"),
        (lambda: P.labels(KEY, LABELS[:, None], 10), r"labels must be integers.*\(600, 1\)"),
        (lambda: P.labels(KEY, LABELS, 10, 11), "at most the 10 classes of the labels; got 11"),
        (lambda: P.labels(KEY, LABELS, 10, 0), "classes_per_client must be .*got 0"),
        (lambda: P.labels(KEY, LABELS, 4, 2), "give each of the 10 classes a client; got 2"),
        (
            lambda: P.labels(KEY, [0] * 9 + [1], 4, 2),
            "gives class 1 to 4 of the 4 clients, and it has 1 examples",
        ),
        (lambda: P.labels(KEY, LABELS, 601, 2), "at most the 600 examples"),
        (lambda: P.dirichlet(KEY, LABELS, 10, 0.0), "alpha must be .*positive.*; got 0"),
        (lambda: P.dirichlet(KEY, LABELS, 10, 1e308), "alpha must be .*1e200; got 1e.308"),
        (lambda: P.quantity(KEY, 10, 2, "dirichlet", 1e308), "parameter must be .*1e200 .of skew"),
        (lambda: P.dirichlet(KEY, LABELS, 10, -1.0), "alpha must be .*positive.*; got -1"),
        (lambda: P.dirichlet(KEY, LABELS, 10, 1.0, 61), "min_examples must leave enough"),
        (lambda: P.dirichlet(KEY, LABELS, 10, 1.0, -1), "min_examples must be .*got -1"),
        (lambda: P.dirichlet(KEY, LABELS, 60, 0.01, 9), "was not met in 100 draws"),
        (lambda: P.quantity(KEY, 10, 11), "num_clients must be at most the 10 examples; got 11"),
        (lambda: P.quantity(KEY, 10, 2, "zipf"), "skew must be one of lognormal, .*'zipf'"),
        (lambda: P.quantity(KEY, 10, 2, "lognormal", -1), "parameter .*at least 0 .*got -1"),
        (lambda: P.quantity(KEY, 10, 2, "dirichlet", 0), "parameter .*positive.*got 0"),
        (lambda: P.quantity(KEY, 10, 2, min_examples=6), "min_examples must leave enough for 2"),
        (lambda: P.natural([]), "at least one; got none"),
        (lambda: P.natural([1, [2]]), "ids must be hashable.*got list at row 1"),
        (lambda: P.natural(np.zeros((3, 2))), "ids must be hashable.*got list at row 0"),
        (lambda: P.natural([0.5, float("nan")]), "missing; got nan at row 1"),
        (lambda: P.rotation(KEY, np.ones((2, 9)), [0, 0]), r"\[N, H, W\].*got \(2, 9\)"),
        (lambda: P.rotation(KEY, np.ones((1, 2, 3)), [0], [90]), "square images; got 90 for 2 x 3"),
        (lambda: P.rotation(KEY, np.ones((1, 2, 2)), [0], []), "angles must hold at least one"),
        (lambda: P.rotation(KEY, np.ones((1, 2, 2)), [0, 1]), "each of the 1 images; got 2"),
        (lambda: P.rotation(KEY, np.ones((1, 2, 2)), [0], [np.inf]), "angles must be finite"),
        (lambda: P.noise(KEY, np.ones(2), [0, 0], -1.0), "levels .*at least 0; got -1"),
        (lambda: P.noise(KEY, np.ones(2, int), [0, 0]), "x must be floats.*int64"),
        (lambda: P.noise(KEY, np.ones(2), [0, -1]), "client_ids must be at least 0; got -1"),
        (lambda: P.describe([0, 3], num_clients=3), r"client_ids must be in \[0, 3\); got 3"),
        (lambda: P.describe([0.0, 1.0]), "client_ids must be integers.*float64"),
        (lambda: P.describe([0, 1], [1, 2, 3]), "as many as the 2 client_ids; got 3"),
        (lambda: P.describe([0, 1], [0.5, 1.0]), "labels must be integers.*float64"),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    with pytest.raises(ValueError, match=re.compile(message, re.S)):
        build()


def parts(figure):
    """The map, if there is one, and the bars."""
    axes = {ax.get_ylabel(): ax for ax in figure.axes}
    return axes.get("class"), axes["clients"]


def test_the_picture_has_the_shares_and_the_sizes():
    found = P.describe([0, 0, 2, 0, 0, 2], [5, 5, 7, 5, 7, 7], num_clients=3)
    cells, bars = parts(fs.plots.split(found))
    shares = cells.collections[0].get_array()
    np.testing.assert_allclose(shares.filled(np.nan), [[0.75, np.nan, 0], [0.25, np.nan, 1]])
    assert [text.get_text() for text in cells.get_yticklabels()] == ["5", "7"]
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in bars.patches}
    assert heights == {2: 1, 3: 0, 4: 1}
    assert "1 of 3 clients have none" in bars.get_xlabel()


@pytest.mark.parametrize("clients", [10, 100, 1000])
def test_many_clients_are_sorted_and_averaged(clients):
    labels = np.arange(20_000) % 10
    ids = P.dirichlet(KEY, labels, clients, 0.1, min_examples=0)
    found = P.describe(ids, labels, clients)
    cells, _ = parts(fs.plots.split(found))
    shares = np.asarray(cells.collections[0].get_array()).T
    assert len(shares) == min(200, clients - found.empty)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    if clients == 100:
        largest = shares.argmax(axis=1)
        assert (np.diff(largest) >= 0).all()
    if clients == 1000:
        assert f"{clients - found.empty} clients" in cells.get_xlabel()


def test_without_labels_there_is_the_histogram_alone():
    ids = P.quantity(KEY, 5000, 100, "lognormal", 1.5)
    figure = fs.plots.split(P.describe(ids))
    cells, bars = parts(figure)
    assert cells is None
    assert bars.get_xscale() == "log"  # sizes span more than 20
    assert sum(bar.get_height() for bar in bars.patches) == 100
