"""Max pooling whose derivative is elementwise where windows do not overlap."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen

from fedjax_sim.core.types import Array

Sizes = tuple[int, ...]


def max_pool(
    inputs: Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Array:
    """The maximum of each window; the arguments are those of `flax.linen.max_pool`.

    `y[n, i, c] = max_j x[n, i * strides + j, c]`. The values and gradients are flax's: of equal
    maxima the first in the window, in row-major order, has the gradient. Where the windows
    tile the input (strides equal to the window, nothing padded, the rest cut off as
    "VALID" does) the gradient is elementwise; XLA's own for windows in general
    (select-and-scatter) is 20 times slower on a CPU. Other windows are passed to flax's.

    Args:
      inputs: [..., *spatial, channels].
      window_shape: the window's size in each spatial dimension.
      strides: None for 1 in each, as flax has it.
      padding: "VALID", "SAME" or (low, high) for each spatial dimension.

    Raises:
      ValueError: if the inputs have fewer dimensions than the window and the channels.

    >>> max_pool(jnp.arange(4.0).reshape(1, 4, 1), (2,), (2,)).tolist()
    [[[1.0], [3.0]]]
    """
    window = tuple(window_shape)
    strides = (1,) * len(window) if strides is None else tuple(strides)
    if jnp.ndim(inputs) <= len(window):
        raise ValueError(
            f"inputs must have shape [..., *spatial, channels] for the window {window}; "
            f"got {jnp.shape(inputs)}"
        )
    spatial = inputs.shape[-1 - len(window) : -1]
    if not (strides == window and _pads_nothing(padding, spatial, window)):
        return linen.max_pool(inputs, window, strides, padding)
    whole = tuple(n // k * k for n, k in zip(spatial, window, strict=True))
    inputs = inputs[(..., *(slice(n) for n in whole), slice(None))]
    return _tiled(window, inputs)


def _pads_nothing(padding: str | Sequence[tuple[int, int]], spatial: Sizes, window: Sizes) -> bool:
    if isinstance(padding, str):
        divides = all(n % k == 0 for n, k in zip(spatial, window, strict=True))
        return padding == "VALID" or (padding == "SAME" and divides)
    return all(tuple(pair) == (0, 0) for pair in padding)


def _split(window: Sizes, x: Array) -> Array:
    """[..., n, m, C] as [..., n / k, k, m / l, l, C]."""
    lead, spatial = x.shape[: -1 - len(window)], x.shape[-1 - len(window) : -1]
    pairs = [size for n, k in zip(spatial, window, strict=True) for size in (n // k, k)]
    return x.reshape(*lead, *pairs, x.shape[-1])


def _places(window: Sizes, split: Array) -> Iterator[Array]:
    """The input at each place of the window, in row-major order."""
    for flat in range(math.prod(window)):
        index: list[int | slice] = []
        for i, k in enumerate(window):
            index += [slice(None), flat // math.prod(window[i + 1 :]) % k]
        yield split[(..., *index, slice(None))]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _tiled(window: Sizes, x: Array) -> Array:
    places = _places(window, _split(window, x))
    largest = next(places)
    for place in places:
        largest = jnp.maximum(largest, place)
    return largest


@_tiled.defjvp
def _tiled_jvp(window: Sizes, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    y = _tiled(window, x)
    # Written so that the transpose is one elementwise pass over the input's shape.
    has_first = jnp.zeros(y.shape, bool)
    firsts = []
    for place in _places(window, _split(window, x)):
        is_largest = place == y
        firsts.append(is_largest & ~has_first)
        has_first = has_first | is_largest
    first = jnp.stack(firsts, axis=-1)  # [..., C, window]
    first = first.reshape(*y.shape, *window)
    n = len(window)
    lead = y.ndim - n - 1
    order = [*range(lead)]
    for i in range(n):
        order += [lead + i, y.ndim + i]
    first = jnp.transpose(first, [*order, y.ndim - 1])
    dx = jnp.where(first, _split(window, dx), 0)
    return y, jnp.sum(dx, axis=[lead + 1 + 2 * i for i in range(n)])
