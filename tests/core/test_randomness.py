"""Keyed permutations and the streams' contract."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from fedjax_sim.core import randomness
from fedjax_sim.core.randomness import check_key, permutation_seeds, permute

PADDED = 64


def shuffled(key, positions, size, turn=0):
    return permute(permutation_seeds(key), positions, size, turn)


permute_padded = jax.jit(lambda seed, n: shuffled(jax.random.key(seed), jnp.arange(PADDED), n))


@given(seed=st.integers(0, 2**31 - 1), size=st.integers(1, PADDED))
def test_is_a_bijection_whatever_the_padding(seed, size):
    image = np.asarray(permute_padded(seed, size))[:size]
    assert sorted(image) == list(range(size))


def test_purposes_differ():
    purposes = [value for name, value in vars(randomness).items() if name.isupper()]
    assert len(set(purposes)) == len(purposes) >= 20


def test_a_block_sees_what_the_whole_sees():
    key = jax.random.key(1)
    whole = shuffled(key, jnp.arange(1000), 1000)
    np.testing.assert_array_equal(shuffled(key, jnp.arange(40, 50), 1000), whole[40:50])
    assert sorted(shuffled(key, jnp.arange(100_000), 100_000).tolist()) == list(range(100_000))


def swap_or_not(seeds, position, size, turn, rounds):
    """Hoang, Morris, Rogaway 2012 for one position, in Python's integers."""

    def mix(h):
        h = (h ^ (h >> 16)) * 0x7FEB352D % 2**32
        h = (h ^ (h >> 15)) * 0x846CA68B % 2**32
        return h ^ (h >> 16)

    first, second = (mix((seed + turn * 0xC2B2AE35) % 2**32) for seed in seeds)
    for r in range(rounds):
        pivot = mix((first + r * 0x9E3779B9) % 2**32) % size
        salt = mix((second + r * 0x85EBCA77) % 2**32)
        partner = (pivot - position) % size
        bit = (max(position, partner) ^ salt) * 0x7FEB352D % 2**32
        bit = (bit ^ (bit >> 15)) * 0x846CA68B % 2**32
        position = partner if bit >= 2**31 else position
    return position


@pytest.mark.parametrize("chain", [True, False])
def test_turns_of_one_call_are_those_of_many(chain):
    """The bits of the permutation, by hand: a turn for each column, and one for all."""
    image_of = partial(permute, rounds=20, chain=chain)
    seeds = permutation_seeds(jax.random.key(4))
    positions, turns = jnp.arange(12).reshape(4, 3), jnp.array([[0, 1, 9]])
    image = np.asarray(image_of(seeds, positions, 12, turns))
    by_hand = [
        [
            swap_or_not(seeds.tolist(), int(x), 12, int(t), 20)
            for x, t in zip(row, turns[0], strict=True)
        ]
        for row in positions
    ]
    assert image.tolist() == by_hand
    np.testing.assert_array_equal(image[:, 2], image_of(seeds, positions[:, 2], 12, 9))


def test_a_permutation_inside_shard_map():
    seeds = jax.vmap(permutation_seeds)(jax.random.split(jax.random.key(1), 2))
    mesh = Mesh(jax.devices()[:2], ("d",))

    def draw(seeds):
        return permute(seeds[0], jnp.arange(9), 9)[None]

    spec = PartitionSpec("d")
    sharded = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=spec, out_specs=spec))(seeds)
    np.testing.assert_array_equal(sharded, jnp.stack([draw(seeds[i : i + 1])[0] for i in (0, 1)]))


def test_turns_are_permutations_of_their_own():
    """Every epoch's is a bijection, and where one epoch sends a place says nothing of the next."""
    key, size, turns = jax.random.key(2), 7, 7_000
    draw = jax.jit(jax.vmap(lambda turn: shuffled(key, jnp.arange(size), size, turn)))
    images = np.asarray(draw(jnp.arange(turns)))
    assert (np.sort(images, axis=1) == np.arange(size)).all()
    pairs = np.bincount(images[:-1, 0] * size + images[1:, 0], minlength=size**2)
    expected = (turns - 1) / size**2
    # Chi-square of 48 degrees of freedom: 99.9999 % lie below 113.
    assert ((pairs - expected) ** 2 / expected).sum() < 113


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_permutation_is_equally_likely(size):
    """Chi-square over the size! permutations, at a level of about 1e-6."""
    keys = jax.random.split(jax.random.key(size), 100_000)
    images = np.asarray(jax.jit(jax.vmap(lambda k: shuffled(k, jnp.arange(size), size)))(keys))
    codes = images @ (size ** np.arange(size))
    all_codes = [np.dot(p, size ** np.arange(size)) for p in itertools.permutations(range(size))]
    counts = np.array([(codes == code).sum() for code in all_codes])
    assert counts.sum() == len(keys)
    expected = len(keys) / len(counts)
    degrees = len(counts) - 1
    assert ((counts - expected) ** 2 / expected).sum() < degrees + 5 * np.sqrt(2 * degrees) + 12


def test_neighbours_part():
    """Where neighbours go is uniform over the distances: batches do not keep together."""
    size, keys = 31, jax.random.split(jax.random.key(0), 60_000)
    images = np.asarray(jax.jit(jax.vmap(lambda k: shuffled(k, jnp.arange(2), size)))(keys))
    counts = np.bincount((images[:, 1] - images[:, 0]) % size, minlength=size)
    assert counts[0] == 0
    expected = len(keys) / (size - 1)
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 29 + 5 * np.sqrt(58) + 12


def test_few_of_very_many_are_drawn_evenly():
    """Small ids must not be likelier than others, even among 10^5."""
    size, m = 100_000, 10
    keys = jax.random.split(jax.random.key(3), 400_000)
    draw = jax.jit(jax.vmap(lambda k: shuffled(k, jnp.arange(m), size)))
    small = sum(int((np.asarray(draw(part)) < m).sum()) for part in jnp.split(keys, 8))
    expected = len(keys) * m * m / size
    assert abs(small - expected) < 5 * np.sqrt(expected)


@pytest.mark.parametrize("impl", ["threefry2x32"])
def test_typed_keys_pass(impl):
    check_key(jax.random.key(0, impl=impl))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, "typed key.*got int"),
        (jax.random.PRNGKey(0), "typed key.*uint32"),
        (jax.random.split(jax.random.key(0)), "one key"),
        (jax.random.key(0, impl="rbg"), "wrong under vmap"),
        (jax.random.key(0, impl="unsafe_rbg"), "wrong under vmap"),
    ],
)
def test_other_keys_are_refused(key, message):
    with pytest.raises(ValueError, match=message):
        check_key(key)
