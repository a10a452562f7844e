"""What is timed: sizes, examples, cohorts and first weights of every job. NumPy alone.

Ours and every peer import this file, so that all of them train the same clients on the same
examples, in the same cohorts, from the same weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import numpy as np

Weights = dict[str, np.ndarray]  # dense kernels [in, out], conv kernels HWIO, LSTM gates i f g o

CLASSES = 10
LAM, ALPHA, HEAD_EPOCHS = 0.1, 0.5, 1  # of Ditto, APFL, and FedRep
CHARACTERS, POSITIONS, EMBEDDING, HIDDEN = 86, 80, 8, 256


@dataclass(frozen=True)
class Job:
    name: str
    model: str
    make_sizes: Callable[[np.random.Generator], np.ndarray]
    m: int
    rounds: int  # in one timed repetition
    learning_rate: float = 0.05
    batch_size: int = 10
    epochs: int = 1
    features: int = 784
    peers: tuple[str, ...] = ("pytorch", "fedjax", "fedlab", "pfl")
    sweep: int = 1  # learning rates
    sampled: bool = False  # ours draws its cohorts itself, as a user would
    algorithm: str = "fedavg"  # or scaffold, ditto, apfl, fedrep, with the numbers below

    @property
    def has_lanes(self) -> bool:
        """Whether ours is timed by lanes, too: plain FedAvg in given cohorts."""
        return self.algorithm == "fedavg" and self.sweep == 1 and not self.sampled

    def sizes(self) -> np.ndarray:
        """n_k of each of the K clients."""
        return self.make_sizes(np.random.default_rng(1))

    def cohorts(self) -> np.ndarray:
        """Client ids [rounds, m]."""
        rng, sizes = np.random.default_rng(2), self.sizes()
        rounds = max(self.rounds, 2)
        return np.stack([rng.choice(len(sizes), self.m, replace=False) for _ in range(rounds)])

    def small(self) -> "Job":
        """What implementations are compared on: fewer clients, of 5 to 35 examples in every job,
        so that a wrong weight or a lost short block shows.

        Few steps: later, one ReLU that rounding puts on the other side of its kink grows within
        20 steps to a tenth of what a client's training moves (seen on `cnn` after 33).
        """
        clients = min(len(self.sizes()), max(100, 2 * self.m))

        def sizes(rng: np.random.Generator) -> np.ndarray:
            return rng.integers(5, 36, clients)

        return replace(self, make_sizes=sizes, rounds=2, sweep=1, sampled=False)

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Random x [N, ...] and y [N] (characters: both [N, positions])."""
        rng, total = np.random.default_rng(3), int(self.sizes().sum())
        if self.model == "lstm":
            text = rng.integers(0, CHARACTERS, (total, POSITIONS + 1), dtype=np.int32)
            return text[:, :-1].copy(), text[:, 1:].copy()
        shape = (28, 28, 1) if self.model == "cnn" else (self.features,)
        x = rng.random((total, *shape), dtype=np.float32)
        # Centred: with positive inputs a ReLU is near its kink for all examples at once, and
        # rounding alone would then part two implementations that do the same.
        x *= 2
        x -= 1
        return x, rng.integers(0, CLASSES, total, dtype=np.int32)

    def weights(self) -> Weights:
        """The first weights, uniform in +-1/sqrt(fan in)."""
        rng = np.random.default_rng(4)

        def draw(shape: tuple[int, ...]) -> np.ndarray:
            bound = 1 / np.sqrt(prod(shape[:-1]) if len(shape) > 1 else 100)
            return rng.uniform(-bound, bound, shape).astype(np.float32)

        return {name: draw(shape) for name, shape in _shapes(self).items()}

    def first(self) -> Weights:
        """What the weights are compared with: the first ones, and the first of what clients keep.

        `own_NAME` is the mean over all K clients of what they keep: a model of their own, its
        last layer alone under FedRep, the control variate under SCAFFOLD.
        """
        weights = self.weights()
        kept = {
            "fedavg": {},
            "scaffold": {name: np.zeros_like(value) for name, value in weights.items()},
            "fedrep": {name: weights[name] for name in list(weights)[-2:]},
        }.get(self.algorithm, weights)
        return weights | {f"own_{name}": value for name, value in kept.items()}

    def steps(self, cohorts: np.ndarray) -> int:
        """S, the useful client-steps: the sum over the cohorts of E ceil(n_k / B)."""
        return int((self.epochs * -(-self.sizes()[cohorts] // self.batch_size)).sum())

    def num_params(self) -> int:
        return sum(prod(shape) for shape in _shapes(self).values())

    def flops(self) -> int:
        """Of the products of one client-step: forward, and backward but for the inputs'.

        Of FedRep the mean over its steps: those of the head have no gradient of the base, and the
        others none of the head.
        """
        forward = [
            2 * prod(shape) * self._positions(name)
            for name, shape in _shapes(self).items()
            if len(shape) > 1 and name != "embedding"
        ]
        first = 0 if next(iter(_shapes(self))) == "embedding" else forward[0]
        total = 3 * sum(forward) - first
        if self.algorithm == "fedrep":
            of_head, of_base = sum(forward) + forward[-1], total - forward[-1]
            others = self.epochs - HEAD_EPOCHS
            total = (HEAD_EPOCHS * of_head + others * of_base) // self.epochs
        return total * self.batch_size

    def _positions(self, layer: str) -> int:
        """At how many places of an example a layer's kernel is multiplied."""
        if self.model == "lstm":
            return POSITIONS
        return {"conv0": 28 * 28, "conv1": 14 * 14}.get(layer, 1)

    def learning_rates(self) -> np.ndarray:
        if self.sweep == 1:
            return np.float32([self.learning_rate])
        return np.geomspace(1e-3, 0.3, self.sweep).astype(np.float32)


def _shapes(job: Job) -> dict[str, tuple[int, ...]]:
    if job.model == "lstm":
        layer = {"input": EMBEDDING, "hidden": HIDDEN}
        return {
            "embedding": (CHARACTERS, EMBEDDING),
            **{
                f"lstm{i}_{part}": shape
                for i, width in enumerate(layer.values())
                for part, shape in {
                    "x": (width, 4 * HIDDEN),
                    "h": (HIDDEN, 4 * HIDDEN),
                    "bias": (4 * HIDDEN,),
                }.items()
            },
            "dense0": (HIDDEN, CHARACTERS),
            "bias0": (CHARACTERS,),
        }
    if job.model == "cnn":
        convs = {"conv0": (5, 5, 1, 32), "conv1": (5, 5, 32, 64)}
        widths = [7 * 7 * 64, 512, CLASSES]
    else:
        hidden = {"lr": [], "2nn": [200, 200]}[job.model]
        convs, widths = {}, [job.features, *hidden, CLASSES]
    shapes: dict[str, tuple[int, ...]] = {}
    for i, shape in enumerate(convs.values()):
        shapes |= {f"conv{i}": shape, f"conv_bias{i}": shape[-1:]}
    for i, (fan_in, out) in enumerate(pairwise(widths)):
        shapes |= {f"dense{i}": (fan_in, out), f"bias{i}": (out,)}
    return shapes


def _equal(clients: int, size: int) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: np.full(clients, size)


def _lognormal(
    clients: int, mean: float, deviation: float, low: int, high: int
) -> Callable[[np.random.Generator], np.ndarray]:
    variance = np.log(1 + (deviation / mean) ** 2)
    mu = np.log(mean) - variance / 2

    def draw(rng: np.random.Generator) -> np.ndarray:
        sizes = np.exp(mu + np.sqrt(variance) * rng.standard_normal(clients))
        return np.clip(np.round(sizes), low, high).astype(int)

    return draw


_PAPERS = {"scaffold": 1, "ditto": 1, "apfl": 1, "fedrep": 2}  # and their epochs

_RAGGED = _lognormal(500, 227, 89, 10, 6000)
_SKEWED = _lognormal(200, 400, 700, 10, 6000)
_LINES = _lognormal(100, 40, 70, 10, 600)

JOBS = {
    job.name: job
    for job in [
        Job("lr-mnist", "lr", _equal(1000, 60), m=10, rounds=200),
        Job("2nn", "2nn", _equal(100, 600), m=10, rounds=3),
        Job("cnn", "cnn", _equal(100, 600), m=10, rounds=1, learning_rate=0.02),
        Job("ragged-lr", "lr", _RAGGED, m=50, rounds=4),
        Job("ragged-2nn", "2nn", _RAGGED, m=50, rounds=2),
        Job("skewed-2nn", "2nn", _SKEWED, m=20, rounds=2),
        Job("lstm", "lstm", _LINES, m=10, rounds=1, learning_rate=0.5),
        *[
            Job(
                name,
                model,
                _equal(clients, size),
                m=10,
                rounds=rounds,
                sweep=rates,
                peers=("pytorch", "fedjax"),
            )
            for name, model, clients, size, rounds, rates in (
                ("sweep", "lr", 1000, 60, 20, 64),
                ("sweep-2nn", "2nn", 100, 600, 1, 64),
                ("sweep-cnn", "cnn", 100, 600, 1, 8),
            )
        ],
        *[
            Job(
                f"{algorithm}-{model}",
                model,
                _equal(100, 600),
                m=10,
                rounds=5 if model == "2nn" else 1,
                learning_rate=0.02,
                epochs=epochs,
                peers=("pytorch",),
                algorithm=algorithm,
            )
            for model in ("2nn", "cnn")
            for algorithm, epochs in _PAPERS.items()
        ],
        *[
            Job(
                f"scale-k-1e{power}",
                "lr",
                _equal(10**power, 20),
                m=100,
                rounds=100,
                features=32,
                peers=("pytorch", "fedjax"),
                sampled=True,
            )
            for power in (3, 4, 5, 6)
        ],
    ]
}
