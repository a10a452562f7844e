"""Feature shift: each client's features are changed in a way of its own, after any split."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_sim.core.checks import check_number
from fedjax_sim.core.types import Array
from fedjax_sim.partition.dealing import check_ids, generator

_ROTATION, _NOISE = 1, 2  # purposes that `generator` folds into a key


def rotation(
    key: Array, images: Any, client_ids: Any, angles: float | Sequence[float] = (0, 90, 180, 270)
) -> tuple[np.ndarray, np.ndarray]:
    """Every client's images turned by an angle of its own.

    The rotated MNIST of IFCA (Ghosh et al. 2020, arXiv 2006.04088) has the default's four. Quarter
    turns are exact; others are linear interpolations, with zeros beyond the edge. The angle of
    client k depends on the key and on k, not on how many clients there are.

    Args:
      key: one typed key.
      images: [N, H, W] or [N, H, W, C].
      client_ids: Int[N].
      angles: degrees, counter-clockwise: several for one of them each, drawn evenly; a number a
        for an angle in [-a, a].

    Returns:
      The images, of the shape and dtype given, and Float[K], the clients' angles.

    Raises:
      ValueError: for images of another shape, ids that do not fit, an angle that is not finite, or
        an odd number of quarter turns of images that are not square.

    >>> import jax
    >>> turned, angles = rotation(jax.random.key(0), np.eye(2)[None], [0], [90])
    >>> turned[0].tolist(), angles.tolist()
    ([[0.0, 1.0], [1.0, 0.0]], [90.0])
    """
    from scipy import ndimage  # imported here because it would slow down `import fedjax_sim`

    images = np.asarray(images)
    if images.ndim not in (3, 4):
        raise ValueError(f"images must have shape [N, H, W] or [N, H, W, C]; got {images.shape}")
    draw = _draw("angles", angles, lambda _: True, "a number of degrees", -1)
    square = images.shape[1] == images.shape[2]

    def turn(x: np.ndarray, angle: float, rng: np.random.Generator) -> np.ndarray:
        turns, remainder = divmod(angle, 90)
        if remainder == 0 and (square or turns % 2 == 0):
            return np.rot90(x, int(turns), axes=(1, 2))
        if remainder == 0:
            raise ValueError(
                f"angles of an odd number of quarter turns need square images; got {angle:g} "
                f"for {images.shape[1]} x {images.shape[2]}"
            )
        # "grid-constant" interpolates to zeros beyond the edge; "constant" stops short of it.
        return ndimage.rotate(x, angle, axes=(2, 1), reshape=False, order=1, mode="grid-constant")

    return _each(key, _ROTATION, images, "images", client_ids, draw, turn)


def noise(
    key: Array, x: Any, client_ids: Any, levels: float | Sequence[float] = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Every client's features with Gaussian noise of a level of its own.

    `x_i + sigma_k z_i`, z_i ~ N(0, I), for the examples i of client k: the feature skew of
    Li et al. 2022 (arXiv 2102.02079), whose levels are evenly spread. The level of client k depends
    on the key and on k, not on how many clients there are.

    Args:
      key: one typed key.
      x: Float[N, ...].
      client_ids: Int[N].
      levels: standard deviations, at least 0: several for one of them each, drawn evenly; a
        number s for a level in [0, s].

    Returns:
      The features, of the shape and dtype given, and Float[K], the clients' levels.

    Raises:
      ValueError: for features that are not floats, ids that do not fit, or a negative level.

    >>> import jax
    >>> x, levels = noise(jax.random.key(0), np.zeros((4, 3)), [0, 0, 1, 1], [0.0])
    >>> x.any(), levels.tolist()
    (np.False_, [0.0, 0.0])
    """
    x = np.asarray(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"x must be floats, for noise to be added; got {x.dtype}")
    draw = _draw("levels", levels, lambda s: s >= 0, "at least 0", 0)

    def add(x: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
        return x + level * rng.standard_normal(x.shape)

    return _each(key, _NOISE, x, "x", client_ids, draw, add)


def _draw(
    name: str,
    values: float | Sequence[float],
    allowed: Callable[[float], bool],
    says: str,
    lowest: int,
) -> Callable[[np.random.Generator], float]:
    """A function that draws one of several values, or one in [lowest |value|, |value|]."""
    number_or_list: Any = values
    if np.ndim(number_or_list) == 0:
        check_number(name, number_or_list, allowed, says)
        limit = abs(float(number_or_list))
        return lambda rng: float(rng.uniform(lowest * limit, limit))
    listed = [float(value) for value in number_or_list]
    if not listed:
        raise ValueError(f"{name} must hold at least one; got none")
    for value in listed:
        check_number(name, value, allowed, says)
    return lambda rng: listed[rng.integers(len(listed))]


def _each(
    key: Array,
    purpose: int,
    x: np.ndarray,
    name: str,
    client_ids: Any,
    draw: Callable[[np.random.Generator], float],
    change: Callable[[np.ndarray, float, np.random.Generator], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    ids = check_ids(client_ids)
    if len(ids) != len(x):
        raise ValueError(
            f"client_ids must have one entry for each of the {len(x)} {name}; got {len(ids)}"
        )
    changed_x = np.empty_like(x)
    values = np.empty(int(ids.max()) + 1)
    order = np.argsort(ids, kind="stable")
    cuts = np.searchsorted(ids[order], np.arange(1, len(values)))
    for k, rows in enumerate(np.split(order, cuts)):
        rng = generator(key, purpose, k)
        values[k] = draw(rng)
        changed = change(x[rows].astype(float), values[k], rng)
        changed_x[rows] = np.rint(changed) if np.issubdtype(x.dtype, np.integer) else changed
    return changed_x, values
