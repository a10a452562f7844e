"""Models of the papers, and the losses that go with them.

A model is a pair (init, apply) of pure functions; nothing in the package needs one. Any
function `loss_fn(params, batch, key) -> losses[B]` is a model to the rest of the package.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from fedjax_sim.base import Array, Params, PyTree
from fedjax_sim.checks import check_count, is_concrete
from fedjax_sim.nn import LSTM, conv_general_dilated, dot_general, max_pool


class Model(NamedTuple):
    """A model as two pure functions."""

    init: Callable[[Array], Params]  # key -> params
    apply: Callable[[Params, Array], Array]  # params, x[B, ...] -> outputs[B, ...]


def logistic_regression(input_shape: Sequence[int] = (784,), num_classes: int = 10) -> Model:
    """Multinomial logistic regression: logits `W x + b`; 7,850 parameters by default.

    >>> sum(x.size for x in jax.tree.leaves(logistic_regression().init(jax.random.key(0))))
    7850
    """
    return mlp(input_shape, (), num_classes)


def two_nn(input_shape: Sequence[int] = (784,), num_classes: int = 10) -> Model:
    """The 2NN of McMahan et al. 2017 (arXiv 1602.05629): 784-200-200-10 with ReLU.

    >>> sum(x.size for x in jax.tree.leaves(two_nn().init(jax.random.key(0))))
    199210
    """
    return mlp(input_shape, (200, 200), num_classes)


def mlp(input_shape: Sequence[int], hidden: Sequence[int], outputs: int) -> Model:
    """A multilayer perceptron with ReLU; inputs `[B, *input_shape]` are flattened.

    Raises:
      ValueError: for a size below 1.
    """
    check_count("outputs", outputs)
    for width in hidden:
        check_count("hidden", width)
    layers: list[Any] = [_flatten]
    for width in hidden:
        layers += [_dense(width), nn.relu]
    return from_flax(nn.Sequential([*layers, _dense(outputs)]), input_shape)


def cnn(input_shape: Sequence[int] = (28, 28, 1), num_classes: int = 10) -> Model:
    """The CNN of McMahan et al. 2017 (arXiv 1602.05629), 1,663,370 parameters by default.

    5x5 convolution with 32 channels, 2x2 max pool, 5x5 with 64, 2x2 max pool, 512 ReLU
    units, softmax. Inputs are `[B, height, width, channels]`.
    """
    check_count("num_classes", num_classes)
    layers: list[Any] = []
    for channels in (32, 64):
        convolution = nn.Conv(
            channels, (5, 5), padding="SAME", conv_general_dilated=conv_general_dilated
        )
        layers += [convolution, nn.relu, _max_pool]
    layers += [_flatten, _dense(512), nn.relu, _dense(num_classes)]
    return from_flax(nn.Sequential(layers), input_shape)


def character_lstm(
    vocabulary: int = 90, embedding: int = 8, hidden: Sequence[int] = (256, 256), length: int = 80
) -> Model:
    """The Shakespeare model of McMahan et al. 2017 (arXiv 1602.05629): the next character.

    An embedding of 8, two LSTM layers of 256 units and a softmax at each position: inputs
    Int[B, T], outputs [B, T, vocabulary]. It has 796,672 + 265 vocabulary parameters: 820,522
    by default. The paper's 866,578 is the count for no vocabulary (264 would make 866,632).

    Args:
      vocabulary: the number of characters.
      length: T in the call that makes the parameters, which do not depend on it.

    Raises:
      ValueError: for a size below 1.

    >>> sum(x.size for x in jax.tree.leaves(character_lstm().init(jax.random.key(0))))
    820522
    """
    sizes = {"vocabulary": vocabulary, "embedding": embedding, "length": length}
    for name, size in [*sizes.items(), *(("hidden", units) for units in hidden)]:
        check_count(name, size)
    layers: list[Any] = [nn.Embed(vocabulary, embedding)]
    layers += [LSTM(units) for units in hidden]
    return from_flax(nn.Sequential([*layers, _dense(vocabulary)]), (length,), jnp.int32)


def _dense(units: int) -> nn.Dense:
    return nn.Dense(units, dot_general=dot_general)


def _flatten(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _max_pool(x: Array) -> Array:
    return max_pool(x, (2, 2), strides=(2, 2))


def from_flax(
    module: nn.Module, input_shape: Sequence[int], input_dtype: Any = jnp.float32
) -> Model:
    """A flax (linen) module as a Model, without variables other than its params.

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


def cross_entropy(apply: Callable[[Params, Array], Array]) -> "CrossEntropy":
    """Softmax cross-entropy over integer labels, as a `loss_fn`; also gives "accuracy".

    `loss_i = -log softmax(apply(params, x_i))[y_i]`, on batches `{"x": [B, ...],
    "y": Int[B]}`. With labels `Int[B, T]` and outputs `[B, T, classes]` an example's loss and
    accuracy are the means over its T positions. `fs.init` checks through it that every label
    is a class.

    >>> loss_fn = cross_entropy(logistic_regression((2,), 3).apply)
    """
    return CrossEntropy(apply)


def squared_error(apply: Callable[[Params, Array], Array]) -> "SquaredError":
    """Squared error, as a `loss_fn`: `loss_i = mean_j (apply(params, x_i)_j - y_ij)^2`.

    On batches `{"x": [B, ...], "y": Float[B] or Float[B, d]}`.

    >>> loss_fn = squared_error(mlp((2,), (8,), 1).apply)
    """
    return SquaredError(apply)


@dataclass(frozen=True)
class CrossEntropy:
    """See `cross_entropy`."""

    apply: Callable[[Params, Array], Array]

    def __call__(
        self, params: Params, batch: PyTree, key: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        logits = self.apply(params, batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        correct = (jnp.argmax(logits, axis=-1) == batch["y"]).astype(losses.dtype)
        positions = tuple(range(1, losses.ndim))
        return jnp.mean(losses, axis=positions), {"accuracy": jnp.mean(correct, axis=positions)}

    def check(self, params: Params, examples: PyTree) -> None:
        """Refuses labels that are not integers, not of the outputs' shape or not a class.

        Raises:
          ValueError: saying what was found and what the model has.
        """
        _check_batch(examples)
        labels = examples["y"]
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f'labels ("y") must be integers; got {labels.dtype}')
        *positions, classes = jax.eval_shape(self.apply, params, examples["x"][:1]).shape[1:]
        if labels.shape[1:] != tuple(positions):
            raise ValueError(
                f'labels ("y") must have shape [N{_more(positions)}] for a model with outputs '
                f"[N{_more(positions)}, {classes}]; got [N{_more(labels.shape[1:])}]"
            )
        if not is_concrete(labels):
            return
        found = np.asarray(labels)
        wrong = found[(found < 0) | (found >= classes)]
        if wrong.size:
            raise ValueError(
                f'labels ("y") must lie in [0, {classes}), the classes of the model; '
                f"got {wrong[0]} ({wrong.size} of {found.size} are out of range)"
            )


@dataclass(frozen=True)
class SquaredError:
    """See `squared_error`."""

    apply: Callable[[Params, Array], Array]

    def __call__(self, params: Params, batch: PyTree, key: Array | None) -> Array:
        outputs = self.apply(params, batch["x"])
        error = outputs - batch["y"].reshape(outputs.shape)
        return jnp.mean(jnp.square(error).reshape(error.shape[0], -1), axis=1)

    def check(self, params: Params, examples: PyTree) -> None:
        """Refuses targets that do not have the shape of the model's outputs.

        Raises:
          ValueError: saying both shapes.
        """
        _check_batch(examples)
        outputs = jax.eval_shape(self.apply, params, examples["x"][:1]).shape[1:]
        targets = examples["y"].shape[1:]
        if targets != outputs and not (targets == () and outputs == (1,)):
            raise ValueError(f'targets ("y") must have shape [N, *{outputs}]; got [N, *{targets}]')


def _more(sizes: Sequence[int]) -> str:
    return "".join(f", {size}" for size in sizes)


def _check_batch(examples: PyTree) -> None:
    if not (isinstance(examples, dict) and {"x", "y"} <= set(examples)):
        given = sorted(examples) if isinstance(examples, dict) else type(examples).__name__
        raise ValueError(
            f'the losses of fs.models take examples {{"x": ..., "y": ...}}; got {given}'
        )
