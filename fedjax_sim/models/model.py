"""What a model is, a flax module as one, and the layers that the papers' models share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from fedjax_sim.base import Array, Params
from fedjax_sim.checks import check_count
from fedjax_sim.nn import conv_general_dilated, dot_general


class Model(NamedTuple):
    """A model as two pure functions."""

    init: Callable[[Array], Params]  # key -> params
    apply: Callable[[Params, Array], Array]  # params, x[B, ...] -> outputs[B, ...]


def from_flax(
    module: nn.Module, input_shape: Sequence[int], input_dtype: Any = jnp.float32
) -> Model:
    """A flax (linen) module as a Model, without variables other than its params.

    >>> import jax
    >>> model = from_flax(nn.Dense(2), (3,))
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 3))).shape
    (5, 2)
    """
    for size in input_shape:
        check_count("input_shape", size)

    def init(key: Array) -> Params:
        return module.init(key, jnp.zeros((1, *input_shape), input_dtype))["params"]

    def apply(params: Params, x: Array) -> Array:
        return jnp.asarray(module.apply({"params": params}, x))

    return Model(init, apply)


def dense(units: int) -> nn.Dense:
    """A dense layer whose gradient is fast in loops."""
    return nn.Dense(units, dot_general=dot_general)


def convolution(channels: int, size: int, **options: Any) -> nn.Conv:
    """A convolution with square windows that is fast in loops and under `vmap`."""
    return nn.Conv(channels, (size, size), conv_general_dilated=conv_general_dilated, **options)


def flatten(x: Array) -> Array:
    """[B, ...] as [B, features]."""
    return x.reshape(x.shape[0], -1)


def check_image(input_shape: Sequence[int]) -> None:
    """Refuses inputs that are not images.

    Raises:
      ValueError: saying what was given.
    """
    if len(input_shape) != 3:
        raise ValueError(f"input_shape must be (height, width, channels); got {tuple(input_shape)}")
