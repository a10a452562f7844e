"""What a data set is."""

from typing import NamedTuple

import numpy as np

from fedjax_sim.core.reprs import fields_of


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
