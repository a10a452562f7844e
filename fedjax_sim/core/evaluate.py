"""The type of `evaluate`: a function of the model, or one that is marked as of the whole state."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedjax_sim.core.checks import check_takes
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import FederatedState, Params, PyTree


@dataclass(frozen=True, repr=False)
class OfState:
    """An `evaluate` that is given the state and not the model alone."""

    measure: Callable[[FederatedState], PyTree]

    def __call__(self, state: FederatedState) -> PyTree:
        return self.measure(state)

    def __repr__(self) -> str:
        return fields_of(self)


# What `fs.run`, `fs.simulate` and `fs.sweep` take: of params, unless it is marked as of the state.
Evaluate = Callable[[Params], PyTree] | OfState


def of_state(measure: Callable[[FederatedState], PyTree]) -> OfState:
    """Marks an `evaluate` that is given the state: the server's, and those of all clients.

    A run measures `evaluate(state.params)`, which suffices where all clients use one model. Where
    they have their own, `evaluate=fs.of_state(measure)` measures `measure(state)`, in the graph.
    `fs.evaluator(..., personal=algorithm)` makes one.

    Args:
      measure: state -> pytree, an `fs.FederatedState` after the round's server step.

    Raises:
      ValueError: for what is no function of one argument.

    >>> import fedjax_sim as fs, jax, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([np.full(2, y) for y in (1.0, 3.0)])
    >>> loss_fn = lambda w, batch, key: (w - batch) ** 2
    >>> algorithm = fs.ifca(loss_fn, optax.sgd(0.5), fs.LocalTraining(), num_models=2)
    >>> experiment = fs.Experiment(
    ...     algorithm, np.array([0.0, 4.0]), data, fs.sampling.everyone(), num_rounds=1,
    ...     evaluate=fs.of_state(lambda state: fs.personal_params(algorithm, state, data)))
    >>> _, history = experiment.run(jax.random.key(0))
    >>> history.evaluation.tolist()  # after one round, of each client
    [[1.0, 3.0]]
    """
    if not callable(measure):
        raise ValueError(f"measure must be a function of the state; got {measure!r}")
    check_takes("measure", measure, "state")
    return OfState(measure)


def subject_of(evaluate: Any, state: FederatedState) -> PyTree:
    """The argument of an `evaluate`: the whole state if it is marked so, or else the model."""
    return state if isinstance(evaluate, OfState) else state.params
