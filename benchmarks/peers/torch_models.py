"""The models of the jobs in PyTorch, as lean as they can be, for all that train with it."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.jobs import CHARACTERS, EMBEDDING, HIDDEN, Job, Weights


class Net(nn.Module):
    """Dense layers, after convolutions if there are any: one call, no module a layer."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.names = list(job.weights())
        for name, value in job.weights().items():
            self.register_parameter(name, nn.Parameter(_to_torch(name, value)))
        self.convs = range(sum(name.startswith("conv_bias") for name in self.names))
        self.last = sum(name.startswith("dense") for name in self.names) - 1

    def forward(self, x: Tensor) -> Tensor:
        p = self._parameters
        for i in self.convs:
            x = F.conv2d(x, p[f"conv{i}"], p[f"conv_bias{i}"], padding=2)
            x = F.max_pool2d(F.relu(x), 2)
        if self.convs:
            x = x.flatten(1)
        for i in range(self.last):
            x = F.relu(F.linear(x, p[f"dense{i}"], p[f"bias{i}"]))
        return F.linear(x, p[f"dense{self.last}"], p[f"bias{self.last}"])

    def load(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, value in weights.items():
                self._parameters[name].copy_(_to_torch(name, value))

    def weights(self) -> Weights:
        return {name: _from_torch(name, self._parameters[name].detach()) for name in self.names}


class CharacterLSTM(nn.Module):
    """Logits [B, positions, characters]. `nn.LSTM` has two biases a layer: one is not trained."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, HIDDEN, num_layers=2, batch_first=True)
        self.dense = nn.Linear(HIDDEN, CHARACTERS)
        for i in range(2):
            getattr(self.lstm, f"bias_hh_l{i}").requires_grad_(False).zero_()
        self.load(job.weights())

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.lstm(self.embedding(x))[0])

    def _named(self) -> dict[str, Tensor]:
        named = {"embedding": self.embedding.weight}
        for i in range(2):
            named[f"lstm{i}_x"] = getattr(self.lstm, f"weight_ih_l{i}")
            named[f"lstm{i}_h"] = getattr(self.lstm, f"weight_hh_l{i}")
            named[f"lstm{i}_bias"] = getattr(self.lstm, f"bias_ih_l{i}")
        return named | {"dense0": self.dense.weight, "bias0": self.dense.bias}

    def load(self, weights: Weights) -> None:
        with torch.no_grad():
            for name, parameter in self._named().items():
                parameter.copy_(_to_torch(name, weights[name]))

    def weights(self) -> Weights:
        return {name: _from_torch(name, x.detach()) for name, x in self._named().items()}


def _to_torch(name: str, value: np.ndarray) -> Tensor:
    if name == "dense0" and len(value) == 7 * 7 * 64:  # its inputs: height width channel there
        value = value.reshape(7, 7, 64, -1).transpose(2, 0, 1, 3).reshape(value.shape)
    if value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)
    elif value.ndim == 2 and name != "embedding":
        value = value.T
    return torch.from_numpy(np.ascontiguousarray(value))


def _from_torch(name: str, tensor: Tensor) -> np.ndarray:
    value = tensor.numpy()
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
    elif value.ndim == 2 and name != "embedding":
        value = value.T
    if name == "dense0" and len(value) == 7 * 7 * 64:
        value = value.reshape(64, 7, 7, -1).transpose(1, 2, 0, 3).reshape(value.shape)
    return value.copy()


def make_model(job: Job) -> Net | CharacterLSTM:
    return CharacterLSTM(job) if job.model == "lstm" else Net(job)


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x)
    return F.cross_entropy(logits, y) if y.ndim == 1 else F.cross_entropy(logits.mT, y)


def load_clients(job: Job) -> list[tuple[Tensor, Tensor]]:
    """Each client's examples: views of the whole, with images as channel height width."""
    x, y = (torch.from_numpy(a) for a in job.examples())
    if job.model == "cnn":
        x = x.reshape(-1, 1, 28, 28)
    if job.model == "lstm":
        x = x.long()
    sizes = job.sizes().tolist()
    return list(zip(x.split(sizes), y.long().split(sizes), strict=True))


def batches(
    client: tuple[Tensor, Tensor], batch_size: int, shuffle: bool
) -> list[tuple[Tensor, Tensor]]:
    """One epoch: two gathers a client, and then views."""
    if shuffle:
        order = torch.randperm(len(client[1]))
        client = client[0].index_select(0, order), client[1].index_select(0, order)
    return list(zip(*(a.split(batch_size) for a in client), strict=True))
