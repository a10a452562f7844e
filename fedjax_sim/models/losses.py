"""The losses that go with the models: cross-entropy over labels, squared error."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import FlaxError, ScopeCollectionNotFound

from fedjax_sim.core.checks import is_concrete
from fedjax_sim.core.loss import TRAINING_MASK
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import Array, Params, PyTree
from fedjax_sim.models.model import OfTokens, WithDropout, WithStatistics


def cross_entropy(apply: Callable[[Params, Array], Array]) -> "CrossEntropy":
    """Softmax cross-entropy over integer labels, as a `loss_fn`; also gives "accuracy".

    `loss_i = -log softmax(apply(params, x_i))[y_i]`, on batches `{"x": [B, ...],
    "y": Int[B]}`. With labels `Int[B, T]` and outputs `[B, T, classes]` an example's loss and
    accuracy are the means over its T positions. `fs.init` checks through it that every label
    is a class.

    >>> from fedjax_sim.models import logistic_regression
    >>> loss_fn = cross_entropy(logistic_regression((2,), 3).apply)
    """
    return CrossEntropy(apply)


def squared_error(apply: Callable[[Params, Array], Array]) -> "SquaredError":
    """Squared error, as a `loss_fn`: `loss_i = mean_j (apply(params, x_i)_j - y_ij)^2`.

    On batches `{"x": [B, ...], "y": Float[B] or Float[B, d]}`.

    >>> from fedjax_sim.models import mlp
    >>> loss_fn = squared_error(mlp((2,), (8,), 1).apply)
    """
    return SquaredError(apply)


@dataclass(frozen=True, repr=False)
class CrossEntropy:
    """See `cross_entropy`."""

    apply: Callable[[Params, Array], Array]

    def __repr__(self) -> str:
        return fields_of(self)

    def __call__(
        self, params: Params, batch: PyTree, key: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        return self.of_logits(self.logits(params, batch, key), batch)

    def logits(self, params: Params, batch: PyTree, key: Array | None = None) -> Array:
        """Float[B, ..., classes], the model's outputs; with a key those of its dropout."""
        return _apply(self.apply, params, batch, key)

    def of_logits(self, logits: Array, batch: PyTree) -> tuple[Array, dict[str, Array]]:
        """The losses [B] of these outputs, and the accuracies [B]."""
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        correct = (jnp.argmax(logits, axis=-1) == batch["y"]).astype(losses.dtype)
        positions = tuple(range(1, losses.ndim))
        return jnp.mean(losses, axis=positions), {"accuracy": jnp.mean(correct, axis=positions)}

    def check(self, params: Params, examples: PyTree) -> None:
        """Refuses x that the model cannot take, and labels that are not its classes.

        Raises:
          ValueError: with the labels that are wrong, and the model's classes.
        """
        outputs = _outputs(self.apply, params, examples)
        labels = examples["y"]
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f'labels ("y") must be integers; got {labels.dtype}')
        *positions, classes = outputs
        if labels.shape[1:] != tuple(positions):
            raise ValueError(
                f'labels ("y") must have shape [N{_more(positions)}] for a model with outputs '
                f"[N{_more(positions)}, {classes}]; got [N{_more(labels.shape[1:])}]"
            )
        if not is_concrete(labels):
            return
        values = np.asarray(labels)
        wrong = values[(values < 0) | (values >= classes)]
        if wrong.size:
            raise ValueError(
                f'labels ("y") must lie in [0, {classes}), the classes of the model; '
                f"got {wrong[0]} ({wrong.size} of {values.size} are out of range)"
            )


@dataclass(frozen=True, repr=False)
class SquaredError:
    """See `squared_error`."""

    apply: Callable[[Params, Array], Array]

    def __repr__(self) -> str:
        return fields_of(self)

    def __call__(self, params: Params, batch: PyTree, key: Array | None) -> Array:
        outputs = _apply(self.apply, params, batch, key)
        error = outputs - batch["y"].reshape(outputs.shape)
        return jnp.mean(jnp.square(error).reshape(error.shape[0], -1), axis=1)

    def check(self, params: Params, examples: PyTree) -> None:
        """Refuses x that the model cannot take, and targets not of its outputs' shape.

        Raises:
          ValueError: saying both shapes.
        """
        outputs = _outputs(self.apply, params, examples)
        targets = examples["y"].shape[1:]
        if targets != outputs and not (targets == () and outputs == (1,)):
            raise ValueError(f'targets ("y") must have shape [N, *{outputs}]; got [N, *{targets}]')


def _apply(
    apply: Callable[[Params, Array], Array], params: Params, batch: PyTree, key: Array | None
) -> Array:
    """The outputs; in training those of batch norm by the block's own statistics, and of dropout.

    Args:
      key: of a local step, for dropout; None in an evaluation.
    """
    if key is not None and isinstance(apply, WithDropout):
        return apply.with_key(params, batch["x"], key)
    if TRAINING_MASK in batch and isinstance(apply, WithStatistics):
        return apply.train(params, batch["x"], batch[TRAINING_MASK])[0]
    return apply(params, batch["x"])


def _more(sizes: Sequence[int]) -> str:
    return "".join(f", {size}" for size in sizes)


def _outputs(
    apply: Callable[[Params, Array], Array], params: Params, examples: PyTree
) -> tuple[int, ...]:
    """The shape of an example's outputs, if the model can take the examples.

    Raises:
      ValueError: if not.
    """
    if not (isinstance(examples, dict) and {"x", "y"} <= set(examples)):
        examples_text = sorted(examples) if isinstance(examples, dict) else type(examples).__name__
        raise ValueError(
            f'the losses of fs.models take examples {{"x": ..., "y": ...}}; got {examples_text}'
        )
    x = examples["x"]
    if isinstance(apply, OfTokens):
        _check_tokens(x, apply.vocabulary)
    try:
        return jax.eval_shape(apply, params, x[:1]).shape[1:]
    except ScopeCollectionNotFound as error:
        raise ValueError(
            "the model has variables beside its params, as the statistics of a BatchNorm, which a "
            "round neither averages nor keeps (take a norm within an example, as GroupNorm or "
            f"LayerNorm): {str(error).strip().splitlines()[0]}"
        ) from error
    except (FlaxError, TypeError) as error:
        x_text = f"{x.dtype}[N{_more(x.shape[1:])}]"
        raise ValueError(
            f"the model cannot take x {x_text}: {str(error).strip().splitlines()[0]}"
        ) from error


def _check_tokens(x: Array, vocabulary: int) -> None:
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"x must be integers, the tokens of a text; got {x.dtype}")
    if not is_concrete(x):
        return
    values = np.asarray(x)
    wrong = values[(values < 0) | (values >= vocabulary)]
    if wrong.size:
        raise ValueError(
            f"x must lie in [0, {vocabulary}), the vocabulary of the model; got {wrong[0]} "
            f"({wrong.size} of {values.size} are out of range)"
        )
