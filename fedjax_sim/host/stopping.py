"""Criteria that end a run, by one round or by all rounds so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import check_count, check_number, check_same_spec, check_takes
from fedjax_sim.core.history import History
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.host.fingerprint import traced
from fedjax_sim.results.columns import lowest_is_best


class Stop(NamedTuple):
    """A criterion with a memory; one without is a function of one round's `History`.

    Attributes:
      init: the memory before round 0, a pytree of arrays.
      update: (memory, `History` of one round) -> (new memory, Bool[], whether the run ends with
        this round), in the graph.
      name: its name in the error of a resume with another criterion.
    """

    init: PyTree
    update: Callable[[PyTree, History], tuple[PyTree, Array]]
    name: str = "stop"

    def __repr__(self) -> str:
        return f"Stop({self.name})"


NEVER = Stop((), lambda nothing, row: (nothing, jnp.array(False)))

# A criterion, or several, of which the first one met ends the run.
Criterion = Callable[[History], Array] | Stop | Sequence[Any]


@dataclass(frozen=True, repr=False)
class _Reaches:
    """See `reaches`."""

    name: str
    target: float
    __name__: str  # the name that a resume compares

    def __call__(self, history: History) -> Array:
        value, is_measured = _measured(history, self.name)
        met = value <= self.target if lowest_is_best(self.name) else value >= self.target
        return is_measured & met

    def __repr__(self) -> str:
        return f"reaches({self.name!r}, {self.target:g})"


def reaches(name: str, target: float) -> Callable[[History], Array]:
    """A `stop` for `fs.simulate`: once the metric is at least (loss: at most) target.

    Args:
      name: of a value that the experiment's `evaluate` returns, as "test_accuracy", or of one that
        the clients report, as "train_loss". A loss (by its name, as "clients_loss_mean") is
        to come down to the target.
    """

    return _Reaches(name, target, f"{name} reaches {target:g}")


def patience(name: str, evaluations: int, min_delta: float = 0.0) -> Stop:
    """A `stop` for `fs.simulate`: once so many evaluations in a row brought no better value.

    What is better than the best so far by more than `min_delta` sets the count to 0, and is the
    best from then on; a NaN is never better. Rounds that are not evaluated do not count, so with
    `evaluate_every` r the run ends r x `evaluations` rounds behind its best.

    Args:
      name: as of `reaches`: of a loss, by its name, lower is better, else higher. A value that
        clients report, as "train_loss", is known in every round that has one.
      evaluations: at least 1.
      min_delta: at least 0.

    >>> import fedjax_sim as fs, jax, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones(3), "y": np.ones(3)}] * 4)
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.5), fs.LocalTraining())
    >>> experiment = fs.Experiment(algorithm, 0.0, data, fs.sampling.uniform(2), num_rounds=50)
    >>> run = fs.simulate(experiment, jax.random.key(0), stop=fs.patience("train_loss", 3))
    >>> run.status, run.history.rounds.train["loss"].tolist()  # 0 is the best; thrice no better
    ('stopped', [1.0, 0.0, 0.0, 0.0, 0.0])
    """
    check_count("evaluations", evaluations)
    check_number("min_delta", min_delta, lambda x: x >= 0, "at least 0")
    lower = lowest_is_best(name)
    worst = jnp.asarray(jnp.inf if lower else -jnp.inf, float)

    def update(remembered: tuple[Array, Array], history: History) -> tuple[Any, Array]:
        best, waited = remembered
        value, is_measured = _measured(history, name)
        value = value.astype(best.dtype)
        better = is_measured & ((value < best - min_delta) if lower else (value > best + min_delta))
        waited = jnp.where(better, 0, waited + is_measured.astype(waited.dtype))
        return (jnp.where(better, value, best), waited), waited >= evaluations

    by_more_than = f" by more than {min_delta:g}" if min_delta else ""
    name_of_stop = f"{name} no better{by_more_than} in {evaluations} evaluations"
    return Stop((worst, jnp.zeros((), jnp.int32)), update, name_of_stop)


def any_of(*criteria: Criterion) -> Stop:
    """A `stop` for `fs.simulate`: once one of several is met.

    >>> any_of(reaches("test_accuracy", 0.9), patience("test_loss", 20)).name
    'test_accuracy reaches 0.9, or test_loss no better in 20 evaluations'
    """
    if not criteria:
        raise ValueError("any_of needs at least one criterion; got none")
    stops = [as_stop(criterion) for criterion in criteria]

    def update(remembered: tuple[PyTree, ...], history: History) -> tuple[PyTree, Array]:
        results = [
            stop.update(memory, history) for stop, memory in zip(stops, remembered, strict=True)
        ]
        met = jnp.stack([jnp.asarray(met) for _, met in results])
        return tuple(memory for memory, _ in results), jnp.any(met)

    name = ", or ".join(stop.name for stop in stops)
    return Stop(tuple(stop.init for stop in stops), update, name)


def as_stop(stop: Criterion) -> Stop:
    """The criterion as a `Stop`.

    Raises:
      ValueError: for a value that is no criterion.
    """
    if isinstance(stop, Stop):
        # Arrays without the weak type of a Python number, which an update would not keep.
        strong = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), stop.init)
        return stop._replace(init=strong)
    if isinstance(stop, (tuple, list)):
        return any_of(*stop)
    if not callable(stop):
        raise ValueError(
            "stop must be a function of a round's History, as fs.reaches makes one, an fs.Stop, as "
            f"fs.patience makes one, or several of these; got {stop!r}"
        )
    check_takes("stop", stop, "history")
    function = stop
    return Stop(
        (), lambda nothing, row: (nothing, function(row)), getattr(stop, "__name__", "stop")
    )


def check_stop(stop: Stop, row: History) -> str:
    """Refuses a criterion that cannot be called after each round; returns its checksum.

    Args:
      row: the shapes of one round's.

    Raises:
      ValueError: saying what it makes of its memory, or returns for a Bool[].
    """
    remembered, met = jax.eval_shape(stop.update, stop.init, row)
    check_same_spec("stop", "what it remembers", stop.init, remembered)
    if met.shape != () or met.dtype != bool:
        raise ValueError(f"stop must return a Bool[]; got {met.dtype}{list(met.shape)}")

    def parts(remembered: PyTree, row: History) -> dict[str, PyTree]:
        # The first memory is compared by its numbers, later ones as arguments of `update`.
        return {
            "init": jax.tree.map(jnp.asarray, stop.init),
            "update": stop.update(remembered, row),
        }

    checksums = traced(parts, stop.init, row)
    return f"{checksums['init']} {checksums['update']}"


def replay(stop: Stop, rows: History) -> tuple[PyTree, Array]:
    """A criterion's memory after rounds that are done, and Bool[rounds], which of them meet it."""
    return jax.jit(lambda rows: jax.lax.scan(stop.update, stop.init, rows))(rows)


def _measured(history: History, name: str) -> tuple[Array, Array]:
    """A metric of one round, and whether it was measured in this round."""
    evaluation: Any = history.evaluation
    train = {f"train_{key}": value for key, value in history.rounds.train.items()}
    if isinstance(evaluation, dict) and name in evaluation:
        return evaluation[name], history.evaluated
    if name in train:
        return train[name], ~jnp.isnan(train[name])
    names = ", ".join(evaluation) if isinstance(evaluation, dict) else "no names"
    raise ValueError(
        f"stop must be of a value that evaluate returns; got {name!r}, and it returns {names} "
        f"(clients report {', '.join(train)})"
    )
