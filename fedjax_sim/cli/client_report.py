"""What `fedjax-sim run` says of its clients: the global model beside each client's own."""

import numpy as np

from fedjax_sim.cli.run_plan import Plan
from fedjax_sim.host.simulation import Simulation
from fedjax_sim.results.clients import Clients, worst_tenth
from fedjax_sim.settings.clients import measure_clients
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.settings.splits import parts_of_clients
from fedjax_sim.training.experiment import Experiment

_WORDS = {"global": "global model", "personal": "own models", "tuned": "fine-tuned"}


def measure(plan: Plan, experiment: Experiment, simulation: Simulation) -> Clients | None:
    """The final values of each client, where they have their own models or were asked for."""
    algorithm = experiment.algorithm
    if algorithm.personal is None and not plan.setting.per_client and plan.fine_tune is None:
        return None
    return measure_clients(plan.setting, algorithm, simulation.state, plan.fine_tune)


def lines(setting: ResolvedSetting, clients: Clients) -> list[str]:
    """One line: each model's mean over clients, and its worst tenth."""
    metric = clients.metric
    by_model = clients.by_model(metric)
    high_is_good = metric != "loss"
    values = ", ".join(
        f"{_WORDS[model]} {np.mean(x):.4f} (worst tenth {worst_tenth(x, high_is_good):.4f})"
        for model, x in by_model.items()
    )
    if "personal" in by_model and "global" not in by_model:
        values += (
            "; no global model is measured, since clients keep a part of it or choose of several"
        )
    num_clients = int(np.sum(clients.test_examples > 0))
    whose = (
        "its own test examples"
        if parts_of_clients(setting.data).has_own_test
        else "its part of the test set, which is dealt as the training set is"
    )
    return [f"{metric.capitalize()} of a client on {whose}, mean of {num_clients}: {values}."]
