"""NIID-Bench: Li et al. 2022 (arXiv 2102.02079), beside the two public records of it."""

from collections.abc import Iterator
from typing import Any

from fedjax_sim.reproduce.accuracies import AccuracyCell, AccuracyTable, Published, accuracy_cell
from fedjax_sim.settings.setting import Setting

_ALL = Setting(
    clients=10,
    sampler="everyone",
    epochs=10,
    batch_size=64,
    rounds=50,
    evaluate_every=10,
    options={},
)
# Data set -> its words in the table, and its model.
_DATA = {
    "digits": ("digits", "2nn"),
    "mnist": ("MNIST", "lenet"),
    "fashion_mnist": ("Fashion-MNIST", "lenet"),
    "cifar10": ("CIFAR-10", "lenet"),
}
# Word of the cell -> its words in the table, and the split.
_SPLITS: dict[str, tuple[str, dict[str, Any]]] = {
    "dirichlet": ("Dirichlet 0.5", {"partition": "dirichlet", "alpha": 0.5, "min_examples": 10}),
    "labels1": ("1 label", {"partition": "labels", "classes_per_client": 1}),
    "labels2": ("2 labels", {"partition": "labels", "classes_per_client": 2}),
    "labels3": ("3 labels", {"partition": "labels", "classes_per_client": 3}),
    "quantity": (
        "quantity, Dirichlet 0.5",
        {"partition": "quantity", "skew": "dirichlet", "skew_parameter": 0.5, "min_examples": 10},
    ),
}
_RATE, _MOMENTUM = 0.01, 0.9
_METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {"algorithm": "fedavg", "client_lr": _RATE, "client_momentum": _MOMENTUM},
    "FedProx": {
        "algorithm": "fedprox",
        "client_lr": _RATE,
        "client_momentum": _MOMENTUM,
        "mu": 0.01,
    },
    "SCAFFOLD": {"algorithm": "scaffold", "client_lr": _RATE / (1 - _MOMENTUM)},
    "FedNova": {"algorithm": "fednova", "client_lr": _RATE, "momentum": _MOMENTUM},
    "FedDyn": {
        "algorithm": "feddyn",
        "client_lr": _RATE,
        "client_momentum": _MOMENTUM,
        "feddyn_alpha": 0.01,
    },
    "FedLC": {"algorithm": "fedlc", "client_lr": _RATE, "client_momentum": _MOMENTUM},
}


def _published(fedavg: str, scaffold: str, fedprox: str, fednova: str) -> Published:
    """In the records' own order of columns."""
    return {"FedAvg": fedavg, "SCAFFOLD": scaffold, "FedProx": fedprox, "FedNova": fednova}


_FLOWER, _AUTHORS = "Flower's `niid_bench`", "the authors' leaderboard"
_RECORDS: dict[tuple[str, str], dict[str, Published]] = {
    ("mnist", "dirichlet"): {
        _FLOWER: _published("98.89 ± .07", "99.07 ± .06", "99.02 ± .02", "98.03 ± .06")
    },
    ("mnist", "labels1"): {
        _FLOWER: _published("19.3 ± 11.8", "9.9 ± .1", "51.8 ± 26.8", "52.6 ± 14.1")
    },
    ("fashion_mnist", "dirichlet"): {
        _FLOWER: _published("88.09 ± .29", "88.44 ± .25", "88.15 ± .42", "88.22 ± .12")
    },
    ("fashion_mnist", "labels2"): {
        _FLOWER: _published("78.1 ± 2.5", "33.8 ± 41.2", "78.1 ± 1.0", "71.7 ± 2.3")
    },
    ("cifar10", "dirichlet"): {
        _FLOWER: _published("62.5 ± .4", "68.1 ± 1.0", "65.6 ± .1", "63.9 ± 1.4"),
        _AUTHORS: _published("68.2", "69.8", "67.9", "66.8"),
    },
    ("cifar10", "quantity"): {_AUTHORS: {"FedNova": "10.0"}},
}


def _cells() -> Iterator[AccuracyCell]:
    for dataset, (data_text, model) in _DATA.items():
        for split, (split_text, options) in _SPLITS.items():
            base = _ALL.but(dataset=dataset, model=model, **options)
            yield accuracy_cell(
                f"niid-bench-{dataset}-{split}",
                f"{data_text}, {split_text}",
                {method: base.but(**values) for method, values in _METHODS.items()},
                _RECORDS.get((dataset, split), {}),
            )


NIID_BENCH = AccuracyTable(
    "niid-bench",
    "NIID-Bench, Li et al. 2022 (arXiv 2102.02079): accuracy after 50 rounds, beside two records",
    "All of ten clients, 50 rounds, E = 10, B = 64, rate 0.01 with momentum 0.9, LeNet-5 "
    "(`lenet`); on the digits, which ship and of which no record is, a 2NN, minutes a cell. In the "
    "cells: test accuracy after the last round in %, mean and sample standard deviation of the "
    "seeds, which share one split. FedProx has mu = 0.01 and FedDyn alpha = 0.01, "
    "not tuned, and FedLC tau = 1; of the last two there is no record. Pixels are in [0, 1], and "
    "nothing is augmented. Ours differs in that SCAFFOLD's steps are of plain SGD, as in its "
    "paper, at the rate 0.01 / (1 - 0.9) that momentum amounts to; its control variates start at "
    "zero, where the authors' are drawn at random; and "
    "FedNova divides by the norm |a_k| of each client's own steps with momentum.",
    tuple(_cells()),
)
