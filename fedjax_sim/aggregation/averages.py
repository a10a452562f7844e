"""Aggregation rules: which coefficients the clients' updates are averaged with.

With updates `d_k = w_k - w_t`, FedAvg's two readings and their kin are all
`w_{t+1} = w_t + sum_k a_k d_k / denominator`, and a rule is nothing but a choice of
`a_k` and the denominator. Below, V are the clients that report, n_V their weights'
sum, n the sum over all K clients, and p_k = n_k / n; n_k is `data.client_weights`, the
number of examples unless the user says otherwise.

    all_clients = w_t + (n_V / n) (selected - w_t)

exactly: the first reading is the second with a server learning rate of n_V / n, so an
untuned comparison of the two is largely a comparison of server learning rates.
"""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import jax.numpy as jnp

from fedjax_sim.core.registry import declare, declared
from fedjax_sim.core.trees import first_of_each
from fedjax_sim.core.types import Array, Coefficients, Cohort

Rule = Callable[[Cohort, Array, Array], Coefficients]


def passed_uncalled(rule: Rule) -> Rule:
    """The same rule, which says what it is when it is called as factories are, without arguments.

    >>> passed_uncalled(selected)()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: fs.aggregation.selected is a rule and not the factory of one: pass it as it is, ...
    """

    @wraps(rule)
    def checked(*arguments: Any, **named: Any) -> Coefficients:
        if not arguments and not named:
            raise ValueError(
                f"fs.aggregation.{rule.__name__} is a rule and not the factory of one: pass it as "
                f"it is, without calling it, as in "
                f"fs.make_round(algorithm, fs.aggregation.{rule.__name__})"
            )
        return rule(*arguments, **named)

    return checked


@declare("the mean of the clients selected, weighed by their examples", is_default=True)
@passed_uncalled
def selected(cohort: Cohort, client_weights: Array, all_client_weights: Array) -> Coefficients:
    """Average over the clients that report: `w_{t+1} = sum_{k in V} (n_k / n_V) w_k`.

    A dropout is left out of n_V. Only the cohort receives the model.
    McMahan et al. 2017 (arXiv 1602.05629) as most code reads it.
    """
    return Coefficients(weights=client_weights, denominator=None)


@declare(
    "the mean of all K clients, weighed by their examples; one not selected still holds the model "
    "of the round before"
)
@passed_uncalled
def all_clients(cohort: Cohort, client_weights: Array, all_client_weights: Array) -> Coefficients:
    """Average over all K clients, those not selected still holding w_t.

    `w_{t+1} = sum_{k in V} (n_k / n) w_k + sum_{k not in V} (n_k / n) w_t`. A dropout
    counts with w_t, as one who was not selected; a client drawn twice counts once. All K
    clients receive the model.
    McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1 to the letter.
    """
    reports = jnp.ones(client_weights.shape, bool) if cohort.reports is None else cohort.reports
    is_first = first_of_each(cohort.client_ids, reports)
    return Coefficients(
        weights=jnp.where(is_first, client_weights, 0),
        denominator=jnp.sum(all_client_weights),
        num_receivers=jnp.asarray(all_client_weights.shape[0], jnp.int32),
    )


@declare("the plain mean of the clients selected, however many examples each has")
@passed_uncalled
def uniform(cohort: Cohort, client_weights: Array, all_client_weights: Array) -> Coefficients:
    """The plain mean of those that report: `w_{t+1} = (1/|V|) sum_{k in V} w_k`.

    A client's fixed share is 1/K. SCAFFOLD's rule (Karimireddy et al. 2020,
    arXiv 1910.06378), and scheme I of Li et al. 2020 with `sampling.with_replacement`.
    """
    ones = jnp.ones_like(client_weights)
    return Coefficients(weights=ones, denominator=None, shares=ones / all_client_weights.shape[0])


@declare(
    "an update weighs its client's share of all examples, divided by the probability of being "
    "selected: on average over cohorts the step of all K"
)
@passed_uncalled
def unbiased(cohort: Cohort, client_weights: Array, all_client_weights: Array) -> Coefficients:
    """Horvitz-Thompson: `w_{t+1} = w_t + sum_{k in V} (p_k / pi_k) d_k`.

    pi_k is the cohort's `inclusion` probability, so the expected step over cohorts is
    that of full participation. A dropout counts with w_t, which biases the step unless
    `inclusion` accounts for it. Li et al. 2020 (arXiv 1907.02189), schemes I and II.

    Raises:
      ValueError: for a cohort without inclusion probabilities.
    """
    if cohort.inclusion is None:
        raise ValueError(
            "the unbiased rule needs the probability pi_k of each client to be picked, the "
            "cohort's inclusion; got None (the samplers of fs.sampling give it; it is not known of "
            "a draw by the model's loss, nor of clients that are not always available, unless they "
            "are so by fs.sampling.traces.bernoulli)"
        )
    shares = client_weights / jnp.sum(all_client_weights)
    inclusion = jnp.asarray(cohort.inclusion, shares.dtype)
    # A padding slot may carry inclusion 0; its weight is never used.
    weights = jnp.where(inclusion > 0, shares / jnp.where(inclusion > 0, inclusion, 1), 0)
    return Coefficients(weights=weights, denominator=jnp.ones((), shares.dtype))


# All rules of this file, by name.
RULES = {name: declaration.factory for name, declaration in declared(sys.modules[__name__]).items()}
