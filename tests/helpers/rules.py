"""All rules, or some of them, in one compiled round."""

import jax.numpy as jnp

import fedjax_sim as fs

RULES = tuple(fs.aggregation.RULES)


def any_rule(number, names=RULES):
    """The rule of this number, which may be traced: one compilation serves all of these names."""

    def rule(cohort, weights, all_weights):
        answers = [fs.aggregation.RULES[name](cohort, weights, all_weights) for name in names]
        denominators = [
            jnp.sum(jnp.where(cohort.reports, answer.weights, 0))
            if answer.denominator is None
            else answer.denominator
            for answer in answers
        ]
        only_means = all(answer.denominator is None for answer in answers)
        fixed = weights / jnp.sum(all_weights)
        shares = [fixed if answer.shares is None else answer.shares for answer in answers]
        return fs.Coefficients(
            weights=jnp.stack([answer.weights for answer in answers])[number],
            denominator=None if only_means else jnp.stack(denominators)[number],
            shares=jnp.stack(shares)[number],
        )

    return rule
