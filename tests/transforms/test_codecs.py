"""Codecs of one update beside NumPy: what is decoded, its mean over draws, its bits, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.transforms.compression.hadamard import rotated, turned_back

compression = fs.compression
DRAWS = 10_000
KEY = jax.random.key(0)
X = np.array([0.3, -2.0, 0.0, 1.7, -0.2, 0.9, 5.0], np.float32)
ALL = {
    "top_k": compression.top_k(0.3),
    "random_k": compression.random_k(0.3),
    "biased random_k": compression.random_k(0.3, unbiased=False),
    "quantise": compression.quantise(3),
    "rotated": compression.quantise(3, rotated=True),
    "sign": compression.sign(),
    "drive": compression.drive(),
}


def sent_and_kept(codec, update, key=None, residual=None):
    residual = codec.init(update) if residual is None else residual
    wire, residual = codec.encode(update, residual, KEY if key is None else key)
    return wire, codec.decode(wire), residual


def over_draws(codec, x):
    def decoded(key):
        return codec.decode(codec.encode(x, codec.init(x), key)[0])

    return np.asarray(jax.jit(jax.vmap(decoded))(jax.random.split(jax.random.key(1), DRAWS)))


def hadamard(d):
    """Sylvester's matrix, entry by entry."""
    odd = [[bin(i & j).count("1") % 2 for j in range(d)] for i in range(d)]
    return 1.0 - 2.0 * np.array(odd)


def rotation(d, key):
    """R as a matrix, one column of the identity at a time."""
    return np.asarray(jax.jit(jax.vmap(rotated, (0, None)))(jnp.eye(d), key), np.float64).T


@pytest.mark.parametrize("d", [1, 3, 8, 12, 100])
def test_a_rotation_keeps_lengths_and_is_undone(d):
    key = jax.random.key(d)
    r = rotation(d, key)
    np.testing.assert_allclose(r @ r.T, np.eye(d), atol=2e-6)
    x = jax.random.normal(key, (d,))
    np.testing.assert_allclose(turned_back(rotated(x, key), key), x, atol=2e-6)
    if d & (d - 1) == 0:  # H D / sqrt(d) with signs D
        signs = np.diag(hadamard(d) @ r) / np.sqrt(d)
        np.testing.assert_allclose(np.abs(signs), 1, atol=1e-5)
        np.testing.assert_allclose(r, hadamard(d) * signs / np.sqrt(d), atol=2e-6)
    assert d == 1 or not np.allclose(r, rotation(d, jax.random.key(d + 1)))


def test_a_rotation_spreads_one_large_entry():
    """Of lengths that are no power of two as well: no entry has more than a few times its share."""
    for d in (1024, 1025, 2047):
        y = jax.jit(jax.vmap(rotated, (0, None)))(jnp.eye(d)[jnp.array([0, d // 2, d - 1])], KEY)
        assert np.abs(np.asarray(y)).max() < 8 / np.sqrt(d)


@pytest.mark.parametrize("name", ["random_k", "quantise", "rotated"])
def test_the_mean_over_draws_is_the_update(name):
    decoded = over_draws(ALL[name], jnp.asarray(X))
    standard_errors = decoded.std(0, ddof=1) / np.sqrt(DRAWS)
    # An entry without spread, as the largest of all, is met but for rounding.
    assert (np.abs(decoded.mean(0) - X) <= 4 * standard_errors + 1e-6).all()
    assert (standard_errors > 1e-4).sum() >= 4


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
def test_quantised_entries_are_neighbouring_levels(bits):
    x = np.random.default_rng(0).normal(size=500).astype(np.float32)
    codec = compression.quantise(bits)
    wire, decoded, residual = sent_and_kept(codec, jnp.asarray(x))
    wide = x.astype(np.float64)
    step = (wide.max() - wide.min()) / (2**bits - 1)
    levels = (np.asarray(decoded, np.float64) - wide.min()) / step
    np.testing.assert_allclose(levels, np.round(levels), atol=0.02)
    assert np.abs(decoded - wide).max() < step * 1.01
    np.testing.assert_array_equal(residual, x - decoded)
    assert wire.parts.level.dtype == (np.uint8 if bits <= 8 else np.uint16)
    assert codec.bits(jnp.asarray(x)) == 500 * bits + 64
    up = (np.asarray(decoded) > x).mean()
    assert 0.3 < up < 0.7


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("share", [0.04, 0.5, 1.0])
def test_many_of_many_are_those_of_a_sort(share, dtype):
    """Of equal sizes the first; with zeros, a NaN and an infinity among them."""
    x = np.random.default_rng(0).integers(-40, 40, 5000).astype(np.float32)
    x[[7, 4999]] = np.nan, -np.inf
    codec = compression.top_k(share)
    wire, _ = codec.encode(jnp.asarray(x, dtype), jnp.zeros(5000, dtype), KEY)
    order = np.argsort(-np.nan_to_num(np.abs(x), nan=2e38, posinf=1e38), kind="stable")
    expected = np.sort(order[: int(share * 5000)])
    np.testing.assert_array_equal(np.sort(wire.indices), expected)
    expected_values = np.asarray(jnp.asarray(x, dtype), np.float32)[wire.indices]
    np.testing.assert_array_equal(np.asarray(wire.values, np.float32), expected_values)


def test_signs_and_their_scale_are_those_of_numpy():
    _, decoded, residual = sent_and_kept(compression.sign(), jnp.asarray(X))
    wide = X.astype(np.float64)
    expected = np.abs(wide).sum() / 7 * np.where(wide < 0, -1, 1)
    np.testing.assert_allclose(decoded, expected, rtol=1e-6)
    np.testing.assert_allclose(residual, wide - expected, atol=1e-6)
    # With the residual of before, its signs are those of the sum.
    _, second, _ = sent_and_kept(compression.sign(), jnp.asarray(X), residual=residual)
    owed = 2 * wide - expected
    np.testing.assert_allclose(second, np.abs(owed).mean() * np.where(owed < 0, -1, 1), rtol=1e-6)


@pytest.mark.parametrize("d", [7, 8])
def test_drive_is_that_of_numpy(d):
    x, key = np.resize(X, d).astype(np.float64), jax.random.key(5)
    _, decoded, residual = sent_and_kept(compression.drive(), jnp.asarray(x, jnp.float32), key)
    r = rotation(d, jax.random.fold_in(key, 0))  # the key of the first leaf
    y = r @ x
    expected = r.T @ (np.where(y < 0, -1, 1) * (x @ x) / np.abs(y).sum())
    np.testing.assert_allclose(decoded, expected, atol=2e-5)
    np.testing.assert_allclose(residual, x - expected, atol=2e-5)
    # The paper's scale keeps the inner product.
    np.testing.assert_allclose(np.asarray(decoded) @ x, x @ x, rtol=1e-5)


def test_drive_errs_as_the_paper_says():
    """Of many entries by pi / 2 - 1 of the squared length, however they are distributed."""
    for x in (np.ones(4096), np.random.default_rng(0).lognormal(size=4096)):
        _, decoded, _ = sent_and_kept(ALL["drive"], jnp.asarray(x, jnp.float32))
        errors = ((np.asarray(decoded, np.float64) - x) ** 2).sum()
        np.testing.assert_allclose(errors, (np.pi / 2 - 1) * (x @ x), rtol=0.1)


def test_what_random_k_sends_is_drawn_anew_and_evenly():
    codec = ALL["random_k"]
    decoded = over_draws(codec, jnp.ones(7))
    np.testing.assert_allclose(np.sort(decoded, 1)[:, -3:], 7 / 3, rtol=1e-6)
    assert ((decoded != 0).sum(1) == 3).all()
    shares = (decoded != 0).mean(0)
    assert np.abs(shares - 3 / 7).max() < 4 * np.sqrt(3 / 7 * 4 / 7 / DRAWS)
    wire, kept, residual = sent_and_kept(ALL["biased random_k"], jnp.asarray(X))
    np.testing.assert_array_equal(kept + residual, X)
    assert wire.arrays.parts.values.shape == (3,)
    # Two leaves of one size are not drawn alike.
    _, two, _ = sent_and_kept(codec, {"a": jnp.ones(99), "b": jnp.ones(99)})
    assert (two["a"] != two["b"]).any()


@pytest.mark.parametrize("name", ALL)
def test_odd_leaves_and_odd_numbers(name):
    """No entries, one, 0 alone, another dtype; a NaN is decoded to one, so that it is noticed."""
    codec = ALL[name]
    update = {
        "none": jnp.zeros((0, 2)),
        "one": jnp.ones(()),
        "zeros": jnp.zeros((2, 3)),
        "half": jnp.arange(6.0).astype(jnp.bfloat16).reshape(3, 2),
    }
    _, decoded, residual = sent_and_kept(codec, update)
    for tree in (decoded, residual) if jax.tree.leaves(residual) else (decoded,):
        specs = [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
        assert specs == [(x.shape, x.dtype) for x in jax.tree.leaves(update)]
        assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(tree))
    np.testing.assert_array_equal(decoded["zeros"], 0)
    np.testing.assert_allclose(decoded["one"], 1, rtol=1e-6)
    if name in ("random_k", "biased random_k"):
        return  # which sends those entries alone that are drawn
    for odd in (np.nan, np.inf):
        _, decoded, _ = sent_and_kept(codec, jnp.ones(5).at[3].set(odd))
        assert not np.isfinite(decoded).all()


def test_bits_are_counted_by_hand():
    """Two leaves of 6 and 5 entries; floats that go with 16-bit numbers have 32."""
    update = {"w": jnp.ones((2, 3)), "b": jnp.ones(5, jnp.bfloat16), "none": jnp.ones(0)}
    for codec, bits in (
        (compression.sign(), 6 + 32 + 5 + 32),
        (compression.drive(), 6 + 32 + 5 + 32 + 64),
        (compression.random_k(0.5), 3 * 32 + 3 * 16 + 64),
        (compression.quantise(3), 3 * 6 + 64 + 3 * 5 + 64),
        (compression.quantise(3, rotated=True), 3 * 6 + 64 + 3 * 5 + 64 + 64),
    ):
        assert codec.bits(update) == bits


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=5, max_size=5),
    st.sampled_from(["top_k", "biased random_k", "quantise", "rotated", "sign", "drive"]),
)
def test_what_is_decoded_and_held_back_are_the_update(numbers, name):
    x = np.array(numbers, np.float32)
    _, decoded, residual = sent_and_kept(ALL[name], jnp.asarray(x))
    np.testing.assert_allclose(decoded + residual, x, atol=1e-4)


@pytest.mark.parametrize("bits", [0, 17, -1, 2.0, True, "8", None])
def test_bits_that_are_none_are_refused(bits):
    with pytest.raises(ValueError, match=r"bits must be a whole number in 1\.\.16.*; got"):
        compression.quantise(bits)


def test_what_a_codec_does_not_take_is_refused():
    for make, words in (
        (lambda: compression.quantise(8, rotated=1), "rotated must be True or False; got 1"),
        (lambda: compression.random_k(0), r"share must be a Python number in \(0, 1\]"),
        (lambda: compression.random_k(0.5, unbiased=None), "unbiased must be True or False; got"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
