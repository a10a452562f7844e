"""What a sweep keeps of its runs' models: the final ones, or the best so far in the loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.types import Array, FederatedState, Params, PyTree
from fedjax_sim.results.columns import is_evaluated, lowest_is_best, measures, score_of
from fedjax_sim.results.trained import KEPT, trained_params
from fedjax_sim.training.experiment import Experiment
from fedjax_sim.training.run import History


class Keep(NamedTuple):
    """What is kept of each run of a group.

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


class Model(NamedTuple):
    """A run's model on the host; value and round are NumPy's, None for a final model's."""

    params: Params
    value: Any
    round: Any


def check_keep(keep_models: str | None, metric: str | None, opaque: bool, has_out: bool) -> None:
    """Refuses what cannot be kept, whatever the experiment.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    if keep_models is None:
        if metric is not None:
            raise ValueError(
                f'metric is what keep_models="best" goes by; got metric={metric!r} without it'
            )
        return
    if keep_models not in KEPT:
        raise ValueError(f"keep_models must be None, {' or '.join(KEPT)}; got {keep_models!r}")
    if metric is not None and keep_models != "best":
        raise ValueError(
            f'metric is what keep_models="best" goes by; got metric={metric!r} and '
            f"keep_models={keep_models!r}"
        )
    if opaque:
        raise ValueError(
            "keep_models needs an experiment that returns an fs.Experiment; a function of (key, "
            "hyper-parameters) may return its params itself"
        )
    if not has_out:
        raise ValueError("keep_models needs out, the folder where models are kept; got None")


def keep_of(
    keep_models: str | None,
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
    if keep_models is None:
        return None
    if keep_models == "final":
        return Keep(keep_models, None)
    evaluate = experiment.evaluate
    known = {} if evaluate is None else measures({}, jax.eval_shape(evaluate, state.params))
    chosen = metric or score_of(known)
    if chosen is None or (chosen not in known and chosen.startswith("train_")):
        # What the clients report takes a trace of a round.
        row = jax.eval_shape(experiment.next_round, key, state)[1]
        known |= measures(row.rounds.train, ())
    scalars = [name for name, x in known.items() if x.shape == ()]
    if chosen not in scalars:
        given = repr(metric) if metric is not None else "None, and the experiment evaluates nothing"
        raise ValueError(
            f'metric, by which keep_models="best" chooses, must be one of {", ".join(scalars)}; '
            f"got {given}"
        )
    return Keep(keep_models, chosen)


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


def on_host(keep: Keep, experiment: Experiment, carry: PyTree) -> list[Model]:
    """The models of a batch's runs.

    Args:
      carry: leaves [devices, side by side, ...], behind the last round.
    """
    if keep.kept == "best":
        _, best = carry
        model = Model(*best)
    else:

        def final(carry: PyTree) -> Params:
            return trained_params(experiment.state_of(jnp.int32(0), carry))

        model = Model(jax.vmap(jax.vmap(final))(carry), None, None)
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), model)
    count = len(jax.tree.leaves(flat)[0])
    return [jax.tree.map(lambda x, i=i: x[i], flat) for i in range(count)]
