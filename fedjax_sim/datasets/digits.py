"""The UCI digits: 1,797 handwritten digits, 8x8, shipped inside the package."""

from importlib.resources import files

import numpy as np

from fedjax_sim.core.registry import declare
from fedjax_sim.datasets.types import Dataset, Facts


@declare(
    "1,797 handwritten digits, 8x8",
    is_default=True,
    facts=Facts("logistic", 50, licence="CC BY 4.0"),
)
def digits() -> Dataset:
    """1,437 training and 360 test images of digits, in 10 classes.

    x: Float32[N, 8, 8] in [0, 1]; y: Int32[N]. Every fifth image is a test image.
    E. Alpaydin and C. Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, doi 10.24432/C50P49, CC BY 4.0 (its test set).

    >>> digits().train["x"].shape
    (1437, 8, 8)
    """
    with (
        files("fedjax_sim.datasets").joinpath("digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):
        x = archive["images"].astype(np.float32) / 16
        y = archive["labels"].astype(np.int32)
    test = np.arange(len(y)) % 5 == 0
    return Dataset({"x": x[~test], "y": y[~test]}, {"x": x[test], "y": y[test]}, num_classes=10)
