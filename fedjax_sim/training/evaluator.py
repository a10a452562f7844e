"""What a run is measured by, as scalars: of the global model, or of each client's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_sim.core.checks import check_count, check_takes
from fedjax_sim.core.evaluate import OfState
from fedjax_sim.core.loss import check_examples
from fedjax_sim.core.types import Array, FederatedAlgorithm, FederatedState, LossFn, Params
from fedjax_sim.data import FederatedData, Source, check_data, check_whole
from fedjax_sim.execution.placing import check_mesh_or_none
from fedjax_sim.training.evaluation import Evaluation, client_statistics, evaluate
from fedjax_sim.training.flat import check_flat, looked_at
from fedjax_sim.training.global_model import has_global_model
from fedjax_sim.training.personal import evaluate_clients


@overload
def evaluator(
    metric_fn: LossFn,
    test: FederatedData | Source | None = ...,
    clients: FederatedData | Source | None = ...,
    *,
    validation: FederatedData | Source | None = ...,
    personal: None = ...,
    train: FederatedData | None = ...,
    lower_is_better: tuple[str, ...] = ...,
    batch_size: int = ...,
    mesh: Mesh | None = ...,
) -> Callable[[Params], dict[str, Array]]: ...


@overload
def evaluator(
    metric_fn: LossFn,
    test: FederatedData | None = ...,
    clients: FederatedData | None = ...,
    *,
    validation: FederatedData | None = ...,
    personal: FederatedAlgorithm,
    train: FederatedData | None = ...,
    lower_is_better: tuple[str, ...] = ...,
    batch_size: int = ...,
    mesh: Mesh | None = ...,
) -> OfState: ...


def evaluator(
    metric_fn: LossFn,
    test: FederatedData | Source | None = None,
    clients: FederatedData | Source | None = None,
    *,
    validation: FederatedData | Source | None = None,
    personal: FederatedAlgorithm | None = None,
    train: FederatedData | None = None,
    lower_is_better: tuple[str, ...] = ("loss",),
    batch_size: int = 1024,
    mesh: Mesh | None = None,
) -> Callable[[Params], dict[str, Array]] | OfState:
    """A function of the model, for `fs.run`, `fs.simulate` and `fs.sweep`: scalars by name.

    `test_NAME` is the mean of each metric over the test set, `validation_NAME` over the validation
    set, which `fs.Results.best` then chooses by. `clients_NAME_STATISTIC` is each of
    `ClientStatistics` of the model's metric on the clients' own examples, in one pass over
    them. NAME is "loss" or a name that metric_fn gives.

    With `personal` it is one of the state (`fs.of_state`): each client's own model is measured, as
    by `fs.evaluate_clients`, on the client's own part of each of these sets, which must then be
    federations of the same K clients. `test_NAME` is then the mean over all test examples, each by
    the model of the client whose it is; `personal_NAME_mean` and `personal_NAME_worst_tenth` are
    those of `ClientStatistics` over the clients' own test examples, and `global_NAME_mean` and
    `global_NAME_worst_tenth` the global model's, unless clients keep a part of it or there are
    several.

    Without `personal`, each set may be a `Source`, which is read block by block, as by `evaluate`.

    Args:
      metric_fn: as `loss_fn`.
      test: a test set, `fs.FederatedData.from_clients([test])`.
      clients: a federation.
      validation: as `test`; `fs.partition.holdout` makes one of a split's examples.
      personal: the algorithm, for its clients' own models; None for the global model.
      train: what the clients train on, which is to be given with `personal`.
      lower_is_better: metrics of which the highest are the worst.
      batch_size: examples at a time, on each device.
      mesh: over whose devices the examples are dealt, or with `personal` the clients, as by
        `evaluate`: the one of the run's `execution.sharded`.

    Raises:
      ValueError: if there is neither `test` nor `clients` nor `validation`; for `personal` without
        `train`, or the other way round; from the function, as soon as it is traced, what
        `evaluate` and `evaluate_clients` refuse, by the name that the examples have here.

    >>> import numpy as np
    >>> test = FederatedData.from_clients([np.array([1.0, 3.0])])
    >>> values = evaluator(lambda params, batch, key: batch - params, test)(0.0)
    >>> {name: float(x) for name, x in values.items()}
    {'test_loss': 2.0}
    """
    parts = {"validation": validation, "test": test}
    if test is None and clients is None and validation is None:
        raise ValueError("evaluator must be given test, clients, validation or several; got none")
    for name, data in (*parts.items(), ("clients", clients), ("train", train)):
        if data is not None:
            if personal is None:
                check_flat(data, name)
            else:
                check_whole(check_data(data, name), name)
    if (personal is None) != (train is None):
        missing, given_name = (
            ("train", "personal") if personal is not None else ("personal", "train")
        )
        raise ValueError(
            f"{missing} must be given with {given_name}: whose models are measured, "
            "and what they train on"
        )
    batch_size = check_count("batch_size", batch_size)
    check_mesh_or_none(mesh)
    check_takes("metric_fn", metric_fn, "params", "batch", "key")

    def scores(measure: Callable[[Any], Evaluation]) -> dict[str, Array]:
        values: dict[str, Array] = {}
        for part, examples in parts.items():
            if examples is not None:
                mean = measure(examples).mean
                values |= {f"{part}_{name}": value for name, value in mean.items()}
        if clients is not None:
            for name, of_clients in measure(clients).clients.items():
                statistics = client_statistics(
                    of_clients,
                    jnp.asarray(clients.client_weights),
                    jnp.asarray(clients.num_examples) > 0,
                    higher_is_better=name not in lower_is_better,
                )
                values |= {f"clients_{name}_{k}": v for k, v in statistics._asdict().items()}
        return values

    def of_model(params: Params) -> dict[str, Array]:
        for name, data in (*parts.items(), ("clients", clients)):
            if data is not None:
                for examples in looked_at(data):
                    check_examples(metric_fn, params, examples, name)
        return scores(
            lambda data: evaluate(metric_fn, params, data, batch_size=batch_size, mesh=mesh)
        )

    def of_clients(state: FederatedState) -> dict[str, Array]:
        assert personal is not None
        assert train is not None
        algorithm, trained_on = personal, train

        personal_on_test = []

        def measure(data: FederatedData) -> Evaluation:
            evaluation = evaluate_clients(
                metric_fn,
                algorithm,
                state,
                trained_on,
                test=data,
                batch_size=batch_size,
                mesh=mesh,
            )
            if data is test:
                personal_on_test.append(evaluation)
            return evaluation

        values = scores(measure)
        if test is None:
            return values
        assert isinstance(test, FederatedData)  # as of `personal`
        values |= _spread("personal", personal_on_test[0], test, lower_is_better)
        if has_global_model(algorithm, state, trained_on):
            of_global = evaluate(metric_fn, state.params, test, batch_size=batch_size, mesh=mesh)
            values |= _spread("global", of_global, test, lower_is_better)
        return values

    return of_model if personal is None else OfState(of_clients)


def _spread(
    model: str, evaluation: Evaluation, test: FederatedData, lower_is_better: tuple[str, ...]
) -> dict[str, Array]:
    """How a model's metrics spread over the clients that have test examples, in two numbers."""
    values: dict[str, Array] = {}
    for name, of_clients in evaluation.clients.items():
        statistics = client_statistics(
            of_clients,
            test.client_weights,
            test.num_examples > 0,
            higher_is_better=name not in lower_is_better,
        )
        values[f"{model}_{name}_mean"] = statistics.mean
        values[f"{model}_{name}_worst_tenth"] = statistics.worst_tenth
    return values
