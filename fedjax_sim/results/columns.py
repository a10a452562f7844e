"""The columns of tables: their names, the names that are reserved, and where they have values."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.evaluate import Evaluate, subject_of
from fedjax_sim.core.history import Communication, History
from fedjax_sim.core.types import FederatedState, PyTree

BYTES = ("bytes_down", "bytes_up")
SECONDS = "seconds"  # simulated, so far; there is such a column only where a run has a clock
STALENESS = ("staleness_mean", "staleness_max")  # of asynchronous rounds alone

# Columns of what a round costs; every other column is a measurement.
LEDGER = frozenset(
    (
        "receivers",
        "senders",
        "reporting",
        "nonfinite",
        "client_steps",
        "lane_steps",
        "examples",
        "reporting_share",
        "update_norm",
        "empty",
        "evaluated",
        *BYTES,
        SECONDS,
        *STALENESS,
    )
)

# Columns of every table, also of runs of functions that are no `fs.Experiment`.
LABELS = frozenset(("seed", "round", "rounds", "complete", "diverged"))
# The columns of an `fs.Experiment` beside what is measured.
COLUMNS = LABELS | LEDGER | {"useful_share"}


def is_measured(name: str) -> bool:
    """Whether a column is a measurement, and no cost of a round."""
    return name not in LEDGER


def is_evaluated(name: str) -> bool:
    """Whether a column is of `evaluate`, and has values in the evaluated rounds alone."""
    return is_measured(name) and not name.startswith("train_")


def has_value(rounds: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Whether a column has a value after each round, Bool[rounds].

    A column of `evaluate` has no value after a round that was not evaluated. A column that the
    clients report, and the norm of their update, is NaN and has no value after a round that
    aggregated nothing. A NaN anywhere else is a value: the run has diverged.

    Args:
      rounds: the columns [rounds, ...] by name.

    >>> rounds = {"train_loss": np.array([2.0, np.nan, np.nan]),
    ...           "empty": np.array([False, True, False])}
    >>> has_value(rounds, "train_loss").tolist()
    [True, False, True]
    """
    column = rounds[name]
    if is_evaluated(name):
        evaluated = rounds.get("evaluated")
        return np.ones(len(column), bool) if evaluated is None else evaluated.astype(bool)
    # Results of the first versions have no column `empty`.
    empty = rounds.get("empty", np.asarray(rounds.get("reporting", 1)) == 0)
    if name.startswith("train_") or name == "update_norm":
        return ~(np.isnan(column).reshape(len(column), -1).all(axis=1) & empty.astype(bool))
    return np.ones(len(column), bool)


def lowest_is_best(metric: str) -> bool:
    """Whether low is good: of losses, errors, spreads over clients, rounds to a target, a budget.

    >>> lowest_is_best("test_loss"), lowest_is_best("test_accuracy")
    (True, False)
    >>> lowest_is_best("clients_loss_mean"), lowest_is_best("clients_accuracy_std")
    (True, True)
    """
    parts = metric.lower().split("_")
    if parts[0] == "clients" and parts[-1] in ("std", "jain"):
        return parts[-1] == "std"  # Jain's index of fairness is best at 1, of losses, too
    return metric.startswith("rounds_to") or not {"loss", "error", "mse", "epsilon"}.isdisjoint(
        parts
    )


def is_share(metric: str) -> bool:
    """Whether a metric lies in [0, 1] by its name: an accuracy, a share, Jain's index.

    >>> is_share("clients_accuracy_worst_tenth"), is_share("test_loss"), is_share("test_r2")
    (True, False, False)
    """
    parts = metric.lower().split("_")
    return "accuracy" in parts or parts[-1] in ("share", "jain")


def score_of(metrics: Iterable[str]) -> str | None:
    """The metric that configurations are compared by: of a validation set before a test set.

    >>> score_of(["train_loss", "test_accuracy", "validation_accuracy"])
    'validation_accuracy'
    """
    metrics = list(metrics)
    parts = ("validation", "test")
    preferred = [f"{part}_{measure}" for part in parts for measure in ("accuracy", "r2", "loss")]
    candidates = [name for name in preferred if name in metrics]
    candidates += [name for part in parts for name in metrics if name.startswith(f"{part}_")]
    candidates += [
        name for name in metrics if not name.startswith(("train_", "clients_", "rounds_to"))
    ]
    return next(iter([*candidates, *metrics]), None)


def on_test(metric: str) -> str | None:
    """The test set's metric of the same kind as a validation set's; None for any other metric.

    >>> on_test("validation_accuracy"), on_test("test_accuracy")
    ('test_accuracy', None)
    """
    part, _, name = metric.partition("_")
    return f"test_{name}" if part == "validation" else None


def check_evaluated(evaluate: Evaluate | None, state: FederatedState) -> list[str]:
    """The names of the columns that `evaluate` returns for such a state, before anything compiles.

    Raises:
      ValueError: for a name that every table has a column of already.
    """
    if evaluate is None:
        return []
    names = list(named(jax.eval_shape(evaluate, subject_of(evaluate, state)), "evaluation"))
    for name in names:
        if name in COLUMNS:
            raise ValueError(
                f"evaluate must not return {name!r}, which is a column of its own; taken are "
                f"{', '.join(sorted(COLUMNS))}"
            )
    return names


def columns(history: History, exchange: Communication | None = None) -> dict[str, np.ndarray]:
    """A run's history by column, `[R, ...]` each: names as in the tables.

    `train_NAME` for what the clients report, the fields of `RoundMetrics`, what `evaluate`
    returned by its own names, `seconds` so far (Float64) if the rounds had a clock, and
    `bytes_down` and `bytes_up` so far (Int64; beyond 2^63 Float64) if the bytes of an exchange are
    given.

    Raises:
      ValueError: if `evaluate` gives a name that a column has already.
    """
    rounds = history.rounds
    by_column = {f"train_{name}": np.asarray(x) for name, x in rounds.train.items()}
    apart = ("train", "digits", "staleness", SECONDS)
    by_column |= {k: np.asarray(x) for k, x in rounds._asdict().items() if k not in apart}
    by_column |= {f"staleness_{name}": np.asarray(x) for name, x in dict(rounds.staleness).items()}
    by_column |= rounds.counts()
    by_column["evaluated"] = np.asarray(history.evaluated)
    if not isinstance(rounds.seconds, tuple):
        by_column[SECONDS] = np.cumsum(np.asarray(rounds.seconds, np.float64), axis=0)
    if exchange is not None:
        for name, exchanges_of_round, num_bytes in (
            ("bytes_down", rounds.receivers, exchange.down),
            ("bytes_up", rounds.senders, exchange.up),
        ):
            exchanges = np.cumsum(np.asarray(exchanges_of_round, np.int64))
            total_bytes = int(exchanges.max(initial=0)) * num_bytes
            # From 2^63 bytes on a 64-bit integer overflows, so the column is Float64 and rounded.
            by_column[name] = exchanges * (num_bytes if total_bytes < 2**63 else float(num_bytes))
    for name, x in named(history.evaluation, "evaluation").items():
        if name in by_column:
            raise ValueError(f"evaluate must not return {name!r}, which is a column of its own")
        by_column[name] = x
    return by_column


def measures(train: Mapping[str, Any], evaluation: PyTree) -> dict[str, Any]:
    """A round's measurements by column; arrays may be traced, or only their shapes.

    Args:
      train: name -> what the clients report.
      evaluation: what `evaluate` returned.
    """
    return {f"train_{name}": x for name, x in dict(train).items()} | _by_name(
        evaluation, "evaluation"
    )


def named(tree: PyTree, otherwise: str) -> dict[str, np.ndarray]:
    """The leaves by their paths: `{"a": {"b": x}}` is `{"a_b": x}`, a bare leaf `otherwise`."""
    return {name: np.asarray(x) for name, x in _by_name(tree, otherwise).items()}


def _by_name(tree: PyTree, otherwise: str) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]

    def name(path: Any) -> str:
        parts = [str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path]
        return "_".join(parts) or otherwise

    return {name(path): x for path, x in leaves}


def names_of(result: PyTree) -> set[str]:
    """The columns of a result, from its shapes: a `History`, or a pytree of one's own."""
    if isinstance(result, History):
        return set(columns(jax.tree.map(lambda x: np.empty(x.shape, x.dtype), result)))
    return set(named(result, "value"))
