"""Rounds that are compiled once and called for every cohort, and count their traces."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_sim.aggregation import selected
from fedjax_sim.core.types import AggregationRule, Cohort, FederatedAlgorithm, FederatedState
from fedjax_sim.execution import packed, replicate, sharded, vmapped
from fedjax_sim.execution.strategy import as_strategy
from fedjax_sim.testing.problem import Problem
from fedjax_sim.training.round import make_round
from fedjax_sim.training.state import init

KEY = 3  # the seed of all rounds
ROUNDS = 2  # on each cohort, so that what clients keep is read once


def all_devices() -> Mesh:
    """A mesh of all devices of this process."""
    return Mesh(np.array(jax.local_devices()), ("clients",))


def strategies() -> dict[str, Any]:
    """All ways to run clients, the simplest first."""
    return {
        "vmapped()": vmapped(),
        "packed(1)": packed(1),
        "packed(4)": packed(4),
        "sharded(mesh, packed(2))": sharded(all_devices(), packed(2)),
    }


class Rounds:
    """Rounds of an algorithm on a problem, from its first model."""

    def __init__(
        self,
        algorithm: FederatedAlgorithm,
        problem: Problem,
        rule: AggregationRule = selected,
        strategy: Callable[..., Any] | None = None,
    ) -> None:
        self.traces = 0
        strategy = vmapped() if strategy is None else strategy
        round_fn = make_round(algorithm, rule, strategy)
        self.data, self.start = problem.data, init(algorithm, problem.params, problem.data)
        mesh = as_strategy(strategy).mesh
        if mesh is not None:
            self.data, self.start = replicate((self.data, self.start), mesh)
        self.key = jax.random.key(KEY)

        def counted(key: Any, state: Any, data: Any, cohort: Any) -> Any:
            self.traces += 1
            return round_fn(key, state, data, cohort)

        self._round = jax.jit(counted)

    def after(
        self, cohorts: Iterable[Cohort], state: FederatedState | None = None
    ) -> FederatedState:
        """The state after a round of each cohort."""
        state = self.start if state is None else state
        for cohort in cohorts:
            state, _ = self._round(self.key, state, self.data, cohort)
        return state


def values_of(state: FederatedState) -> Any:
    """What is compared of a state."""
    return state.params, state.server, state.clients
