"""Which model of a run is kept: the final one, or the best so far, carried in the loop."""

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
    """What is kept of a run.

    Attributes:
      kept: "final" or "best".
      metric: the column that the best is best in; None for "final".
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
    """What is kept of an experiment's run, its metric chosen: its score if none is named.

    Args:
      state: its shapes.

    Raises:
      ValueError: for a metric that it has not, or that is no number a round.
    """
    if kept is None:
        return None
    if kept == "final":
        return Keep(kept, None)
    evaluate = experiment.evaluate
    known = (
        {}
        if evaluate is None
        else measures({}, jax.eval_shape(evaluate, subject_of(evaluate, state)))
    )
    chosen = metric or score_of(known)
    if chosen is None or (chosen not in known and chosen.startswith("train_")):
        # What the clients report takes a trace of a round.
        row = experiment.shapes_of_round(key, state)
        known |= measures(row.rounds.train, ())
    scalars = [name for name, x in known.items() if x.shape == ()]
    if chosen not in scalars:
        given = repr(metric) if metric is not None else "None, and the experiment evaluates nothing"
        raise ValueError(
            f"metric, by which the best model is chosen, must be one of {', '.join(scalars)}; "
            f"got {given}"
        )
    return Keep(kept, chosen)


def first_best(state: FederatedState) -> Best:
    """Before round 0."""
    return Best(trained_params(state), jnp.full((), jnp.nan), jnp.int32(0))


def better(keep: Keep, best: Best, state: FederatedState, row: History) -> Best:
    """The best so far behind a round; of equal ones the first.

    Args:
      state: behind the round.
      row: what is reported of it.
    """
    assert keep.metric is not None
    value = measures(row.rounds.train, row.evaluation)[keep.metric].astype(best.value.dtype)
    gain = best.value - value if lowest_is_best(keep.metric) else value - best.value
    is_better = jnp.isfinite(value) & ((best.round == 0) | (gain > 0))
    if is_evaluated(keep.metric):
        is_better &= row.evaluated
    here = Best(trained_params(state), value, state.round)
    return jax.tree.map(lambda new, old: jnp.where(is_better, new, old), here, best)


def check_keep_model(keep_model: Any, metric: str | None) -> None:
    """Refuses what a run cannot keep.

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
    """`experiment.advance` of a carry with the best model so far behind it.

    A round that is evaluated only because it is the last does not count, for a longer run, which
    this may become, does not evaluate it; `with_the_last` looks at it.
    """
    carry, best = carry
    carry, row = experiment.advance(key, round, carry)
    due = (round + 1) % experiment.evaluate_every == 0
    state = experiment.state_of(round + 1, carry)
    best = better(keep, best, state, row._replace(evaluated=row.evaluated & due))
    return (carry, best), row


def with_the_last(keep: Keep, best: Best, state: FederatedState, history: History) -> Best:
    """The best model of a run's rounds that are done, the last of them included; on the host.

    Args:
      state: behind the last one.
      history: of all of them.
    """
    if not len(history.evaluated):
        return best
    return jax.device_get(better(keep, best, state, jax.tree.map(lambda x: x[-1], history)))
