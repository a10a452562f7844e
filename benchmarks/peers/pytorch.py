"""A hand-written PyTorch loop: tensors in memory, no DataLoader, no optimizer object."""

import numpy as np
import torch

from benchmarks.jobs import ALPHA, HEAD_EPOCHS, LAM, Job, Weights
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
        kept = self.kept_at_first()
        self.kept = [[x.clone() for x in kept] for _ in self.clients] if kept else []
        self.control = [torch.zeros_like(p) for p in self.params]

    def kept_at_first(self) -> list[torch.Tensor]:
        """What a client keeps before it is first picked."""
        first = [p.detach() for p in self.params]
        return {
            "scaffold": lambda: [torch.zeros_like(p) for p in first],
            "ditto": lambda: first,
            "apfl": lambda: first,
            "fedrep": lambda: first[-2:],
        }.get(self.job.algorithm, list)()

    def train(self, cohorts: np.ndarray, shuffle: bool) -> int:
        return sum(self.round(cohort.tolist(), shuffle) for cohort in cohorts)

    def round(self, cohort: list[int], shuffle: bool) -> int:
        params, steps = self.params, 0
        with torch.no_grad():
            server = [p.clone() for p in params]
            total = [torch.zeros_like(p) for p in params]
        num_examples = sum(len(self.clients[k][1]) for k in cohort)
        local = getattr(self, self.job.algorithm)
        changes = []
        for k in cohort:
            epochs = [
                batches(self.clients[k], self.job.batch_size, shuffle)
                for _ in range(self.job.epochs)
            ]
            changes.append(local(k, epochs, server))
            steps += sum(map(len, epochs))
            with torch.no_grad():
                share = len(self.clients[k][1]) / num_examples
                torch._foreach_add_(total, params, alpha=share)
                torch._foreach_copy_(params, server)
        with torch.no_grad():
            torch._foreach_copy_(params, total)
            if self.job.algorithm == "scaffold":  # c moves when the round is over
                for k, change in zip(cohort, changes, strict=True):
                    share = len(self.clients[k][1]) / sum(len(y) for _, y in self.clients)
                    torch._foreach_add_(self.control, change, alpha=share)
        return steps

    def descend(self, x: torch.Tensor, y: torch.Tensor, params: list) -> None:
        grads = torch.autograd.grad(loss(self.model, x, y), params)
        with torch.no_grad():
            torch._foreach_add_(params, grads, alpha=-self.learning_rate)

    def gradient_at(self, values: list, x: torch.Tensor, y: torch.Tensor) -> list:
        """Of the loss at other weights than the model's, which are then put back."""
        with torch.no_grad():
            held = [p.clone() for p in self.params]
            torch._foreach_copy_(self.params, values)
        grads = torch.autograd.grad(loss(self.model, x, y), self.params)
        with torch.no_grad():
            torch._foreach_copy_(self.params, held)
        return list(grads)

    def fedavg(self, k: int, epochs: list, server: list) -> None:
        for epoch in epochs:
            for x, y in epoch:
                self.descend(x, y, self.params)

    def scaffold(self, k: int, epochs: list, server: list) -> list:
        """Option II; returns c_k+ - c_k."""
        control, rate, steps = self.kept[k], self.learning_rate, sum(map(len, epochs))
        correction = torch._foreach_sub(self.control, control)
        for epoch in epochs:
            for x, y in epoch:
                grads = torch.autograd.grad(loss(self.model, x, y), self.params)
                with torch.no_grad():
                    torch._foreach_add_(self.params, grads, alpha=-rate)
                    torch._foreach_add_(self.params, correction, alpha=-rate)
        with torch.no_grad():
            moved = torch._foreach_sub(server, self.params)
            change = torch._foreach_div(moved, steps * rate)
            torch._foreach_sub_(change, self.control)
            torch._foreach_add_(control, change)
        return list(change)

    def ditto(self, k: int, epochs: list, server: list) -> None:
        own = self.kept[k]
        for epoch in epochs:
            for x, y in epoch:
                grads = self.gradient_at(own, x, y)
                self.descend(x, y, self.params)
                with torch.no_grad():
                    drawn = torch._foreach_sub(own, server)
                    torch._foreach_add_(grads, drawn, alpha=LAM)
                    torch._foreach_add_(own, grads, alpha=-self.learning_rate)

    def apfl(self, k: int, epochs: list, server: list) -> None:
        own = self.kept[k]
        for epoch in epochs:
            for x, y in epoch:
                with torch.no_grad():
                    mixture = torch._foreach_lerp(self.params, own, ALPHA)
                grads = self.gradient_at(mixture, x, y)
                self.descend(x, y, self.params)
                with torch.no_grad():
                    torch._foreach_add_(own, grads, alpha=-self.learning_rate * ALPHA)

    def fedrep(self, k: int, epochs: list, server: list) -> None:
        """The gradient of the part that is trained alone: autograd leaves out the rest."""
        body, head = self.params[:-2], self.params[-2:]
        with torch.no_grad():
            torch._foreach_copy_(head, self.kept[k])
        for number, epoch in enumerate(epochs):
            for x, y in epoch:
                self.descend(x, y, head if number < HEAD_EPOCHS else body)
        with torch.no_grad():
            torch._foreach_copy_(self.kept[k], head)
            torch._foreach_copy_(head, server[-2:])

    def weights(self) -> Weights:
        trained = self.model.weights()
        if not self.kept:
            return trained
        with torch.no_grad():
            held = [p.clone() for p in self.params]
            means = [torch.stack(several).mean(dim=0) for several in zip(*self.kept, strict=True)]
            torch._foreach_copy_(self.params[-len(means) :], means)
            own = self.model.weights()
            torch._foreach_copy_(self.params, held)
        named = {f"own_{name}": value for name, value in own.items()}
        return {name: x for name, x in (trained | named).items() if name in self.job.first()}


if __name__ == "__main__":
    serve(PyTorch)
