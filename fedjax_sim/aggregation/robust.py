"""Rules that see all updates at once, so that a few of them cannot move the model far."""

import jax
import jax.numpy as jnp

from fedjax_sim.core.registry import declare
from fedjax_sim.core.types import (
    AggregationRule,
    Array,
    Coefficients,
    Cohort,
    PyTree,
    accumulator,
)


@declare("the median of the updates, coordinate by coordinate")
def median() -> AggregationRule:
    """The coordinate-wise median of the clients that report: `w_{t+1} = w_t + med_{k in V} d_k`.

    Each coordinate of the model moves by the median of the clients' moves, of an even number the
    mean of the middle two; clients count alike, whatever their size. Of an update with several
    parts it is the median of each. A client's fixed share is 1/K. An update that holds a NaN makes
    NaNs of its coordinates, unless the round drops it (`nonfinite="drop"`).

    All updates are held at once: the memory of m models, and a sort of m numbers a coordinate.
    Yin et al. 2018 (arXiv 1803.01498), Algorithm 1, option I.

    Returns:
      A rule for `make_round`, whose `weights` are ones and whose `combine` is the median.

    >>> import fedjax_sim as fs, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([np.full(2, y) for y in (1.0, 2.0, 30.0)])
    >>> algorithm = fs.fedavg(lambda w, y, key: (y - w) ** 2 / 2, optax.sgd(1.0),
    ...                       fs.LocalTraining())
    >>> round_fn = fs.make_round(algorithm, fs.aggregation.median())
    >>> state = fs.init(algorithm, 0.0, data)
    >>> state, _ = round_fn(jax.random.key(0), state, data, fs.Cohort(jnp.arange(3)))
    >>> float(state.params)
    2.0
    """

    def rule(cohort: Cohort, client_weights: Array, all_client_weights: Array) -> Coefficients:
        ones = jnp.ones_like(client_weights)
        shares = ones / all_client_weights.shape[0]
        return Coefficients(ones, None, shares=shares, combine=coordinate_median)

    return rule


def coordinate_median(updates: PyTree, weights: Array, counted: Array, key: Array) -> PyTree:
    """The median over the first axis where `counted`, of every coordinate of every leaf."""
    number = jnp.sum(counted, dtype=jnp.int32)
    middle = jnp.maximum(number - 1, 0) // 2, number // 2

    def of_leaf(x: Array) -> Array:
        x = x.astype(accumulator(x.dtype))
        is_counted = counted.reshape(-1, *[1] * (x.ndim - 1))
        # Updates that do not count are infinite here, so that they are sorted behind the others.
        ordered = jnp.sort(jnp.where(is_counted, x, jnp.inf), axis=0)
        lower, upper = (jax.lax.dynamic_index_in_dim(ordered, i, 0, False) for i in middle)
        value = jnp.where(lower == upper, lower, (lower + upper) / 2)
        # A NaN is sorted behind these infinities, which could then be taken for the median.
        return jnp.where(jnp.any(is_counted & jnp.isnan(x), axis=0), jnp.nan, value)

    return jax.tree.map(of_leaf, updates)
