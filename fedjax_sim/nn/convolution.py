"""A convolution for flax's layers that stays fast inside a loop and under `vmap`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim.core.types import Array
from fedjax_sim.nn.bilinear import Geometry, convolve, dilate
from fedjax_sim.nn.primitives import bind, precision_of


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    """A convolution, as `jax.lax.conv_general_dilated`, for loops and `vmap` on a CPU.

    `y[n, i, o] = sum_jc x[n, i * strides + j, c] w[j, c, o]`. For flax's layers:
    `linen.Conv(..., conv_general_dilated=conv_general_dilated)`, and so in nnx. Values,
    arguments and derivatives (either mode, any order) are those of `jax.lax`; what differs
    is the time a derivative takes inside a loop and under `vmap`, on a CPU. Vmapped over
    images or kernels alone it is one larger convolution; over both it is, on a CPU, a loop
    over the pairs. On other backends it is lowered to XLA's own, grouped under `vmap`.

    Batch groups, integers, complex numbers, a `preferred_element_type` that is not the
    operands' and an `out_sharding` are passed to `jax.lax` as they are.

    Raises:
      TypeError, ValueError: as `jax.lax.conv_general_dilated`, when it is traced.

    >>> import flax.linen as nn
    >>> layer = nn.Conv(8, (3, 3), conv_general_dilated=conv_general_dilated)
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 9, 9, 1)))[0].shape
    (2, 9, 9, 8)
    """
    lax_convolution = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )
    result = jax.eval_shape(lax_convolution, lhs, rhs)  # raises for arguments that do not fit
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    (batch, features, *image), (outputs, inputs, *window) = numbers.lhs_spec, numbers.rhs_spec
    ones = (1,) * len(image)
    if not isinstance(padding, str) and min((min(sides) for sides in padding), default=0) < 0:
        # The cut is made here, because XLA's CPU derivatives of a grouped convolution with negative
        # padding are wrong.
        sides = [(0, 0, 0)] * lhs.ndim
        for i, (low, high), holes in zip(image, padding, lhs_dilation or ones, strict=True):
            sides[i] = (int(low), int(high), holes - 1)
        return conv_general_dilated(
            lax.pad(lhs, jnp.zeros((), lhs.dtype), sides),
            rhs,
            window_strides,
            [(0, 0)] * len(image),
            None,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
            out_sharding,
        )
    if not _is_ours(lhs, rhs, result.dtype, batch_group_count, out_sharding):
        return lax_convolution(lhs, rhs)
    window_shape = tuple(rhs.shape[i] for i in window)
    image_shape = tuple(lhs.shape[i] for i in image)
    rhs_dilation = tuple(rhs_dilation or ones)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(
            image_shape, dilate(window_shape, rhs_dilation), window_strides, padding
        )
    geometry = Geometry(
        image_shape,
        window_shape,
        tuple(window_strides),
        tuple((int(lo), int(hi)) for lo, hi in padding),
        tuple(lhs_dilation or ones),
        rhs_dilation,
        feature_group_count,
        precision_of(precision),
    )
    lhs = jnp.transpose(lhs, (batch, *image, features))
    rhs = jnp.transpose(rhs, (*window, inputs, outputs))
    out = bind(convolve, lhs, rhs, geometry=geometry, lanes=False)
    back = numbers.out_spec
    order = sorted(range(len(back)), key=[back[0], *back[2:], back[1]].__getitem__)
    return jnp.transpose(out, order)


def _is_ours(lhs: Array, rhs: Array, out: Any, batch_groups: int, out_sharding: Any) -> bool:
    floating = jnp.issubdtype(lhs.dtype, jnp.floating)
    same_dtype = lhs.dtype == rhs.dtype == out
    return floating and same_dtype and batch_groups == 1 and out_sharding is None and lhs.ndim > 2
