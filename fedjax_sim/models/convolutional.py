"""Convolutional networks: McMahan et al. 2017's, LeNet, and one without padding."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.registry import declare
from fedjax_sim.core.types import Array
from fedjax_sim.models.model import (
    CLASSES_OF_IMAGES,
    Model,
    check_image,
    check_sizes,
    convolution,
    dense,
    flatten,
    from_flax,
)
from fedjax_sim.nn import max_pool


@declare("the CNN of McMahan et al. 2017", facts=CLASSES_OF_IMAGES)
def cnn(input_shape: Sequence[int] = (28, 28, 1), num_classes: int = 10) -> Model:
    """The CNN of McMahan et al. 2017 (arXiv 1602.05629), 1,663,370 parameters by default.

    5x5 convolution with 32 channels, 2x2 max pool, 5x5 with 64, 2x2 max pool, 512 ReLU
    units, softmax. Inputs are `[B, height, width, channels]`.

    Raises:
      ValueError: for a size below 1, or an input_shape that is no image of 4 x 4 pixels or more.
    """
    check_count("num_classes", num_classes)
    check_image(input_shape, least=4)  # both pools halve it
    layers: list[Any] = []
    for channels in (32, 64):
        layers += [convolution(channels, 5, padding="SAME"), nn.relu, _pool]
    return from_flax(
        nn.Sequential([*layers, flatten, dense(512), nn.relu, dense(num_classes)]), input_shape
    )


@declare(
    "the small CNN of NIID-Bench (Li et al. 2022), LeNet-5 with max pools", facts=CLASSES_OF_IMAGES
)
def lenet(input_shape: Sequence[int] = (28, 28, 1), num_classes: int = 10) -> Model:
    """The small CNN of NIID-Bench (Li et al. 2022, arXiv 2102.02079): LeNet-5 with ReLUs.

    5x5 convolution with 6 channels, ReLU, 2x2 max pool, 5x5 with 16, ReLU, 2x2 max pool, 120 and 84
    ReLU units, softmax; nothing is padded. 44,426 parameters by default, and 62,006 for 32 x 32
    pixels in colour. Inputs are `[B, height, width, channels]`.

    Raises:
      ValueError: for a size below 1, or an input_shape that is no image of 16 x 16 pixels or more.

    >>> import jax
    >>> params = jax.eval_shape(lenet((32, 32, 3)).init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    62006
    """
    return _unpadded((6, 16), (120, 84), input_shape, num_classes)


@declare(
    "two convolutions without padding and 512 units (PFLlib's 4-layer CNN)", facts=CLASSES_OF_IMAGES
)
def unpadded_cnn(input_shape: Sequence[int] = (28, 28, 1), num_classes: int = 10) -> Model:
    """The 4-layer CNN of PFLlib's leaderboard (Zhang et al. 2023, arXiv 2312.04992).

    5x5 convolution with 32 channels, ReLU, 2x2 max pool, 5x5 with 64, ReLU, 2x2 max pool, 512 ReLU
    units, softmax: `cnn` without its padding, 582,026 parameters by default. Inputs are
    `[B, height, width, channels]`.

    Raises:
      ValueError: for a size below 1, or an input_shape that is no image of 16 x 16 pixels or more.

    >>> import jax
    >>> params = jax.eval_shape(unpadded_cnn().init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    582026
    """
    return _unpadded((32, 64), (512,), input_shape, num_classes)


def _unpadded(
    channels: Sequence[int], hidden: Sequence[int], input_shape: Sequence[int], num_classes: int
) -> Model:
    """5x5 convolutions without padding, each halved by its pool; dense layers; softmax."""
    check_count("num_classes", num_classes)
    check_image(input_shape, least=16)  # of fewer pixels, nothing is left for the second pool
    layers: list[Any] = []
    for width in channels:
        layers += [convolution(width, 5, padding="VALID"), nn.relu, _pool]
    layers.append(flatten)
    for units in hidden:
        layers += [dense(units), nn.relu]
    return from_flax(nn.Sequential([*layers, dense(num_classes)]), input_shape)


@declare("the CIFAR-10 CNN of McMahan et al. 2017", facts=CLASSES_OF_IMAGES)
def cifar_cnn(
    input_shape: Sequence[int] = (24, 24, 3),
    num_classes: int = 10,
    channels: int = 64,
    hidden: Sequence[int] = (384, 192),
    local_response: bool = True,
) -> Model:
    """The CIFAR-10 CNN of McMahan et al. 2017 (arXiv 1602.05629), which is TensorFlow's tutorial's.

    5x5 convolution with 64 channels, ReLU, 3x3 max pool with stride 2, local response
    normalisation; the same again, normalised before it is pooled; 384 and 192 ReLU units, softmax.
    Inputs are `[B, height, width, channels]`: in the paper 24 x 24 crops, for which it has
    1,068,298 parameters ("about 10^6"); the tutorial's weight decay and dimming rate are training's
    business.

    With a_c the channels of a pixel, the normalisation (Krizhevsky et al. 2012, with the
    tutorial's constants) is

        a_c / (1 + 0.001 / 9 sum_{|d - c| <= 4} a_d^2)^0.75

    Args:
      channels: of both convolutions; fewer for a small model.
      hidden: units of the dense layers.
      local_response: whether it is normalised; for activations near 1 that changes little.

    Raises:
      ValueError: for a size below 1, or an input_shape that is no image.

    >>> import jax
    >>> params = jax.eval_shape(cifar_cnn().init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    1068298
    """
    check_count("num_classes", num_classes)
    check_count("channels", channels)
    check_sizes("hidden", hidden)
    check_image(input_shape)
    normalise = [_local_response] if local_response else []
    layers: list[Any] = [convolution(channels, 5, padding="SAME"), nn.relu, _wide_pool, *normalise]
    layers += [convolution(channels, 5, padding="SAME"), nn.relu, *normalise, _wide_pool, flatten]
    for units in hidden:
        layers += [dense(units), nn.relu]
    return from_flax(nn.Sequential([*layers, dense(num_classes)]), input_shape)


def _pool(x: Array) -> Array:
    return max_pool(x, (2, 2), strides=(2, 2))


def _wide_pool(x: Array) -> Array:
    return max_pool(x, (3, 3), strides=(2, 2), padding="SAME")


def _local_response(x: Array) -> Array:
    places = np.arange(x.shape[-1])
    near = np.abs(np.subtract.outer(places, places)) <= 4
    squares = jnp.square(x) @ jnp.asarray(near, x.dtype)
    return x / (1 + 0.001 / 9 * squares) ** 0.75
