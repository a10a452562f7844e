"""What each data set's runs are by default."""

from typing import NamedTuple


class OfDataset(NamedTuple):
    """The models that it takes, the default one first, and the defaults that depend on it."""

    models: tuple[str, ...]
    clients: int
    fraction: float = 0.1
    client_lr: float = 0.1
    target: float = 0.9  # of `compare`
    natural: bool = False  # has it clients of its own?
    fixed: bool = True  # are they as many as `clients`?
    labels: bool = True  # one for each example, to split by


_IMAGES = OfDataset(("2nn", "cnn", "cifar_cnn", "resnet18", "logistic", "mlp"), 100)
_SERIES = OfDataset(
    ("mlp",), 0, fraction=0.3, client_lr=0.02, target=0.75, natural=True, labels=False
)
_SYNTHETIC = OfDataset(
    ("logistic", "2nn", "mlp"), 30, fraction=1 / 3, client_lr=0.01, target=0.7, natural=True,
    fixed=False,
)  # fmt: skip

OF_DATASET = {
    "digits": OfDataset(("logistic", "2nn", "mlp", "cnn", "cifar_cnn", "resnet18"), 50),
    "wind": _SERIES._replace(clients=10, fixed=False),
    "synthetic": _SYNTHETIC,
    "synthetic_iid": _SYNTHETIC,
    "mnist": _IMAGES,
    "fashion_mnist": _IMAGES._replace(target=0.8),
    "cifar10": _IMAGES._replace(
        models=("cnn", "cifar_cnn", "resnet18", "2nn", "logistic", "mlp"), target=0.6
    ),
    "shakespeare": OfDataset(
        ("character_lstm", "transformer"),
        1282,
        fraction=0.01,
        client_lr=1.0,
        target=0.4,
        natural=True,
        labels=False,
    ),
    "irish_wind": _SERIES._replace(clients=12),
    "wind_farm": _SERIES._replace(clients=4, fraction=0.5),
    "household": _SERIES._replace(clients=17),
    "activity": OfDataset(("2nn", "logistic", "mlp"), 10, fraction=0.3, natural=True),
}
GENERATED = ("digits", "wind", "synthetic", "synthetic_iid")  # or shipped: there without a fetch
FETCHED = tuple(name for name in OF_DATASET if name not in GENERATED)
REGRESSIONS = ("wind", "irish_wind", "wind_farm", "household")
