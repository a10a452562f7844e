"""All four rules in one compiled round."""

import jax.numpy as jnp

import fedjax_sim as fs

RULES = tuple(fs.aggregation.RULES)


def any_rule(number):
    """The rule of this number, which may be traced: one compilation serves all four."""

    def rule(cohort, weights, all_weights):
        answers = [rule(cohort, weights, all_weights) for rule in fs.aggregation.RULES.values()]
        denominators = [
            jnp.sum(jnp.where(cohort.reports, answer.weights, 0))
            if answer.denominator is None
            else answer.denominator
            for answer in answers
        ]
        chosen = jnp.stack([answer.weights for answer in answers])[number]
        return chosen, jnp.stack(denominators)[number]

    return rule
