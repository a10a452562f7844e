"""Each client's own model, and how good it is on the client's own examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.checks import check_count, check_takes, has_values
from fedjax_sim.core.client_states import numbers_of_clients, states_of
from fedjax_sim.core.loss import check_metric, per_example, totals
from fedjax_sim.core.randomness import FINE_TUNING, check_key, stream
from fedjax_sim.core.types import (
    Array,
    FederatedAlgorithm,
    FederatedState,
    LocalTraining,
    LossFn,
    Metrics,
    Params,
    PyTree,
    no_probe,
)
from fedjax_sim.data import FederatedData, check_data, check_whole
from fedjax_sim.execution.client import Engine
from fedjax_sim.training.evaluation import Evaluation, quotient
from fedjax_sim.training.fine_tuning import FineTuned, FineTuning, check_fine_tuning, fine_tuned


def personal_params(
    algorithm: FederatedAlgorithm, state: FederatedState, data: FederatedData | None = None
) -> Params:
    """The models that the clients use themselves, leaves `[K, ...]`: K models in memory.

    Of IFCA, each client's is the one of the C models that fits its training examples best now.

    Args:
      algorithm: one with `personal`.
      data: what the clients train on, and no window where they probe. It may be left out where
        the clients' states say all: where the algorithm has client state and no probe.

    Raises:
      ValueError: for an algorithm without personal models, a state of another federation, or
        without data where the algorithm needs them.

    >>> import fedjax_sim as fs, optax
    >>> loss_fn = lambda w, batch, key: (w - batch) ** 2
    >>> data = fs.FederatedData.from_clients([np.full(3, y) for y in (-1.0, 2.0, 4.0)])
    >>> algorithm = fs.ifca(loss_fn, optax.sgd(0.5), fs.LocalTraining(), num_models=2)
    >>> state = fs.init(algorithm, np.array([-0.5, 3.0]), data)
    >>> fs.personal_params(algorithm, state, data).tolist()
    [-0.5, 3.0, 3.0]
    """
    personal = algorithm.personal
    if personal is None:
        raise ValueError(
            "algorithm must have personal models (its field `personal`); all clients of this one "
            "use the global model, state.params"
        )
    if data is None:
        if _probe(algorithm) is not None or not jax.tree.leaves(state.clients):
            raise ValueError(
                "data must be given, since the clients' states do not say alone which models this "
                "algorithm's clients use"
            )
        return jax.lax.map(
            lambda client_state: personal(state.server, client_state, ()), state.clients
        )
    _check(state, data)
    if _probe(algorithm) is not None:
        check_whole(data, "data")
    ids = jnp.arange(data.num_clients, dtype=jnp.int32)
    return jax.lax.map(lambda k: own_model(algorithm, state, data, k), ids)


@overload
def evaluate_clients(
    metric_fn: LossFn,
    algorithm: FederatedAlgorithm,
    state: FederatedState,
    data: FederatedData,
    *,
    test: FederatedData | None = ...,
    clients: Any | None = ...,
    fine_tune: None = ...,
    unseen: bool = ...,
    key: Array | None = ...,
    batch_size: int = ...,
    lanes: int = ...,
) -> Evaluation: ...


@overload
def evaluate_clients(
    metric_fn: LossFn,
    algorithm: FederatedAlgorithm,
    state: FederatedState,
    data: FederatedData,
    *,
    test: FederatedData | None = ...,
    clients: Any | None = ...,
    fine_tune: FineTuning,
    unseen: bool = ...,
    key: Array | None = ...,
    batch_size: int = ...,
    lanes: int = ...,
) -> FineTuned: ...


def evaluate_clients(
    metric_fn: LossFn,
    algorithm: FederatedAlgorithm,
    state: FederatedState,
    data: FederatedData,
    *,
    test: FederatedData | None = None,
    clients: Any | None = None,
    fine_tune: FineTuning | None = None,
    unseen: bool = False,
    key: Array | None = None,
    batch_size: int = 1024,
    lanes: int = 1,
) -> Evaluation | FineTuned:
    """Each client's own model on the client's own examples.

    The model is the algorithm's `personal`, or the global one where it has none. For client k the
    mean is `(1/n_k) sum_{i of k} value_i`, and overall `(1/sum n_k) sum_k sum_{i of k} value_i`.
    No more than `lanes` models are in memory at a time. Outside of `jax.jit` each call traces anew.

    Args:
      metric_fn: as `loss_fn`, of one model: (params, batch, key) -> losses[B], or
        (losses[B], {name: values[B]}); its key is None.
      data: what the clients train on; where they probe, a window must hold all that are measured.
      test: their own test examples, of the same K clients in the same places, some of which may
        have none; None to measure on `data`.
      clients: Int[c], which; None for all K.
      fine_tune: trains each client's model further on its examples in `data`, from what it is, and
        measures it once more; the state stays as it is.
      unseen: the clients of `data` are none of the state's, and were never trained on: each begins
        as a client does before it is first picked, from the global model.
      key: of what fine-tuning shuffles and draws, by client; None for `jax.random.key(0)`.
      batch_size: examples of a client at a time.
      lanes: clients side by side; 1 is best on a CPU.

    Returns:
      `Evaluation`: `mean`, name -> Float[], over all examples of these clients; `clients`,
      name -> Float[c], over each one's, NaN where it has none. With `fine_tune` two of those,
      `FineTuned.before` and `.after`.

    Raises:
      ValueError: for a state or a test set of another federation, ids out of range, counts below
        1, and what `evaluate` refuses; for a window, fine-tuning of which would see no examples of
        the clients outside; for a loss or an optimizer that does not fit the model.

    >>> import fedjax_sim as fs, optax
    >>> loss_fn = lambda w, batch, key: (w - batch) ** 2
    >>> data = fs.FederatedData.from_clients([np.full(3, y) for y in (-1.0, 2.0, 4.0)])
    >>> test = fs.FederatedData.from_clients([np.full(n, 3.0) for n in (1, 1, 2)])
    >>> algorithm = fs.ifca(loss_fn, optax.sgd(0.5), fs.LocalTraining(), num_models=2)
    >>> state = fs.init(algorithm, np.array([-1.0, 3.0]), data)
    >>> result = fs.evaluate_clients(loss_fn, algorithm, state, data, test=test)
    >>> float(result.mean["loss"]), result.clients["loss"].tolist()  # the first is -1's
    (4.0, [16.0, 0.0, 0.0])

    How well the first model serves two clients that were never trained on, before and after a step:

    >>> new = fs.FederatedData.from_clients([np.zeros(3), np.full(2, -2.0)])
    >>> tuned = fs.evaluate_clients(
    ...     loss_fn, algorithm, state, new, unseen=True,
    ...     fine_tune=fs.FineTuning(optax.sgd(0.25), fs.LocalTraining()))
    >>> tuned.before.clients["loss"].tolist(), tuned.after.clients["loss"].tolist()
    ([1.0, 1.0], [0.25, 0.25])
    """
    if not isinstance(unseen, bool):
        raise ValueError(f"unseen must be True or False; got {unseen!r}")
    _check(state, data, unseen)
    batch_size, lanes = check_count("batch_size", batch_size), check_count("lanes", lanes)
    check_takes("metric_fn", metric_fn, "params", "batch", "key")
    name = "data" if test is None else "test"
    test = data if test is None else test
    _check_same_clients(data, test)
    ids = _client_ids(clients, data.num_clients)
    if _probe(algorithm) is not None and test is not data:
        _check_within(data, test, ids)
    model_shapes = jax.eval_shape(lambda: own_model(algorithm, state, data, jnp.int32(0), unseen))
    check_metric(metric_fn, model_shapes, test.examples, None, name)
    if fine_tune is not None:
        check_whole(data, "data")
        fine_tune = check_fine_tuning(fine_tune, metric_fn, model_shapes, data)
    key = jax.random.key(0) if key is None else key
    check_key(key)
    passes = algorithm.exchanges[-1]._replace(local=LocalTraining(1, batch_size, shuffle=False))
    engine = Engine(passes, test, jax.random.key(0), ())

    def measured(client_id: Array, params: Params) -> Metrics:
        def of_block(batch: PyTree, mask: Array) -> Metrics:
            return totals(per_example(metric_fn, params, batch, None, "metric_fn"), mask)

        return engine.sum_over_blocks(of_block, engine.client(client_id), dynamic=True)

    def measure(client_id: Array) -> list[Metrics]:
        models = [own_model(algorithm, state, data, client_id, unseen)]
        if fine_tune is not None:
            own_key = stream(key, FINE_TUNING)
            models.append(fine_tuned(fine_tune, data, own_key, models[0], client_id))
        return [measured(client_id, params) for params in models]

    sums = jax.lax.map(measure, ids, batch_size=None if lanes == 1 else lanes)
    evaluations = [_means(of_models) for of_models in sums]
    return evaluations[0] if fine_tune is None else FineTuned(*evaluations)


def _means(sums: Metrics) -> Evaluation:
    """Of sums and counts by client, [c] each."""

    def mean(total: Array, count: Array) -> Array:
        return jnp.where(count > 0, quotient(total, jnp.where(count > 0, count, 1)), jnp.nan)

    return Evaluation(
        mean={name: mean(jnp.sum(total), jnp.sum(n)) for name, (total, n) in sums.items()},
        clients={name: mean(total, n) for name, (total, n) in sums.items()},
    )


def _probe(algorithm: FederatedAlgorithm) -> Callable[..., PyTree] | None:
    """What is summed over a client's training examples to know its own model."""
    probe = algorithm.personal_probe or algorithm.client.probe
    return None if probe is no_probe else probe


def own_model(
    algorithm: FederatedAlgorithm,
    state: FederatedState,
    data: FederatedData,
    client_id: Array,
    unseen: bool = False,
) -> Params:
    """The model that one client uses itself; of one that the state does not know, the first."""
    if algorithm.personal is None:
        return state.params
    message = algorithm.broadcast(state.server, state.round)
    exchange = algorithm.exchanges[-1]
    exchange = exchange._replace(client=exchange.client._replace(probe=_probe(algorithm)))
    # A probe draws nothing, so that the key does not matter.
    engine = Engine(exchange, data, jax.random.key(0), message)
    if unseen:
        client_state = algorithm.init_client(state.params)
    else:
        client_state = states_of(state.clients, client_id)
    probed = engine.probed(engine.client(client_id), client_state, dynamic=True)
    return algorithm.personal(state.server, client_state, probed)


def _check(state: FederatedState, data: FederatedData, unseen: bool = False) -> None:
    check_data(data)
    if not isinstance(state, FederatedState):
        raise ValueError(f"state must come from fs.init; got {type(state).__name__}")
    for number in () if unseen else numbers_of_clients(state.clients):
        if number != data.num_clients:
            raise ValueError(
                f"state must come from fs.init with this federation of {data.num_clients} "
                f"clients; it holds states of {number}"
            )


def _check_within(data: FederatedData, test: FederatedData, ids: Array) -> None:
    """Refuses clients outside of a window, whose probe would sum over nothing.

    Raises:
      ValueError: naming the first that has test examples.
    """
    all_concrete = all(map(has_values, (data.num_examples, test.num_examples, ids)))
    if data.num_examples_of_all is None or not all_concrete:
        return
    trained, tested = (np.asarray(x.num_examples)[np.asarray(ids)] for x in (data, test))
    outside = np.asarray(ids)[(trained == 0) & (tested > 0)]
    if len(outside):
        raise ValueError(
            "data must hold the examples of the clients that are measured, which choose their "
            f"models by them; client {outside[0]} has none in this window"
        )


def _check_same_clients(data: FederatedData, test: FederatedData) -> None:
    check_data(test)
    if test.num_clients != data.num_clients:
        raise ValueError(
            f"test must be of the {data.num_clients} clients of data, in the same places; got "
            f"{test.num_clients} (FederatedData.from_arrays takes num_clients, for clients without "
            "an example)"
        )
    if None in (data.client_names, test.client_names) or data.client_names == test.client_names:
        return
    pairs = zip(data.client_names or (), test.client_names or (), strict=True)
    ours, theirs = next(pair for pair in pairs if pair[0] != pair[1])
    raise ValueError(
        f"test must have the clients of data in the same places; client {ours!r} of data is in the "
        f"place of {theirs!r}"
    )


def _client_ids(clients: Any | None, num_clients: int) -> Array:
    """Int[c], or a refusal; of traced ids the shape alone."""
    if clients is None:
        return jnp.arange(num_clients, dtype=jnp.int32)
    ids = clients if isinstance(clients, jax.Array) else np.asarray(clients)
    if ids.ndim != 1 or not len(ids) or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"clients must be a list of client ids, or None for all; got {ids.dtype} of shape "
            f"{ids.shape}"
        )
    if has_values(ids):
        values = np.asarray(ids)
        wrong = values[(values < 0) | (values >= num_clients)]
        if len(wrong):
            raise ValueError(f"clients must lie in [0, {num_clients}); got {wrong[0]}")
    return jnp.asarray(ids, jnp.int32)
