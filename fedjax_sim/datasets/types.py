"""The type of a data set, and the facts that runs need to know of it."""

from typing import NamedTuple

import numpy as np

from fedjax_sim.core.reprs import fields_of

IMAGES, FEATURES, TEXT, REGRESSION = "images", "features", "text", "regression"


class Facts(NamedTuple):
    """Facts about a data set: the defaults of its runs.

    Attributes:
      model: the default model.
      clients: the default K, or the number of its natural clients.
      kind: of its examples: images, features or text with labels, or a regression. A model says
        which kinds it takes.
      fraction, client_lr: defaults.
      target: the default target of `fedjax-sim compare`.
      natural: whether it has natural clients.
      fixed: whether their number is always `clients`, whatever the user asks for.
      licence: of data that ship with the package.
    """

    model: str
    clients: int
    kind: str = IMAGES
    fraction: float = 0.1
    client_lr: float = 0.1
    target: float = 0.9
    natural: bool = False
    fixed: bool = True
    licence: str = ""

    @property
    def has_labels(self) -> bool:
        """Whether each example has one label, by which it can be split."""
        return self.kind in (IMAGES, FEATURES)

    @property
    def partition(self) -> str:
        """The default split."""
        return "natural" if self.natural else "dirichlet"


class Dataset(NamedTuple):
    """Examples `{"x": [N, ...], "y": [N]}`, not yet split over clients, in parts.

    `train` is to train on, `validation` (if there is one) to choose hyper-parameters by, and `test`
    to test the choice.

    If the data have natural clients, each part has ids, and an id is the same client in all parts:
    `FederatedData.from_arrays(part, ids, client_names=client_names)` is then the federation of a
    part, in which client k has the index k, with or without examples.
    """

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    num_classes: int | None  # None: regression
    client_ids: np.ndarray | None = None  # Int[N] of train: natural clients, where it has them
    # Client k's, where they have names: those of train first, then those of other parts alone.
    client_names: tuple[str, ...] | None = None
    validation: dict[str, np.ndarray] | None = None
    test_client_ids: np.ndarray | None = None  # Int[N] of test
    validation_client_ids: np.ndarray | None = None  # Int[N] of validation

    def __repr__(self) -> str:
        return fields_of(self)


# The default model of each kind, for data without declared facts.
_MODELS = {IMAGES: "cnn", FEATURES: "logistic", TEXT: "character_lstm", REGRESSION: "mlp"}
_CLIENTS = 10  # the default K of data without natural clients
_MANY = 50  # from so many clients on the default cohort is a tenth, below three tenths


def facts_from(dataset: Dataset, fixed: bool = True) -> Facts:
    """The facts of a data set that declares none, derived from its arrays.

    Args:
      fixed: as in `Facts`.
    """
    x, y = (np.asarray(dataset.train[name]) for name in ("x", "y"))
    if dataset.num_classes is None:
        kind = REGRESSION
    elif y.ndim > 1:
        kind = TEXT
    else:
        kind = IMAGES if x.ndim == 4 else FEATURES  # [N, height, width, channels]
    ids = dataset.client_ids
    clients = _CLIENTS if ids is None else int(np.max(ids)) + 1
    return Facts(
        _MODELS[kind],
        clients,
        kind,
        fraction=0.1 if clients >= _MANY else 0.3,
        client_lr=0.02 if kind == REGRESSION else 0.1,
        natural=ids is not None,
        fixed=fixed,
    )
