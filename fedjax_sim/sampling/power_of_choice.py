"""Power-of-Choice. Cho, Wang, Joshi 2020, "Client Selection in Federated Learning: Convergence
Analysis and Power-of-Choice Selection Strategies" (arXiv 2010.01243)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import check_count, check_takes
from fedjax_sim.core.loss import loss_total
from fedjax_sim.core.registry import AT_LEAST_1, Option, declare
from fedjax_sim.core.sampling_law import Dependent
from fedjax_sim.core.types import Array, Cohort, LossFn, Params
from fedjax_sim.data import FederatedData
from fedjax_sim.sampling.sampler import Sampler, custom

_BLOCK = 256  # examples of a client whose losses are computed at once


@declare(
    "of some candidates, drawn by their weight, the m on whose examples the model's loss is "
    "largest (Cho et al. 2020)",
    Option(
        "candidates",
        "clients that measure their loss, 2 m unless given",
        kind=int,
        range=AT_LEAST_1,
    ),
)
def power_of_choice(
    m: int, candidates: int | None = None, loss_fn: LossFn | None = None
) -> Sampler:
    """Of d candidates, drawn without replacement by weight, the m of largest `F_k(w_t)` train.

    `F_k(w) = (1 / n_k) sum_i loss_i(w)` over all examples of the client, with key None. The cohort
    has d slots: every candidate is sent the model, as the ledger counts, and those that are not
    chosen have a `work` of 0. That they measure, and what number they send back, costs no bytes and
    no seconds here. With m = d it is a draw by weight without replacement.

    A cohort depends on the model, so a Source cannot be read ahead of it, and the inclusion
    probabilities are not known, so that the `unbiased` rule refuses it.

    Args:
      m: clients that train, at least 1.
      candidates: d, at least m; None for 2 m.
      loss_fn: as of the algorithm; must be given.

    Raises:
      ValueError: unless 1 <= m <= d, and on sampling d <= K.
    """
    m = check_count("m", m)
    number = 2 * m if candidates is None else check_count("candidates", candidates)
    if number < m:
        raise ValueError(f"candidates must be at least m = {m}; got {number}")
    if not callable(loss_fn):
        raise ValueError(f"loss_fn must be that of the algorithm; got {loss_fn!r}")
    check_takes("loss_fn", loss_fn, "params", "batch", "key")
    mean_loss = partial(_mean_loss, loss_fn)

    def draw(key: Array, data: FederatedData, params: Params) -> Cohort:
        return _draw(key, data, params, data.client_weights)

    def among(
        key: Array, data: FederatedData, is_available: Array, probability: Any, params: Params
    ) -> Cohort:
        return _draw(key, data, params, jnp.where(is_available, data.client_weights, 0))

    def _draw(key: Array, data: FederatedData, params: Params, weights: Array) -> Cohort:
        if number > data.num_clients:
            raise ValueError(
                f"candidates must be at most K = {data.num_clients} clients; got {number}"
            )
        # The d largest of log p_k + Gumbel are a draw one by one in proportion to the p_k left.
        scores = jnp.log(weights) + jax.random.gumbel(key, weights.shape, weights.dtype)
        best_scores, client_ids = jax.lax.top_k(scores, number)
        client_ids = client_ids.astype(jnp.int32)
        is_drawn = best_scores > -jnp.inf
        losses = jax.lax.map(partial(mean_loss, params, data), client_ids)
        losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
        has_examples = is_drawn & (data.num_examples[client_ids] > 0)
        _, places = jax.lax.top_k(jnp.where(has_examples, losses, -jnp.inf), m)
        is_chosen = has_examples & jnp.zeros(number, bool).at[places].set(True)
        return Cohort(client_ids, is_drawn, work=is_chosen.astype(jnp.result_type(float)))

    law = Dependent("clients come by the model's loss on their examples")
    return custom(number, draw, law=law, among=among, sees_params=True)


def _mean_loss(loss_fn: LossFn, params: Params, data: FederatedData, client_id: Array) -> Array:
    """Float[], over the client's examples, block by block."""
    size = min(_BLOCK, data.max_num_examples)
    first, number = data.offsets[client_id], data.num_examples[client_id]

    def block(place: Array) -> tuple[Array, Array]:
        positions = place * size + jnp.arange(size, dtype=jnp.int32)
        batch = jax.tree.map(lambda x: x.at[first + positions].get(mode="clip"), data.examples)
        return loss_total(loss_fn, params, batch, positions < number)

    def add(place: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        return jax.tree.map(jnp.add, sums, block(place))

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(block, jnp.int32(0)))
    total, count = jax.lax.fori_loop(0, -(-number // size), add, zeros)
    return total / jnp.maximum(count, 1)
