"""What a data set is."""

from typing import NamedTuple

import numpy as np

from fedjax_sim.core.reprs import fields_of

IMAGES, FEATURES, TEXT, REGRESSION = "images", "features", "text", "regression"


class Facts(NamedTuple):
    """What depends on the data set: the model and the settings of its runs by default.

    Attributes:
      model: by default.
      clients: K by default, or how many it has.
      kind: of its examples: images, features or text with labels, or a regression. A model says
        which kinds it takes.
      fraction, client_lr: by default.
      target: score of `fedjax-sim compare` by default.
      natural: has it clients of its own?
      fixed: are they as many as `clients`, whatever is asked for?
      licence: of what ships with the package.
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
        """Has each example one label, to split by?"""
        return self.kind in (IMAGES, FEATURES)

    @property
    def partition(self) -> str:
        """The split by default."""
        return "natural" if self.natural else "dirichlet"


class Dataset(NamedTuple):
    """Examples `{"x": [N, ...], "y": [N]}`, not yet split over clients, in parts.

    `train` to train on, `validation` (where there is one) to choose by, and `test` for the choice.

    Where the data say whose the examples of a part are, its ids are there, and one number is one
    client in all parts: `FederatedData.from_arrays(part, ids, client_names=client_names)` is then
    the federation of a part, with client k in the place k, whether it has examples there or not.
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


# The model of each kind by default, for data of which nothing is declared.
_MODELS = {IMAGES: "cnn", FEATURES: "logistic", TEXT: "character_lstm", REGRESSION: "mlp"}
_CLIENTS = 10  # of data without clients of their own
_MANY = 50  # clients of which a tenth is a cohort; of fewer it is three tenths


def facts_from(dataset: Dataset, fixed: bool = True) -> Facts:
    """The facts of a data set of which nothing is declared, from what it holds.

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
