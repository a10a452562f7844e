"""Who is malicious, and one attack of several by its number."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fedjax_sim.core.checks import check_count, check_index, check_number, check_takes
from fedjax_sim.core.randomness import MALICIOUS, check_key, permutation_seeds, permute, stream
from fedjax_sim.core.registry import UP_TO_1
from fedjax_sim.core.tasks import Attack
from fedjax_sim.core.types import Array, PyTree


def chosen(index: ArrayLike, *attacks: Attack) -> Attack:
    """The attack of this number, which a sweep may trace: several attacks in one program.

    Args:
      index: a whole number from 0; may be traced. One that is out of range is the nearest.

    Raises:
      ValueError: for no attack, or a number that is known and out of range.

    >>> import fedjax_sim as fs
    >>> attack = chosen(1, fs.attacks.sign_flip(), fs.attacks.sign_flip(3.0))
    >>> keys = jax.random.split(jax.random.key(0), 1)
    >>> attack(jnp.ones(1), jnp.ones(1, bool), jnp.ones(1, bool), keys).tolist()
    [-3.0]
    """
    if not attacks:
        raise ValueError("chosen must be given at least one attack; got none")
    for attack in attacks:
        check_takes("attack", attack, "updates", "malicious", "counted", "key")
    check_index("index", index, len(attacks))

    def attack_of_index(updates: PyTree, malicious: Array, counted: Array, key: Array) -> PyTree:
        given = updates, malicious, counted, key
        return jax.lax.switch(jnp.asarray(index, jnp.int32), attacks, *given)

    return attack_of_index


def draw_malicious(key: Array, num_clients: int, share: ArrayLike) -> Array:
    """Bool[K], a share of the clients, drawn evenly: round(share K) of them, and at least one.

    Of one key, those of a smaller share are among those of a larger one.

    Args:
      share: Float[] in (0, 1], may be traced; a half is rounded up.

    Raises:
      ValueError: for a share out of range, or an untyped key.

    >>> int(draw_malicious(jax.random.key(0), 50, 0.2).sum())
    10
    """
    check_key(key)
    num_clients = check_count("num_clients", num_clients)
    check_number("share", share, UP_TO_1.allows, UP_TO_1.says)
    seeds = permutation_seeds(stream(key, MALICIOUS))
    places = permute(seeds, jnp.arange(num_clients, dtype=jnp.int32), num_clients)
    number = jnp.floor(jnp.asarray(share, jnp.float32) * num_clients + 0.5)
    return places < jnp.maximum(number.astype(jnp.int32), 1)


def malicious_of(client_ids: Sequence[int] | Array, num_clients: int) -> Array:
    """Bool[K], true of these clients.

    Raises:
      ValueError: for an id that is no whole number in [0, K), or none at all.

    >>> malicious_of([0, 2], 4).tolist()
    [True, False, True, False]
    """
    num_clients = check_count("num_clients", num_clients)
    ids = np.asarray(client_ids)
    if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"malicious must be ids of clients, whole numbers; got {client_ids!r}")
    outside = ids[(ids < 0) | (ids >= num_clients)]
    if outside.size:
        raise ValueError(
            f"malicious must be ids of clients in [0, {num_clients}); got {outside[0]}"
        )
    return jnp.zeros(num_clients, bool).at[jnp.asarray(ids)].set(True)
