"""What a run that is resumed makes of the rounds that are done."""

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
    as_it_were: Callable[[History], History],
) -> list[int]:
    """Those of the rounds done, counted from 1, that meet the criterion of what is to run."""
    if criterion is None:
        return []
    met = replay(criterion, as_it_were(history_of(checkpoints, row)))[1]
    return [int(i) + 1 for i in np.flatnonzero(met)]


def without_last_evaluation(experiment: Experiment, rows: History) -> History:
    """The rounds done as a run of R rounds has them: a shorter one evaluated its last, too."""
    done = len(rows.evaluated)
    due = done % experiment.evaluate_every == 0 or done == experiment.num_rounds
    if not done or due or not rows.evaluated[-1]:
        return rows

    def without(x: Any) -> Any:
        nothing = np.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0
        return np.concatenate([x[:-1], np.full_like(x[-1:], nothing)])

    evaluation = jax.tree.map(without, rows.evaluation)
    return rows._replace(evaluation=evaluation, evaluated=without(rows.evaluated))
