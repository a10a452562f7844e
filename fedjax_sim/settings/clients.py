"""What the models of a setting's run are to each client, on the client's own test examples."""

import jax
import numpy as np
import optax

from fedjax_sim.core.local_training import check_local
from fedjax_sim.core.types import FederatedAlgorithm, FederatedState, LocalTraining
from fedjax_sim.results.clients import Clients
from fedjax_sim.settings import stores
from fedjax_sim.settings.build import problem
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.settings.splits import parts_of_clients
from fedjax_sim.training.evaluation import evaluate
from fedjax_sim.training.fine_tuning import FineTuning
from fedjax_sim.training.global_model import has_global_model
from fedjax_sim.training.personal import evaluate_clients


def check_fine_tune(setting: ResolvedSetting, epochs: int) -> FineTuning:
    """How clients fine-tune: as they train, for so many epochs, without momentum or a schedule.

    Raises:
      ValueError: for an algorithm whose clients take no local steps, or epochs out of range.
    """
    if setting.client is None or setting.local is None:
        raise ValueError(
            f"fine_tune must not be given to {setting.algorithm}, whose clients take no local "
            "steps: there is no rate to fine-tune at"
        )
    try:
        local = check_local(LocalTraining(epochs, setting.local.batch_size))
    except ValueError as error:
        raise ValueError(f"fine_tune must be a number of epochs: {error}") from error
    return FineTuning(optax.sgd(setting.client.lr), local)


def measure_clients(
    setting: ResolvedSetting,
    algorithm: FederatedAlgorithm,
    state: FederatedState,
    fine_tune: int | None = None,
) -> Clients:
    """The values of each client: by the global model, if there is one, by its own, and tuned.

    Args:
      fine_tune: epochs that each client's model is trained further on its own examples; None for
        no values of that.
    """
    parts, own_parts = problem(setting), parts_of_clients(setting.data)
    test = own_parts.test
    data = stores.in_memory(parts.data)
    tuning = None if fine_tune is None else check_fine_tune(setting, fine_tune)
    # A run over several devices leaves its state on all of them, and the test set is on one.
    state = jax.device_put(jax.device_get(state), jax.devices()[0])
    own = tuned = None
    if tuning is not None:
        measured = evaluate_clients(
            parts.loss_fn, algorithm, state, data, test=test, fine_tune=tuning
        )
        own, tuned = measured.before, measured.after
    elif algorithm.personal is not None:
        own = evaluate_clients(parts.loss_fn, algorithm, state, data, test=test)
    evaluations = {"personal": own if algorithm.personal is not None else None, "tuned": tuned}
    if has_global_model(algorithm, state, data):
        evaluations = {"global": evaluate(parts.loss_fn, state.params, test), **evaluations}
    return Clients(
        names=_names(own_parts.client_names, data.num_clients),
        train_examples=np.asarray(data.num_examples),
        test_examples=np.asarray(test.num_examples),
        columns={
            f"{model}_{name}": np.asarray(x, np.float64)
            for model, evaluation in evaluations.items()
            if evaluation is not None
            for name, x in evaluation.clients.items()
        },
    )


def _names(in_data_set: tuple[str, ...] | None, num_clients: int) -> tuple[str, ...]:
    """The clients' names in the data set; their numbers where a split has made the clients."""
    if in_data_set is not None and len(in_data_set) >= num_clients:
        return in_data_set[:num_clients]
    return tuple(map(str, range(num_clients)))
