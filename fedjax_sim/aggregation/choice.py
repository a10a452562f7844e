"""One rule of several by its number, which a sweep may trace."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fedjax_sim.core.checks import check_index, check_takes, is_concrete
from fedjax_sim.core.trees import first_of_each
from fedjax_sim.core.types import AggregationRule, Array, Coefficients, Cohort


def chosen(index: ArrayLike, *rules: AggregationRule) -> AggregationRule:
    """The rule of this number: averages that differ by their coefficients, in one program.

    A sweep over rules then compiles once, and trains them side by side. Of a number that is known
    it is the rule itself.

    Args:
      index: a whole number from 0; may be traced. A traced one that is out of range is the nearest.
      rules: averages, as `selected` and `all_clients`. Those that see all updates, as the median,
        are programs of their own.

    Raises:
      ValueError: for no rule, a number that is known and out of range, or, when it is asked, a
        rule that combines all updates.

    >>> import fedjax_sim as fs, jax, numpy as np
    >>> cohort = fs.Cohort(jnp.arange(2), jnp.ones(2, bool))
    >>> def weights(index):
    ...     rule = chosen(index, fs.aggregation.selected, fs.aggregation.uniform)
    ...     return rule(cohort, jnp.array([3.0, 5.0]), jnp.array([3.0, 5.0, 2.0])).weights
    >>> jax.vmap(weights)(jnp.arange(2)).tolist()
    [[3.0, 5.0], [1.0, 1.0]]
    """
    if not rules:
        raise ValueError("chosen must be given at least one rule; got none")
    for rule in rules:
        if not callable(rule):
            raise ValueError(
                f"chosen must be given rules, as fs.aggregation.selected; got {rule!r}"
            )
        check_takes("aggregation", rule, "cohort", "client_weights", "all_client_weights")
    check_index("index", index, len(rules))
    if is_concrete(index):
        return rules[int(np.asarray(index))]
    return partial(_coefficients_of, jnp.asarray(index, jnp.int32), rules)


def _coefficients_of(
    index: Array,
    rules: tuple[AggregationRule, ...],
    cohort: Cohort,
    client_weights: Array,
    all_client_weights: Array,
) -> Coefficients:
    answers = [Coefficients(*rule(cohort, client_weights, all_client_weights)) for rule in rules]
    for rule, answer in zip(rules, answers, strict=True):
        if answer.combine is not None:
            name = getattr(rule, "__name__", "another")
            raise ValueError(
                "chosen must be of rules that average, as fs.aggregation.selected and "
                f".all_clients, because one that sees all updates is another program; got {name}"
            )
    dtype = client_weights.dtype

    def of_index(values: list[Array]) -> Array:
        return jnp.stack(values)[jnp.clip(index, 0, len(rules) - 1)]

    fixed = [answer.denominator is not None for answer in answers]
    denominators = [1 if x.denominator is None else x.denominator for x in answers]
    num_receivers = None
    if any(answer.num_receivers is not None for answer in answers):
        was_sent = jnp.ones(client_weights.shape, bool) if cohort.mask is None else cohort.mask
        of_cohort = jnp.sum(first_of_each(cohort.client_ids, was_sent), dtype=jnp.int32)
        num_receivers = of_index(
            [
                of_cohort if x.num_receivers is None else jnp.asarray(x.num_receivers, jnp.int32)
                for x in answers
            ]
        )
    shares = client_weights / jnp.sum(all_client_weights)
    return Coefficients(
        weights=of_index([jnp.asarray(x.weights, dtype) for x in answers]),
        denominator=of_index([jnp.asarray(d, dtype) for d in denominators]) if any(fixed) else None,
        shares=of_index([shares if x.shares is None else x.shares for x in answers]),
        num_receivers=num_receivers,
        by_weight=None
        if all(fixed) or not any(fixed)
        else of_index([jnp.asarray(not is_fixed) for is_fixed in fixed]),
    )
