"""Clients that measure something in a pass over their examples before they train.

A probe's loss is of `key` None, as in evaluation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.algorithms.descent import Check, Descent, step_within
from fedjax_sim.core.loss import check_measures, loss_total
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.types import Array, ClientOutput, ClientUpdate, LossFn, Params, PyTree


@one_line
class Probed(NamedTuple):
    """A client's carry: its descent, and what it has measured before the first step."""

    descent: Descent
    measured: PyTree


def probing(
    base: ClientUpdate,
    probe: Callable[..., PyTree],
    finish: Callable[..., ClientOutput],
    measure: Callable[[Any], PyTree] | None = None,
    carry: Callable[..., Any] = Probed,
) -> ClientUpdate:
    """A client that measures something in a pass over its examples before the first step.

    Args:
      base: how it descends.
      probe: of `ClientUpdate`.
      finish: of `ClientUpdate`, given the carry.
      measure: what is made of the probe's sums; None for their mean over the client's examples.
      carry: (descent, measured) -> the carry, whose field `descent` is `base`'s.
    """

    def init(message: Any, client_state: PyTree, probed: PyTree, key: Array) -> Any:
        descent = base.init(message, client_state, (), key)
        return carry(descent, _mean(probed) if measure is None else measure(probed))

    return ClientUpdate(init, step_within(base.step), finish, probe)


def loss_probe(loss_fn: LossFn) -> Callable[..., tuple[Array, Array]]:
    """A probe of a client's loss at the model it is sent: the sum and the number of examples."""

    def probe(message: Any, client_state: PyTree, *block: Any) -> tuple[Array, Array]:
        return loss_total(loss_fn, message.params, *block)

    return probe


def gradient_probe(loss_fn: LossFn) -> Callable[..., tuple[PyTree, Array]]:
    """A probe of the gradient at the model that is sent: its sum and the number of examples."""

    def total(params: Params, batch: PyTree, mask: Array) -> tuple[Array, Array]:
        return loss_total(loss_fn, params, batch, mask)

    def probe(message: Any, client_state: PyTree, *block: Any) -> tuple[PyTree, Array]:
        return jax.grad(total, has_aux=True)(message.params, *block)

    return probe


def measures(loss_fn: LossFn, probed: bool = True) -> Check | None:
    """The check where clients probe their loss, which is of no key; None where they do not."""
    return partial(check_measures, loss_fn) if probed else None


def _mean(sums: tuple[PyTree, Array]) -> PyTree:
    """The mean over a client's examples of what a probe has summed, with their number."""
    total, count = sums
    return jax.tree.map(lambda x: x / jnp.maximum(count, 1).astype(x.dtype), total)
