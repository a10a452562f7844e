"""Models of dense layers."""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.registry import declare
from fedjax_sim.core.types import Array, Params
from fedjax_sim.models.model import (
    CLASSES_OF_ANY,
    Model,
    ModelFacts,
    check_sizes,
    dense,
    flatten,
    from_flax,
)


@declare("multinomial logistic regression", name="logistic", facts=CLASSES_OF_ANY)
def logistic_regression(input_shape: Sequence[int] = (784,), num_classes: int = 10) -> Model:
    """Multinomial logistic regression: logits `W x + b`; 7,850 parameters by default.

    >>> import jax
    >>> params = jax.eval_shape(logistic_regression().init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    7850
    """
    return mlp(input_shape, (), num_classes)


@declare("two hidden layers of 200 units (McMahan et al. 2017)", name="2nn", facts=CLASSES_OF_ANY)
def two_nn(input_shape: Sequence[int] = (784,), num_classes: int = 10) -> Model:
    """The 2NN of McMahan et al. 2017 (arXiv 1602.05629): 784-200-200-10 with ReLU.

    >>> import jax
    >>> params = jax.eval_shape(two_nn().init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    199210
    """
    return mlp(input_shape, (200, 200), num_classes)


@declare(
    "one hidden layer of 32 units, or two for a regression",
    name="mlp",
    facts=ModelFacts(("images", "features", "regression")),
)
def small_mlp(input_shape: Sequence[int], num_classes: int | None) -> Model:
    """A small multilayer perceptron: 32 ReLU units to classes, or 32 and 32 to a number.

    Args:
      input_shape: of an example.
      num_classes: None for a regression, which has one output.

    >>> import jax
    >>> params = jax.eval_shape(small_mlp((4,), None).init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    1249
    """
    if num_classes is None:
        return mlp(input_shape, (32, 32), 1)
    return mlp(input_shape, (32,), num_classes)


def mlp(input_shape: Sequence[int], hidden: Sequence[int], outputs: int) -> Model:
    """A multilayer perceptron with ReLU; inputs `[B, *input_shape]` are flattened.

    Raises:
      ValueError: for a size below 1, or an int where a sequence is due.
    """
    check_count("outputs", outputs)
    check_sizes("hidden", hidden)
    layers: list[Any] = [flatten]
    for width in hidden:
        layers += [dense(width), nn.relu]
    return from_flax(nn.Sequential([*layers, dense(outputs)]), input_shape)


def time_series_mlp(
    window: int, features: int = 1, horizon: int = 1, hidden: Sequence[int] = (64, 64)
) -> Model:
    """A forecaster: the last `window` steps of `features` series, flattened, to `horizon` values.

    Inputs `[B, window, features]`, outputs `[B, horizon]`, ReLU between: with hidden sizes h_1 and
    h_2 it has (window features + 1) h_1 + (h_1 + 1) h_2 + (h_2 + 1) horizon parameters. For
    `squared_error`.

    Raises:
      ValueError: for a size below 1; when it is traced, for inputs of another shape.

    >>> import jax
    >>> params = jax.eval_shape(time_series_mlp(24, 3).init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    8897
    """
    for name, size in (("window", window), ("features", features), ("horizon", horizon)):
        check_count(name, size)
    model = mlp((window, features), hidden, horizon)

    def apply(params: Params, x: Array) -> Array:
        if x.shape[1:] != (window, features):  # flattened, [B, features, window] would pass
            raise ValueError(f"x must be [B, {window}, {features}]; got {list(x.shape)}")
        return model.apply(params, x)

    return Model(model.init, apply)
