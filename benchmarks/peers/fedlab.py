"""FedLab: its standalone pipeline, FedAvg handler and serial client trainer."""

# ruff: noqa: E402 - something must come before the imports

import sys
from types import ModuleType
from typing import Any

for _name in ("torchvision", "torchvision.transforms"):  # for datasets of FedLab's, unused here
    sys.modules[_name] = ModuleType(_name)
sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]

import numpy as np
import torch
from fedlab.contrib.algorithm.fedavg import FedAvgSerialClientTrainer, FedAvgServerHandler
from fedlab.core.standalone import StandalonePipeline
from fedlab.utils import Aggregators, SerializationTool
from torch.nn import functional as F

from benchmarks.jobs import Job, Weights
from benchmarks.peers.torch_models import batches, load_clients, make_model
from benchmarks.worker import Worker, serve


class Handler(FedAvgServerHandler):
    """Its own FedAvg, with the cohorts of the job and weights n_k."""

    cohorts: Any = iter(())
    cohort_size = 0

    @property
    def num_clients_per_round(self) -> int:
        return self.cohort_size

    def sample_clients(self) -> list[int]:
        return next(self.cohorts)

    def global_update(self, buffer: list[list[torch.Tensor]]) -> None:
        parameters, sizes = zip(*buffer, strict=True)
        average = Aggregators.fedavg_aggregate(list(parameters), torch.cat(sizes))
        SerializationTool.deserialize_model(self._model, average)


class Trainer(FedAvgSerialClientTrainer):
    """Its own local training; an upload carries n_k too."""

    def train(self, model_parameters: torch.Tensor, loader: Any) -> list[torch.Tensor]:
        size = sum(len(y) for _, y in loader)
        return [*super().train(model_parameters, loader), torch.tensor([float(size)])]


class InMemory:
    """Gives a client's batches as they are: a DataLoader would collate them one by one."""

    def __init__(self, job: Job) -> None:
        self.clients, self.shuffle, self.steps = load_clients(job), True, 0

    def get_dataloader(self, client: int, batch_size: int) -> Any:
        loader = batches(self.clients[client], batch_size, self.shuffle)
        self.steps += len(loader)
        return loader


class Pipeline(StandalonePipeline):
    def evaluate(self) -> None:
        """Nothing, here."""


class FedLab(Worker):
    versions = ("fedlab", "torch")

    def __init__(self, job: Job, setting: str) -> None:
        super().__init__(job, setting)
        torch.set_num_threads(int(setting))
        self.data, self.model = InMemory(job), make_model(job)
        self.reset(job.learning_rate)

    def reset(self, learning_rate: float) -> None:
        job = self.job
        self.model.load(job.weights())
        self.handler = Handler(self.model, global_round=0, sample_ratio=1.0)
        self.trainer = Trainer(self.model, len(self.data.clients))
        self.trainer.setup_dataset(self.data)
        self.trainer.setup_optim(job.epochs, job.batch_size, learning_rate)
        if job.model == "lstm":  # classes are the last axis of its logits
            self.trainer.criterion = lambda logits, y: F.cross_entropy(logits.mT, y)
        self.pipeline = Pipeline(self.handler, self.trainer)

    def train(self, cohorts: np.ndarray, shuffle: bool) -> int:
        self.data.shuffle, self.data.steps = shuffle, 0
        self.handler.cohorts, self.handler.cohort_size = iter(cohorts.tolist()), cohorts.shape[1]
        self.handler.global_round = self.handler.round + len(cohorts)
        self.pipeline.main()
        return self.data.steps

    def weights(self) -> Weights:
        return self.handler.model.weights()


if __name__ == "__main__":
    serve(FedLab)
