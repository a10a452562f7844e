"""The model of a run that is kept: the final one, or the best so far, which the loop carries."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.evaluate import subject_of
from fedjax_sim.core.history import History
from fedjax_sim.core.types import Array, FederatedState, Params, PyTree
from fedjax_sim.results.columns import is_evaluated, lowest_is_best, measures, score_of
from fedjax_sim.results.trained import KEPT, trained_params
from fedjax_sim.training.experiment import Experiment


class Keep(NamedTuple):
    """Which model of a run is kept.

    Attributes:
      kept: "final" or "best".
      metric: the column by which the best is chosen; None for "final".
    """

    kept: str
    metric: str | None


class Best(NamedTuple):
    """The best model so far, carried from round to round.

    Attributes:
      params: the first model, until one was measured.
      value: Float[], of the metric.
      round: Int[], rounds that it was trained for; 0 until one was measured.
    """

    params: Params
    value: Array
    round: Array


def keep_of(
    kept: str | None,
    metric: str | None,
    experiment: Experiment,
    key: Array,
    state: FederatedState,
) -> Keep | None:
    """The model to keep of an experiment's run, with its metric: the score if none is named.

    Args:
      state: its shapes.

    Raises:
      ValueError: for an unknown metric, or one that is not one number for each round.
    """
    if kept is None:
        return None
    if kept == "final":
        return Keep(kept, None)
    evaluate = experiment.evaluate
    measured = (
        {}
        if evaluate is None
        else measures({}, jax.eval_shape(evaluate, subject_of(evaluate, state)))
    )
    chosen = metric or score_of(measured)
    if chosen is None or (chosen not in measured and chosen.startswith("train_")):
        # The names of what clients report are known only from the trace of a round.
        row = experiment.shapes_of_round(key, state)
        measured |= measures(row.rounds.train, ())
    scalars = [name for name, x in measured.items() if x.shape == ()]
    if chosen not in scalars:
        metric_text = (
            repr(metric) if metric is not None else "None, and the experiment evaluates nothing"
        )
        raise ValueError(
            f"metric, by which the best model is chosen, must be one of {', '.join(scalars)}; "
            f"got {metric_text}"
        )
    return Keep(kept, chosen)


def first_best(state: FederatedState) -> Best:
    """The value to carry before round 0."""
    return Best(trained_params(state), jnp.full((), jnp.nan), jnp.int32(0))


def better(keep: Keep, best: Best, state: FederatedState, row: History) -> Best:
    """The best model after a round; of equal ones the first.

    Args:
      state: after the round.
      row: the round's metrics.
    """
    assert keep.metric is not None
    value = measures(row.rounds.train, row.evaluation)[keep.metric].astype(best.value.dtype)
    gain = best.value - value if lowest_is_best(keep.metric) else value - best.value
    is_better = jnp.isfinite(value) & ((best.round == 0) | (gain > 0))
    if is_evaluated(keep.metric):
        is_better &= row.evaluated
    candidate = Best(trained_params(state), value, state.round)
    return jax.tree.map(lambda new, old: jnp.where(is_better, new, old), candidate, best)


def check_keep_model(keep_model: Any, metric: str | None) -> None:
    """Checks `keep_model` and `metric`, as far as that does not depend on the experiment.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    if keep_model not in KEPT:
        raise ValueError(f"keep_model must be {' or '.join(KEPT)}; got {keep_model!r}")
    if metric is not None and keep_model != "best":
        raise ValueError(
            f'metric is what keep_model="best" goes by; got metric={metric!r} and '
            f"keep_model={keep_model!r}"
        )


def advance(
    keep: Keep, experiment: Experiment, key: Array, round: Array, carry: PyTree
) -> tuple[PyTree, History]:
    """`experiment.advance` of a pair of a carry and the best model so far.

    A round that is evaluated only because it is the last does not count here, because this run may
    be continued to a longer one, which does not evaluate it. `with_the_last` adds it at the end.
    """
    carry, best = carry
    carry, row = experiment.advance(key, round, carry)
    due = (round + 1) % experiment.evaluate_every == 0
    state = experiment.state_of(round + 1, carry)
    best = better(keep, best, state, row._replace(evaluated=row.evaluated & due))
    return (carry, best), row


def with_the_last(keep: Keep, best: Best, state: FederatedState, history: History) -> Best:
    """The best model of the rounds that are done, including the last; on the host.

    Args:
      state: after the last round.
      history: of all rounds that are done.
    """
    if not len(history.evaluated):
        return best
    return jax.device_get(better(keep, best, state, jax.tree.map(lambda x: x[-1], history)))
