"""pfl: its FederatedAveraging on its simulated backend, with in-memory tensors."""

from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel

from benchmarks.jobs import Job, Weights
from benchmarks.peers import torch_models
from benchmarks.worker import Worker, serve


def _with_losses(model: torch.nn.Module) -> torch.nn.Module:
    """The two methods that pfl asks of a module."""

    def metrics(x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> dict[str, Any]:
        return {"loss": Weighted(torch_models.loss(model, x, y).item() * len(y), len(y))}

    model.loss = lambda x, y, **kwargs: torch_models.loss(model, x, y)
    model.metrics = metrics
    return model


class Pfl(Worker):
    versions = ("pfl", "torch")

    def __init__(self, job: Job, setting: str) -> None:
        super().__init__(job, setting)
        torch.set_num_threads(int(setting))
        self.clients = torch_models.load_clients(job)
        self.ids, self.shuffle, self.steps = iter(()), True, 0
        self.module = _with_losses(torch_models.make_model(job))
        data = FederatedDataset(self.make_dataset, lambda: next(self.ids))
        self.backend = SimulatedBackend(data, data, [WeightByDatapoints()])
        self.reset(job.learning_rate)

    def make_dataset(self, client: int) -> PyTorchTensorDataset:
        x, y = self.clients[client]
        if self.shuffle:
            order = torch.randperm(len(y))
            x, y = x.index_select(0, order), y.index_select(0, order)
        self.steps += self.job.epochs * -(-len(y) // self.job.batch_size)
        return PyTorchTensorDataset((x, y))

    def reset(self, learning_rate: float) -> None:
        self.module.load(self.job.weights())
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.model = PyTorchModel(self.module, torch.optim.SGD, torch.optim.SGD(trained, lr=1.0))
        self.algorithm, self.rounds = FederatedAveraging(), 0
        self.local = NNTrainHyperParams(
            local_num_epochs=self.job.epochs,
            local_learning_rate=learning_rate,
            local_batch_size=self.job.batch_size,
        )

    def train(self, cohorts: np.ndarray, shuffle: bool) -> int:
        self.shuffle, self.steps = shuffle, 0
        self.ids = iter(cohorts.ravel().tolist())
        self.rounds += len(cohorts)
        params = NNAlgorithmParams(
            central_num_iterations=self.rounds,  # it goes on from where it was
            evaluation_frequency=10**9,  # it evaluates at its very first round, not timed
            train_cohort_size=cohorts.shape[1],
            val_cohort_size=None,
        )
        self.algorithm.run(
            params,
            self.backend,
            self.model,
            self.local,
            NNEvalHyperParams(local_batch_size=None),
            send_metrics_to_platform=False,  # it would print them
        )
        return self.steps

    def weights(self) -> Weights:
        return self.module.weights()


if __name__ == "__main__":
    serve(Pfl)
