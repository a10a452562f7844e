"""Losses computed in fewer bits than the parameters have."""

from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import Array, LossFn, Params, PyTree
from fedjax_sim.models.adapters import Merged
from fedjax_sim.models.model import OfTokens, WithDropout, WithStatistics


def mixed_precision(loss_fn: LossFn, dtype: Any = jnp.bfloat16) -> "MixedPrecision":
    """The loss computed in `dtype`, of parameters that stay as they are: float32 master weights.

        losses(w, batch) = float32(loss_fn(dtype(w), dtype(batch)))

    Of a loss from `fs.models` the model is computed so, and the loss of its outputs in float32. The
    derivative by w is rounded to `dtype` where it flows through the model and has w's own dtype
    where it ends, so that a step smaller than a rounding of `dtype` is not lost. Nothing scales
    the loss, which bfloat16, with the exponents of float32, does not need. Activations take half
    the memory; what travels, and what clients keep, is of w's dtype.
    Micikevicius et al. 2018 (arXiv 1710.03740); Kalamkar et al. 2019 (arXiv 1905.12322).

    `fs.init` looks whether the loss mixes examples at `loss_fn` itself, because a rounding of
    `dtype` may depend on the size of a block.

    Args:
      loss_fn: as any algorithm takes it.
      dtype: bfloat16, or another floating type.

    Raises:
      ValueError: for a dtype that is not floating, and for a model with batch norm, whose
        statistics would be sums of few bits.

    >>> import jax
    >>> loss_fn = mixed_precision(lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2)
    >>> batch = {"x": jnp.ones(2), "y": jnp.array([1.0, 1.001])}
    >>> loss_fn(jnp.float32(1.001), batch, None).tolist()  # bfloat16 has steps of 2^-8 below 1
    [0.0, 0.0]
    >>> jax.grad(lambda w: loss_fn(w, batch, None).sum())(jnp.float32(2)).dtype
    dtype('float32')
    """
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise ValueError(f"dtype must be a floating type, as jnp.bfloat16; got {dtype!r}")
    if isinstance(getattr(loss_fn, "apply", None), WithStatistics):
        raise ValueError(
            "loss_fn must be of a model without batch norm, whose statistics would be sums in "
            f"{jnp.dtype(dtype).name}"
        )
    return MixedPrecision(loss_fn, jnp.dtype(dtype))


@dataclass(frozen=True, repr=False)
class MixedPrecision:
    """See `mixed_precision`.

    Attributes:
      in_full_precision: the loss that it is of.
      dtype: in which it is computed.
    """

    in_full_precision: LossFn
    dtype: Any

    def __repr__(self) -> str:
        return fields_of(self)

    def __call__(self, params: Params, batch: PyTree, key: Array | None) -> Any:
        return self._computed()(params, batch, key)

    def __getattr__(self, name: str) -> Any:
        """What the loss itself has beside, as its `logits`, of the model in few bits."""
        if name.startswith("_") or name == "in_full_precision":
            raise AttributeError(name)
        return getattr(self._computed(), name)

    def _computed(self) -> Any:
        loss_fn: Any = self.in_full_precision
        if is_dataclass(loss_fn) and hasattr(loss_fn, "apply") and not isinstance(loss_fn, type):
            return replace(loss_fn, apply=_cast_function(loss_fn.apply, self.dtype))
        return _cast_function(loss_fn, self.dtype)


@dataclass(frozen=True, repr=False)
class _Cast:
    """A function whose arguments are cast to `dtype`, and whose floating results to float32."""

    function: Any
    dtype: Any

    def __call__(self, *arguments: PyTree) -> PyTree:
        result = self.function(*_cast(arguments, self.dtype))
        return _cast(result, jnp.float32)

    def __repr__(self) -> str:
        return fields_of(self)


def _cast_function(function: Any, dtype: Any) -> Any:
    """A loss, or an `apply`, computed in `dtype`; of an adapter the whole model is, and not the
    trained part alone, beside which the frozen parameters would make all of it float32."""
    if isinstance(function, (OfTokens, WithDropout)):  # which the losses look for
        return function.wrapped(lambda each: _cast_function(each, dtype))
    if isinstance(function, Merged):
        return replace(function, function=_cast_function(function.function, dtype))
    return _Cast(function, dtype)


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    def of_leaf(x: Any) -> Any:
        is_floating = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if is_floating else x

    return jax.tree.map(of_leaf, tree)
