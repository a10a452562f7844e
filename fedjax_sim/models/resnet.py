"""ResNet-18 with group norm, which does not mix a block's examples as batch norm does."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.registry import declare
from fedjax_sim.core.types import Array
from fedjax_sim.models.model import (
    CLASSES_OF_IMAGES,
    REMAT,
    Model,
    check_image,
    convolution,
    dense,
    from_flax,
)


@declare("ResNet-18 with group norm", REMAT, facts=CLASSES_OF_IMAGES)
def resnet18(
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    width: int = 64,
    groups: int = 2,
    remat: bool = False,
) -> Model:
    """ResNet-18 (He et al. 2016, arXiv 1512.03385) for small images, with group norm.

    Hsieh et al. 2020 (arXiv 1910.00189) found batch norm to fail where clients differ, and group
    norm (Wu and He 2018, arXiv 1803.08494) to hold; Reddi et al. 2021 (arXiv 2003.00295) train
    this one, with two groups. The stem is a 3x3 convolution without pooling, as usual for CIFAR;
    then two basic blocks each of 1, 2, 4 and 8 times `width` channels, the last three halving
    height and width; the mean over pixels; softmax. 11,173,962 parameters by default. Inputs are
    `[B, height, width, channels]`.

    With C channels into the stem, w = width and O classes it has
    9 C w + 2 w + 2 (18 w^2 + 4 w) + sum_{b = 2w, 4w, 8w} (32 b^2 + 10 b) + (8 w + 1) O.

    Args:
      width: channels of the stem, a multiple of groups.
      groups: of each norm, 1 for layer norm.
      remat: whether a block's activations are computed anew for its gradient, and not kept.

    Raises:
      ValueError: for a size below 1, an input_shape that is no image, or a width that is no
        multiple of groups.

    >>> import jax
    >>> params = jax.eval_shape(resnet18().init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    11173962
    """
    for name, size in (("num_classes", num_classes), ("width", width), ("groups", groups)):
        check_count(name, size)
    check_image(input_shape)
    if width % groups:
        raise ValueError(f"width must be a multiple of groups = {groups}; got {width}")
    return from_flax(_ResNet(num_classes, width, groups, remat), input_shape)


class _ResNet(nn.Module):
    num_classes: int
    width: int
    groups: int
    remat: bool = False
    blocks: Sequence[int] = (2, 2, 2, 2)  # of each stage

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(_norm(self.groups)(_convolution(self.width, 3)(x)))
        block = nn.remat(_Block) if self.remat else _Block
        strides = [(stage, place) for stage, n in enumerate(self.blocks) for place in range(n)]
        for number, (stage, place) in enumerate(strides):
            stride = 2 if stage and not place else 1
            # Its name with or without remat, so that either reads what the other has saved.
            name = f"_Block_{number}"
            x = block(self.width * 2**stage, stride, self.groups, name=name)(x)
        return dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


class _Block(nn.Module):
    channels: int
    stride: int
    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.relu(_norm(self.groups)(_convolution(self.channels, 3, self.stride)(x)))
        y = _norm(self.groups)(_convolution(self.channels, 3)(y))
        if x.shape != y.shape:
            x = _norm(self.groups)(_convolution(self.channels, 1, self.stride)(x))
        return nn.relu(x + y)


def _convolution(channels: int, size: int, stride: int = 1) -> nn.Conv:
    around = (size // 2, size // 2)
    return convolution(
        channels,
        size,
        strides=(stride, stride),
        padding=(around, around),
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
    )


def _norm(groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, epsilon=1e-5)
