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


_IMAGES = OfDataset(("2nn", "cnn", "logistic", "mlp"), 100)
_SERIES = OfDataset(
    ("mlp",), 0, fraction=0.3, client_lr=0.02, target=0.75, natural=True, labels=False
)

OF_DATASET = {
    "digits": OfDataset(("logistic", "2nn", "mlp"), 50),
    "wind": _SERIES._replace(clients=10, fixed=False),
    "mnist": _IMAGES,
    "fashion_mnist": _IMAGES._replace(target=0.8),
    "cifar10": _IMAGES._replace(models=("cnn", "2nn", "logistic", "mlp"), target=0.6),
    "shakespeare": OfDataset(
        ("lstm",), 1282, fraction=0.01, client_lr=1.0, target=0.4, natural=True, labels=False
    ),
    "irish_wind": _SERIES._replace(clients=12),
    "wind_farm": _SERIES._replace(clients=4, fraction=0.5),
    "household": _SERIES._replace(clients=17),
    "activity": OfDataset(("2nn", "logistic", "mlp"), 10, fraction=0.3, natural=True),
}
REGRESSIONS = ("wind", "irish_wind", "wind_farm", "household")
