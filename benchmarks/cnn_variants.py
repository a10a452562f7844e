"""McMahan et al.'s CNN varied, to see what its distance from 99 % is due to.

`fedjax-sim run --model benchmarks/cnn_variants.py:standardised ...`, and in the same way
`:without_relu`; the whole commands and what they gave are in benchmarks/records/PAPERS.md.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from flax import linen as nn

import fedjax_sim as fs

_MEAN, _DEVIATION = 0.1307, 0.3081  # of MNIST's pixels in [0, 1]


def standardised(input_shape: Sequence[int], num_classes: int) -> fs.models.Model:
    """`fs.models.cnn` of inputs with mean 0 and deviation 1."""
    model = fs.models.cnn(input_shape, num_classes)
    return model._replace(apply=lambda params, x: model.apply(params, (x - _MEAN) / _DEVIATION))


def without_relu(input_shape: Sequence[int], num_classes: int) -> fs.models.Model:
    """The same layers with no ReLU behind the convolutions, which the paper's text does not name.

    Of what comes before the 512 units, the max pools alone are not linear.
    """

    def pool(x: jax.Array) -> jax.Array:
        return fs.nn.max_pool(x, (2, 2), (2, 2))

    dense = partial(nn.Dense, dot_general=fs.nn.dot_general)
    layers: list[Any] = []
    for channels in (32, 64):
        convolution = nn.Conv(channels, (5, 5), conv_general_dilated=fs.nn.conv_general_dilated)
        layers += [convolution, pool]
    layers += [lambda x: x.reshape(len(x), -1), dense(512), nn.relu, dense(num_classes)]
    return fs.models.from_flax(nn.Sequential(layers), input_shape)
