"""How a resumed run reads the rounds that were done before it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.history import History
from fedjax_sim.host.checkpoints import Checkpoints
from fedjax_sim.host.driver import history_of
from fedjax_sim.host.stopping import Stop, replay
from fedjax_sim.training.experiment import Experiment


def rounds_that_met(
    criterion: Stop | None,
    checkpoints: Checkpoints,
    row: History,
    rows_as_now: Callable[[History], History],
) -> list[int]:
    """The saved rounds, counted from 1, that meet the new stop criterion."""
    if criterion is None:
        return []
    met = replay(criterion, rows_as_now(history_of(checkpoints, row)))[1]
    return [int(i) + 1 for i in np.flatnonzero(met)]


def without_last_evaluation(experiment: Experiment, rows: History) -> History:
    """The rounds done, as a run of R rounds would have them.

    A run of fewer rounds also evaluated its last one; that evaluation is taken out here, unless
    it is due in a longer run, too.
    """
    rounds_done = len(rows.evaluated)
    due = rounds_done % experiment.evaluate_every == 0 or rounds_done == experiment.num_rounds
    if not rounds_done or due or not rows.evaluated[-1]:
        return rows

    def without(x: Any) -> Any:
        nothing = np.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0
        return np.concatenate([x[:-1], np.full_like(x[-1:], nothing)])

    evaluation = jax.tree.map(without, rows.evaluation)
    return rows._replace(evaluation=evaluation, evaluated=without(rows.evaluated))
