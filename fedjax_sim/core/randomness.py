"""Random streams and their purposes, and permutations without a sort.

A stream is folded by purpose, round and client id, and never by slot, lane or padded size. So a
client draws the same numbers whatever strategy and devices it runs on.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_sim.core.plain import is_plain
from fedjax_sim.core.types import Array
from fedjax_sim.core.varying import vary_alike

# Purposes. The numbers are part of the contract: changing one changes every result.
CLIENT = 1  # a client's local training
COHORT = 2  # who takes part
INIT = 3  # the phases of a client, below CLIENT
STEP = 4
FINISH = 5
SHUFFLE = 6
SERVER = 7  # the server's own step
COMBINE = 8  # a rule that sees all updates
EXCHANGE = 9  # an exchange before the last of a round, which has the three above below it
PARTITION = 11  # the data and their split, of the partition's seed, not of a run's
HOLDOUT = 12  # which examples are held out for validation, of that seed, too
FINE_TUNING = 13  # a client's training before it is measured, of the key that the measure is given
TEST_PARTS = 14  # whose each test example is, of the partition's seed, as HOLDOUT
CLOCK = 15  # how fast each client is, of the key that the clock is given
AVAILABILITY = 16  # who can be reached in a round
ATTACK = 17  # what malicious clients send, folded further by client
MALICIOUS = 18  # who is malicious, of the key that the draw is given
DISPATCH = 19  # who of a cohort is sent the model first, where only a few clients are needed
UNLABELLED = 20  # which examples the server has in their client's place, as HOLDOUT
# What encodes a client's update, below FINISH, whose key an algorithm is given itself: the first n
# numbers are what `jax.random.split(key, n)` makes of it.
CODEC = 0x434F4445
# The noise of privacy, likewise below FINISH of a client or SERVER, then the number of a leaf.
NOISE = 0x4E4F4953


def as_key(key: Array | int) -> tuple[Array, int | None]:
    """A typed key, and the seed it was made from; None if a key was given.

    Raises:
      ValueError: for a seed that is not in [0, 2^32); and what `check_key` refuses.

    >>> as_key(3)[1]
    3
    """
    if isinstance(key, bool) or not isinstance(key, (int, np.integer)):
        # mypy cannot infer that a value that is no integer is a key, which `check_key` checks.
        typed: Array = key  # type: ignore[assignment]
        check_key(typed)
        return typed, None
    if not 0 <= key < 2**32:
        raise ValueError(f"key must be a typed key, or a seed in [0, 2^32); got {key}")
    return jax.random.key(int(key)), int(key)


def is_key(x: Any) -> bool:
    """Whether it is a typed key, or an array or shape of them."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def check_key(key: Array) -> None:
    """Refuses what is not one typed key of a counter-based generator.

    Raises:
      ValueError: for old-style `uint32` keys, for a batch of keys, and for `rbg` keys,
        which ignore all but the first key under `vmap`.
    """
    if not is_key(key):
        dtype = getattr(key, "dtype", None)
        raise ValueError(
            "key must be a typed key, as jax.random.key(seed) makes; got "
            f"{type(key).__name__ if dtype is None else f'an array of {dtype}'}"
        )
    if key.shape != ():
        raise ValueError(
            f"key must be one key; got an array of keys of shape {key.shape} "
            "(vmap over them, or pass one)"
        )
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(
            f"key must be of a counter-based generator such as threefry2x32; got "
            f"{jax.random.key_impl(key)}, which is wrong under vmap"
        )


def stream(key: Array, *path: Array | int) -> Array:
    """The key at `path` below `key`: a purpose, then round, client or step numbers."""
    for part in path:
        key = jax.random.fold_in(key, part)
    return key


def _mix(h: Array) -> Array:
    """A 32-bit finaliser (Wellons' lowbias32): every input bit reaches the top bit."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)


def permutation_seeds(key: Array) -> Array:
    """uint32[2], from which `permute` draws a family of permutations.

    They are the key's own bits, mixed, because another hash of the key would be slower and is not
    needed.
    """
    words = jax.random.key_data(key).reshape(-1)[:2]
    return _mix(words ^ jnp.uint32(SHUFFLE * 0x9E3779B9 % 2**32))


@jax.jit
def _where(condition: Array, x: Array, y: Array) -> Array:
    return lax.select(condition, x, y)


def permute(
    seeds: Array,
    positions: Array,
    size: Array | int,
    turn: Array | int = 0,
    rounds: int = 32,
    chain: bool = False,
) -> Array:
    """Where a keyed random permutation of `[0, size)` sends `positions`.

    A swap-or-not shuffle (Hoang, Morris, Rogaway, CRYPTO 2012): in each round the pair
    {x, K - x mod size} changes places or not, by a keyed bit of the pair. It is a
    bijection for every size. Its cost is that of the positions asked for and not of the size,
    because nothing is sorted or stored, and it does not depend on padding.

    Args:
      seeds: from `permutation_seeds(key)`.
      positions: Int[...]; those outside `[0, size)` give meaningless results.
      size: Int[], may be traced; at least 1 to be meaningful.
      turn: which permutation of the family: an epoch, say; Int[], or of the rank of `positions` and
        broadcast to them.
      rounds: a position keeps its place, and a pair its distance, with a probability that is
        2^-rounds above chance, which should be small beside 1 / size.
      chain: whether the rounds are one chain of operations, for inner loops; else a loop makes
        them, one after the other. XLA copies a chain into each operation that reads its result: a
        cohort's, drawn once a round, into nine, which took a third of the time to compile a small
        round. The bits are the same.

    Returns:
      Int[...], the image of each position.

    >>> import jax, jax.numpy as jnp
    >>> sorted(permute(permutation_seeds(jax.random.key(0)), jnp.arange(5), 5).tolist())
    [0, 1, 2, 3, 4]
    """
    # XLA's CPU compiler fails where it folds a constant size of 1, so the size is hidden from it.
    size = jnp.maximum(jnp.asarray(size, jnp.int32), 1)
    size = cast(Array, lax.optimization_barrier(size))
    # A turn costs a few integer operations where a key of its own would cost a hash.
    turns = jnp.asarray(turn).astype(jnp.uint32) * jnp.uint32(0xC2B2AE35)
    counter = jnp.arange(rounds, dtype=jnp.uint32).reshape(rounds, *[1] * turns.ndim)
    pivots = _mix(_mix(seeds[0] + turns)[None] + counter * jnp.uint32(0x9E3779B9))
    pivots = (pivots % size.astype(jnp.uint32)).astype(jnp.int32)
    salts = _mix(_mix(seeds[1] + turns)[None] + counter * jnp.uint32(0x85EBCA77))
    # `lax` functions are traced faster than those of `jnp`. The equations must stay those of `jnp`,
    # because a sampler's equations are part of the checksum that a resume compares.
    x = positions.astype(jnp.int32)
    axes, starts = tuple(range(turns.ndim)), (0,) * turns.ndim
    zero, half = np.int32(0), np.uint32(15)
    multipliers = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)

    def next_round(x: Array, numbers: tuple[Array, Array]) -> tuple[Array, None]:
        pivot, salt = (
            lax.broadcast_in_dim(number, x.shape, axes) if axes else number for number in numbers
        )
        partner = lax.sub(pivot, x)
        partner = _where(lax.lt(partner, zero), lax.add(partner, size), partner)
        # The pair's bit is the top bit of a shorter mix, on which all bits of the input act.
        larger = lax.convert_element_type(lax.max(x, partner), jnp.uint32)
        bits = lax.mul(lax.bitwise_xor(larger, salt), multipliers[0])
        bits = lax.bitwise_xor(bits, lax.shift_right_logical(bits, half))
        bits = lax.convert_element_type(lax.mul(bits, multipliers[1]), jnp.int32)
        return _where(lax.lt(bits, zero), partner, x), None

    if not (chain or is_plain()):
        x, pivots, salts = vary_alike(x, pivots, salts)
        return lax.scan(next_round, x, (pivots, salts))[0]

    def of_round(numbers: Array, r: int) -> Array:
        return lax.squeeze(lax.slice(numbers, (r, *starts), (r + 1, *turns.shape)), (0,))

    for r in range(rounds):
        x, _ = next_round(x, (of_round(pivots, r), of_round(salts, r)))
    # Without a barrier XLA's CPU compiler (jax 0.12) fuses the chain into the gather that uses it,
    # and expands it into a tree, whose compile time doubles with every round.
    return cast(Array, lax.optimization_barrier(x))
