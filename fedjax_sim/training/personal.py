"""Each client's own model, and how good it is on the client's own examples."""

from __future__ import annotations

from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_sim.core.checks import check_count, check_takes, has_values
from fedjax_sim.core.randomness import check_key
from fedjax_sim.core.types import Array, FederatedAlgorithm, FederatedState, LossFn, Params
from fedjax_sim.data import ClientStates, FederatedData, Source, check_data, check_whole
from fedjax_sim.execution.placing import check_mesh_or_none
from fedjax_sim.training.evaluation import Evaluation
from fedjax_sim.training.fine_tuning import FineTuned, FineTuning
from fedjax_sim.training.from_disk import evaluate_from_disk
from fedjax_sim.training.own_models import (
    Measures,
    check_measured,
    check_same_clients,
    checked_ids,
    means,
    own_model,
    probe_of,
)
from fedjax_sim.training.state import check_clients_of, check_from_init


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
        if probe_of(algorithm) is not None or not jax.tree.leaves(state.clients):
            raise ValueError(
                "data must be given, since the clients' states do not say alone which models this "
                "algorithm's clients use"
            )
        return jax.lax.map(
            lambda client_state: personal(state.server, client_state, ()), state.clients
        )
    _check(state, data)
    if probe_of(algorithm) is not None:
        check_whole(data, "data")
    ids = jnp.arange(data.num_clients, dtype=jnp.int32)
    return jax.lax.map(lambda k: own_model(algorithm, state, data, k), ids)


@overload
def evaluate_clients(
    metric_fn: LossFn,
    algorithm: FederatedAlgorithm,
    state: FederatedState,
    data: FederatedData | Source,
    *,
    test: FederatedData | Source | None = ...,
    clients: Any | None = ...,
    fine_tune: None = ...,
    unseen: bool = ...,
    key: Array | None = ...,
    batch_size: int = ...,
    lanes: int = ...,
    mesh: Mesh | None = ...,
) -> Evaluation: ...


@overload
def evaluate_clients(
    metric_fn: LossFn,
    algorithm: FederatedAlgorithm,
    state: FederatedState,
    data: FederatedData | Source,
    *,
    test: FederatedData | Source | None = ...,
    clients: Any | None = ...,
    fine_tune: FineTuning,
    unseen: bool = ...,
    key: Array | None = ...,
    batch_size: int = ...,
    lanes: int = ...,
    mesh: Mesh | None = ...,
) -> FineTuned: ...


def evaluate_clients(
    metric_fn: LossFn,
    algorithm: FederatedAlgorithm,
    state: FederatedState,
    data: FederatedData | Source,
    *,
    test: FederatedData | Source | None = None,
    clients: Any | None = None,
    fine_tune: FineTuning | None = None,
    unseen: bool = False,
    key: Array | None = None,
    batch_size: int = 1024,
    lanes: int = 1,
    mesh: Mesh | None = None,
) -> Evaluation | FineTuned:
    """Each client's own model on the client's own examples.

    The model is the algorithm's `personal`, or the global one where it has none. For client k the
    mean is `(1/n_k) sum_{i of k} value_i`, and overall `(1/sum n_k) sum_k sum_{i of k} value_i`.
    No more than `lanes` models are in a device's memory at a time. Outside of `jax.jit` each call
    traces anew.

    Args:
      metric_fn: as `loss_fn`, of one model: (params, batch, key) -> losses[B], or
        (losses[B], {name: values[B]}); its key is None.
      state: whose `clients` may be on a disk (`fs.data.ClientStates`), of which, as of data or test
        that is a `Source`, some clients' are then read at a time; not within `jax.jit`.
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
      mesh: over whose devices the clients are dealt, as by `evaluate`; None for one device.

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
    batch_size, lanes = check_count("batch_size", batch_size), check_count("lanes", lanes)
    check_mesh_or_none(mesh)
    check_takes("metric_fn", metric_fn, "params", "batch", "key")
    key = jax.random.key(0) if key is None else key
    check_key(key)
    measures = Measures(
        metric_fn=metric_fn,
        algorithm=algorithm,
        fine_tune=fine_tune,
        unseen=unseen,
        key=key,
        batch_size=batch_size,
        lanes=lanes,
        mesh=mesh,
    )
    if isinstance(getattr(state, "clients", None), ClientStates) or any(
        isinstance(x, Source) for x in (data, test)
    ):
        return evaluate_from_disk(measures, state, data, test, clients)
    data = check_data(data)
    test = None if test is None else check_data(test)
    _check(state, data, unseen)
    name = "data" if test is None else "test"
    test = data if test is None else test
    check_same_clients(data, test)
    ids = checked_ids(clients, data.num_clients)
    if probe_of(algorithm) is not None and test is not data:
        _check_within(data, test, ids)
    fine_tune = check_measured(
        metric_fn, algorithm, state, data, test, name=name, fine_tune=fine_tune, unseen=unseen
    )
    measures = measures._replace(fine_tune=fine_tune)
    evaluations = [means(of_models) for of_models in measures.sums(state, data, test, ids)]
    return evaluations[0] if fine_tune is None else FineTuned(*evaluations)


def _check(state: FederatedState, data: FederatedData, unseen: bool = False) -> None:
    check_data(data)
    check_from_init(state)
    if not unseen:
        check_clients_of(state, data)


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
