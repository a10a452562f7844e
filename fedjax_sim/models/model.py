"""The type of a model, models of flax modules, and layers that the papers' models share."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.registry import Option
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import Array, Params
from fedjax_sim.nn import conv_general_dilated, dot_general


class ModelFacts(NamedTuple):
    """The facts that a setting needs of a model.

    Attributes:
      takes: the kinds of data sets, as in `datasets.types`.
      needs_channels: whether grey images [height, width] are given a channel for it.
    """

    takes: tuple[str, ...]
    needs_channels: bool = False


# Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174).
REMAT = Option(
    "remat",
    "compute a layer's activations anew for its gradient, and keep them not",
    default=False,
    kind=bool,
)
CLASSES_OF_IMAGES = ModelFacts(("images",), needs_channels=True)
CLASSES_OF_ANY = ModelFacts(("images", "features"))
TEXT = ModelFacts(("text",))


class Model(NamedTuple):
    """A model as two pure functions."""

    init: Callable[[Array], Params]  # key -> params
    apply: Callable[[Params, Array], Array]  # params, x[B, ...] -> outputs[B, ...]

    def __repr__(self) -> str:
        return fields_of(self, "apply")


@dataclass(frozen=True, repr=False)
class OfTokens:
    """An `apply` whose x are tokens in [0, vocabulary), which the losses check before a run.

    The check is needed because an embedding returns NaN for a token beyond the vocabulary, and
    counts a negative one from the end.
    """

    apply: Callable[[Params, Array], Array]
    vocabulary: int

    def __call__(self, params: Params, x: Array) -> Array:
        return self.apply(params, x)

    def wrapped(self, wrap: Callable[[Any], Any]) -> "OfTokens":
        """Of the function what `wrap` makes of it."""
        return replace(self, apply=wrap(self.apply))

    def __repr__(self) -> str:
        return fields_of(self)


@dataclass(frozen=True, repr=False)
class WithStatistics:
    """An `apply` of a model that keeps running statistics, as batch norm does.

    Called, it is in inference mode: the outputs of an example are its own. Params are
    `{"params": ..., "batch_stats": ...}`, of which only the first have a derivative.

    Attributes:
      module: takes (x, train, mask), with mask Bool[B] True for what is no padding.
    """

    module: nn.Module

    def __call__(self, params: Params, x: Array) -> Array:
        return jnp.asarray(self.module.apply(_without_slope(params), x, train=False))

    def train(self, params: Params, x: Array, mask: Array) -> tuple[Array, Params]:
        """The outputs of a block by its own statistics, and the running ones behind it."""
        outputs, renewed = self.module.apply(
            _without_slope(params), x, train=True, mask=mask, mutable=["batch_stats"]
        )
        return jnp.asarray(outputs), renewed["batch_stats"]

    def __repr__(self) -> str:
        return fields_of(self)


@dataclass(frozen=True, repr=False)
class WithDropout:
    """An `apply` of a model with dropout. Called, it is in inference mode, and drops nothing.

    The losses of `fs.models` call `with_key` where they have one, as in every local step.

    Attributes:
      apply: (params, x) -> outputs, of the model in inference mode.
      with_key: (params, x, key) -> outputs, without what the key's draws drop.
    """

    apply: Callable[[Params, Array], Array]
    with_key: Callable[[Params, Array, Array], Array]

    def __call__(self, params: Params, x: Array) -> Array:
        return self.apply(params, x)

    def wrapped(self, wrap: Callable[[Any], Any]) -> "WithDropout":
        """Of both functions what `wrap` makes of them."""
        return WithDropout(wrap(self.apply), wrap(self.with_key))

    def __repr__(self) -> str:
        return fields_of(self)


def _without_slope(params: Params) -> Params:
    """The same params, of whose running statistics there is no derivative."""
    return {**params, "batch_stats": jax.lax.stop_gradient(params["batch_stats"])}


def of_tokens(module: nn.Module, length: int, vocabulary: int) -> Model:
    """A flax module over characters as a Model."""
    model = from_flax(module, (length,), jnp.int32)
    return model._replace(apply=OfTokens(model.apply, vocabulary))


# What a flax module may be told in training, by name; the opposite tells inference.
_IN_TRAINING = {"train": True, "deterministic": False}


def from_flax(
    module: nn.Module, input_shape: Sequence[int], input_dtype: Any = jnp.float32
) -> Model:
    """A flax (linen) module as a Model.

    A module with batch norm must be called as `module(x, train=False, mask=None)`, and give its
    `nn.BatchNorm` `use_running_average=not train`, and the mask, Bool[B], as it broadcasts to what
    is normed: `mask[:, None]` for features. Its params are `{"params": ..., "batch_stats": ...}`,
    `apply` is in inference mode, and `fs.with_statistics` trains it.

    Of a module that is called as `module(x, train=False)`, or with flax's `deterministic=True`,
    `apply` is in inference mode, too, and the losses of `fs.models` call it with `train=True` and a
    key for its dropout (`rngs={"dropout": key}`) in local steps, which have a key.

    Raises:
      ValueError: for an input_shape, without the batch, that is no sequence of sizes; from `init`,
        for a module that has other variables, or statistics without taking `train` and `mask`.

    >>> import jax
    >>> model = from_flax(nn.Dense(2), (3,))
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 3))).shape
    (5, 2)
    """
    check_sizes("input_shape", input_shape)
    if {"train", "mask"} <= set(inspect.signature(type(module).__call__).parameters):
        x = jax.ShapeDtypeStruct((1, *input_shape), input_dtype)
        if "batch_stats" in jax.eval_shape(module.init, jax.random.key(0), x):
            return _with_statistics(module, input_shape, input_dtype)

    takes = inspect.signature(type(module).__call__).parameters
    modes: dict[str, Any] = {k: value for k, value in _IN_TRAINING.items() if k in takes}
    inference: dict[str, Any] = {name: not value for name, value in modes.items()}

    def init(key: Any) -> Params:
        if isinstance(key, int):
            raise ValueError(f"key must be a key, as jax.random.key({key}) makes; got {key}")
        variables = module.init(key, jnp.zeros((1, *input_shape), input_dtype), **inference)
        if other_collections := sorted(set(variables) - {"params"}):
            raise ValueError(
                f"module must have no variables beside its params; got "
                f"{', '.join(other_collections)}, which a round neither averages "
                "nor keeps (in place of a BatchNorm take a norm within an example, as GroupNorm or "
                "LayerNorm, or let the module take train and mask, as fs.models.from_flax says)"
            )
        return variables["params"]

    def apply(params: Params, x: Array) -> Array:
        return jnp.asarray(module.apply({"params": params}, x, **inference))

    def with_key(params: Params, x: Array, key: Array) -> Array:
        return jnp.asarray(module.apply({"params": params}, x, **modes, rngs={"dropout": key}))

    return Model(init, WithDropout(apply, with_key) if modes else apply)


def _with_statistics(module: nn.Module, input_shape: Sequence[int], input_dtype: Any) -> Model:
    """Of a module that takes (x, train, mask) and has batch_stats."""

    def init(key: Array) -> Params:
        variables = dict(module.init(key, jnp.zeros((1, *input_shape), input_dtype)))
        if set(variables) != {"params", "batch_stats"}:
            raise ValueError(
                "module must have no variables beside its params and batch_stats; got "
                f"{', '.join(sorted(variables))}"
            )
        return variables

    return Model(init, WithStatistics(module))


def dense(units: int) -> nn.Dense:
    """A dense layer whose gradient is fast in loops."""
    return nn.Dense(units, dot_general=dot_general)


def convolution(channels: int, size: int, **options: Any) -> nn.Conv:
    """A convolution with square windows that is fast in loops and under `vmap`."""
    return nn.Conv(channels, (size, size), conv_general_dilated=conv_general_dilated, **options)


def flatten(x: Array) -> Array:
    """[B, ...] as [B, features]."""
    return x.reshape(x.shape[0], -1)


def check_sizes(name: str, sizes: Any) -> None:
    """Refuses values that are no sequence of whole numbers, each at least 1.

    Raises:
      ValueError: naming the argument and what was given.
    """
    if not isinstance(sizes, (Sequence, np.ndarray)) or isinstance(sizes, str):
        raise ValueError(f"{name} must be a sequence of whole numbers, as (8, 8); got {sizes!r}")
    for size in sizes:
        check_count(name, size)


def check_image(input_shape: Sequence[int], least: int = 1) -> None:
    """Refuses inputs that are not images, or below `least` pixels high or wide.

    Raises:
      ValueError: saying what was given.
    """
    check_sizes("input_shape", input_shape)
    if len(input_shape) != 3:
        raise ValueError(f"input_shape must be (height, width, channels); got {tuple(input_shape)}")
    if min(input_shape[:2]) < least:
        raise ValueError(
            f"input_shape must be at least {least} pixels high and wide; got {tuple(input_shape)}"
        )
