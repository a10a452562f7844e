"""What a data set is."""

from typing import NamedTuple

import numpy as np

from fedjax_sim.core.reprs import fields_of


class Dataset(NamedTuple):
    """Examples `{"x": [N, ...], "y": [N]}`, not yet split over clients, in parts.

    `train` to train on, `validation` (where there is one) to choose by, and `test` for the choice.
    """

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    num_classes: int | None  # None: regression
    client_ids: np.ndarray | None = None  # Int[N] of train: natural clients, where it has them
    client_names: tuple[str, ...] | None = None  # client k's, where they have names
    validation: dict[str, np.ndarray] | None = None

    def __repr__(self) -> str:
        return fields_of(self)
