"""The loss of a block: checking what a user's `loss_fn` returns, and its masked mean."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.independence import check_independent
from fedjax_sim.core.trees import shapes_with
from fedjax_sim.core.types import Array, LossFn, Metrics, Params, PyTree, accumulator

# Beside the examples of a block in training, where the model's statistics are those of the block.
TRAINING_MASK = "training_mask"


def per_example(
    loss_fn: LossFn, params: Params, batch: PyTree, key: Array | None, name: str = "loss_fn"
) -> dict[str, Array]:
    """Calls `loss_fn` and returns `{"loss": losses[B], **values}`.

    Raises:
      ValueError: if the losses or a named value do not have shape `[B]`.
    """
    result = loss_fn(params, batch, key)
    losses, extra = result if isinstance(result, tuple) else (result, {})
    if not isinstance(extra, dict):
        raise ValueError(
            f"{name} must return losses[B] or (losses[B], {{name: values[B]}}); "
            f"got a tuple with a {type(extra).__name__}"
        )
    if "loss" in extra:
        raise ValueError(f'{name} must not name a value "loss": that is the loss itself')
    size = jax.tree.leaves(batch)[0].shape[0]
    values = {"loss": losses, **extra}
    for value_name, value in values.items():
        if jnp.shape(value) != (size,):
            raise ValueError(
                f"{name} must return one {value_name} for each example, shape ({size},); got shape "
                f"{jnp.shape(value)} (return them one by one, not their mean or sum)"
            )
    return {value_name: jnp.asarray(value) for value_name, value in values.items()}


def uses_key(loss_fn: LossFn, params: Params, batch: PyTree, key: Array) -> bool:
    """Whether the losses may depend on the key, which is whether any operation takes it."""
    graph = jax.make_jaxpr(lambda key: per_example(loss_fn, params, batch, key))(key).jaxpr
    (key_variable,) = graph.invars
    return any(x is key_variable for equation in graph.eqns for x in equation.invars)


def totals(values: dict[str, Array], mask: Array, times: Array | None = None) -> Metrics:
    """`{name: (sum over the mask, size of the mask)}`, summed in float32 or better.

    Args:
      times: Int[B], how often each counts; None for once.
    """
    counts = mask if times is None else jnp.where(mask, times, 0)

    def total(value: Array) -> tuple[Array, Array]:
        dtype = accumulator(value.dtype)
        masked = jnp.where(mask, value.astype(dtype), jnp.zeros((), dtype))
        if times is not None:
            masked = masked * times.astype(dtype)
        return jnp.sum(masked), jnp.sum(counts, dtype=dtype)

    return {name: total(value) for name, value in values.items()}


def loss_total(loss_fn: LossFn, params: Params, batch: PyTree, mask: Array) -> tuple[Array, Array]:
    """The sum of the losses over the mask and its size, with key None: what a client probes."""
    return totals(per_example(loss_fn, params, batch, None), mask)["loss"]


def mean_loss(loss_fn: LossFn) -> Callable[..., tuple[Array, Metrics]]:
    """`(params, batch, mask[B], key) -> (masked mean loss, metrics)`.

    The mean is `(1/|mask|) sum_{i in mask} loss_i(w)`, Float[].
    """

    has_statistics = hasattr(getattr(loss_fn, "apply", None), "train")

    def objective(params: Params, batch: PyTree, mask: Array, key: Array) -> tuple[Array, Metrics]:
        if has_statistics and TRAINING_MASK not in batch:
            raise ValueError(
                "algorithm must be given to fs.with_statistics, since its loss is of a model with "
                "batch norm, whose statistics nothing else renews"
            )
        values = per_example(loss_fn, params, batch, key)
        metrics = totals(values, mask)
        total, size = metrics["loss"]
        return total / jnp.maximum(size, 1), metrics

    return objective


def mean_gradient(loss_fn: LossFn) -> Callable[..., tuple[PyTree, Metrics]]:
    """`(params, batch, mask[B], key) -> (gradient of the masked mean loss, metrics)`."""
    return jax.grad(mean_loss(loss_fn), has_aux=True)


def check_loss(loss_fn: LossFn, params: Params, examples: PyTree) -> None:
    """Refuses a loss that does not fit params and data, or mixes examples.

    Raises:
      ValueError: from `per_example`, from `check_independent`, and from the loss's own
        `check(params, examples)` where it has one.
    """
    try:
        inspect.signature(loss_fn).bind(params, examples, None)
    except TypeError as error:
        raise ValueError(f"loss_fn must take (params, batch, key): {error}") from None
    check_examples(loss_fn, params, examples)
    batch = shapes_with(examples, 3)
    key = jax.eval_shape(lambda: jax.random.key(0))

    jax.eval_shape(partial(per_example, loss_fn), params, batch, key)
    # Of a loss in few bits, whose rounding may depend on a block's size, the one that it is of.
    exact = getattr(loss_fn, "in_full_precision", loss_fn)

    def values(params: Params, batch: PyTree, key: Array) -> dict[str, Array]:
        return per_example(exact, params, batch, key)

    check_independent(exact, values, params, examples)


def check_measures(loss_fn: LossFn, params: Params, examples: PyTree) -> None:
    """Refuses a loss that cannot be computed with key None, as a client's probe computes it.

    Args:
      params: arrays or their shapes.

    Raises:
      ValueError: with the loss's own error.
    """
    batch = shapes_with(examples, 3)
    try:
        jax.eval_shape(
            lambda params, batch: per_example(loss_fn, params, batch, None), params, batch
        )
    except Exception as error:
        raise ValueError(
            "loss_fn must take None as its key, as in evaluation, since clients measure their loss "
            f"before they train; given None it says: {error}"
        ) from error


def check_metric(
    metric_fn: LossFn, params: Params, examples: PyTree, key: Array | None, name: str
) -> None:
    """Refuses examples that do not fit, and a metric that mixes them; a second time costs nothing.

    What a loss mixes, a block's size and its padding change here as they do in training.

    Args:
      params: arrays or their shapes.
      key: that the metric is given.
      name: of the argument that holds the examples.

    Raises:
      ValueError: from `check_examples` and `check_independent`.
    """
    check_examples(metric_fn, params, examples, name)
    leaves = jax.tree.leaves(params)
    if not all(hasattr(x, "dtype") or isinstance(x, (int, float, complex)) for x in leaves):
        return  # a model with functions among its leaves cannot be trained, either

    exact = getattr(metric_fn, "in_full_precision", metric_fn)

    def values(params: Params, batch: PyTree, drawn: Array) -> dict[str, Array]:
        return per_example(exact, params, batch, None if key is None else drawn, "metric_fn")

    arrays = jax.tree.map(lambda x: x if hasattr(x, "dtype") else jnp.asarray(x), params)
    with_key = key is not None
    check_independent(exact, values, arrays, examples, "metric_fn", with_key)


def check_examples(loss_fn: LossFn, params: Params, examples: PyTree, name: str = "") -> None:
    """Refuses examples that a loss from `fs.models` cannot be of, as a label beyond its classes.

    Nothing is computed on a device. A loss without a `check(params, examples)` of its own may take
    any; of examples that are being traced there are only shapes to look at.

    Args:
      params: arrays or their shapes.
      name: of the argument that holds the examples, where they are not those trained on.

    Raises:
      ValueError: from the loss's own check.
    """
    own_check: Any = getattr(loss_fn, "check", None)
    if own_check is None:
        return
    try:
        own_check(params, examples)
    except ValueError as error:
        if not name:
            raise
        raise ValueError(f"{name}: {error}") from error
