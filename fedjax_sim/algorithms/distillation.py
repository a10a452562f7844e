"""A server that teaches one model, on examples without labels, what several models say together."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.algorithms.descent import Descent
from fedjax_sim.core.checks import check_count
from fedjax_sim.core.trees import cast, widened
from fedjax_sim.core.types import Array, Params


def check_unlabelled_fits(classifier: Any, params: Params, unlabelled: Any) -> None:
    """Refuses examples whose shape the model cannot take.

    Raises:
      ValueError: with their shapes and what the model said of them.
    """
    try:
        jax.eval_shape(classifier.logits, params, unlabelled)
    except Exception as error:  # a user's model may raise anything
        shapes = jax.tree.map(jnp.shape, unlabelled)
        raise ValueError(f"unlabelled must fit the model; got {shapes}: {error}") from error


def distiller(
    classifier: Any,
    unlabelled: Any,
    steps: int,
    optimizer: optax.GradientTransformation,
    batch_size: int | None,
) -> Callable[[Params, Params, Array, Array], Params]:
    """(student, teachers, counted, key) -> the student after its steps.

    Each step goes down the mean over a batch of unlabelled examples of

        KL( softmax(mean_k logits(w_k, x)) || softmax(logits(w, x)) )

    with w the student and the mean over those teachers w_k, leaves [m, ...], that are counted.

    Args:
      classifier: of `classifier_of`.
      unlabelled: leaves [U, ...].
      steps: >= 0.
      batch_size: examples of a step, drawn evenly from all U; None for all of them.

    Raises:
      ValueError: for examples that are none, and a number that is no count.
    """
    is_zero = steps == 0 and not isinstance(steps, bool)
    steps = 0 if is_zero else check_count("steps", steps, ", or 0")
    sizes = {jnp.shape(x)[0] if jnp.ndim(x) else 0 for x in jax.tree.leaves(unlabelled)}
    if len(sizes) != 1 or 0 in sizes:
        shapes = jax.tree.map(jnp.shape, unlabelled)
        raise ValueError(f"unlabelled must hold examples, leaves [U, ...]; got {shapes}")
    (number,) = sizes
    size = number if batch_size is None else min(check_count("batch_size", batch_size), number)

    def distil(student: Params, teachers: Params, counted: Array, key: Array) -> Params:
        def divergence(params: Any, batch: Any) -> Array:
            several = jax.vmap(lambda w: classifier.logits(w, batch))(teachers)
            several, own = widened(several, classifier.logits(cast(params, teachers), batch))
            mean = jnp.mean(several, axis=0, where=counted.reshape(-1, *[1] * (several.ndim - 1)))
            return jnp.mean(optax.kl_divergence(jax.nn.log_softmax(own), jax.nn.softmax(mean)))

        def step(carry: Descent, place: Array) -> tuple[Descent, None]:
            drawn = jax.random.randint(jax.random.fold_in(key, place), (size,), 0, number)
            rows = drawn if size < number else jnp.arange(number)
            batch = jax.tree.map(lambda x: jnp.asarray(x)[rows], unlabelled)
            grads = jax.grad(divergence)(carry.params, batch)
            with jax.numpy_dtype_promotion("standard"):  # which optax's correction of bias needs
                updates, state = optimizer.update(grads, carry.optimizer, carry.params)
            return Descent(optax.apply_updates(carry.params, updates), state), None

        start = Descent(student, optimizer.init(student))
        return jax.lax.scan(step, start, jnp.arange(steps, dtype=jnp.int32))[0].params

    return distil
