"""A hand-written PyTorch loop: tensors in memory, no DataLoader, no optimizer object."""

import numpy as np
import torch

from benchmarks.jobs import Job, Weights
from benchmarks.peers.torch_models import batches, load_clients, loss, make_model
from benchmarks.worker import Worker, serve


class PyTorch(Worker):
    versions = ("torch",)

    def __init__(self, job: Job, setting: str) -> None:
        super().__init__(job, setting)
        torch.set_num_threads(int(setting))
        self.clients = load_clients(job)
        self.model = make_model(job)
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.reset(job.learning_rate)

    def reset(self, learning_rate: float) -> None:
        self.model.load(self.job.weights())
        self.learning_rate = learning_rate

    def train(self, cohorts: np.ndarray, shuffle: bool) -> int:
        return sum(self.round(cohort.tolist(), shuffle) for cohort in cohorts)

    def round(self, cohort: list[int], shuffle: bool) -> int:
        params, steps = self.params, 0
        with torch.no_grad():
            server = [p.clone() for p in params]
            total = [torch.zeros_like(p) for p in params]
        num_examples = sum(len(self.clients[k][1]) for k in cohort)
        for k in cohort:
            for _ in range(self.job.epochs):
                for x, y in batches(self.clients[k], self.job.batch_size, shuffle):
                    grads = torch.autograd.grad(loss(self.model, x, y), params)
                    with torch.no_grad():
                        torch._foreach_add_(params, grads, alpha=-self.learning_rate)
                    steps += 1
            with torch.no_grad():
                share = len(self.clients[k][1]) / num_examples
                torch._foreach_add_(total, params, alpha=share)
                torch._foreach_copy_(params, server)
        with torch.no_grad():
            torch._foreach_copy_(params, total)
        return steps

    def weights(self) -> Weights:
        return self.model.weights()


if __name__ == "__main__":
    serve(PyTorch)
