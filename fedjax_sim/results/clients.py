"""Each client's final values, as a file of a results folder: one row a client."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_sim.core.files import replace_file

# The models that are measured: the global one, each client's own, and what fine-tuning makes of it.
MODELS = ("global", "personal", "tuned")
_FIRST = ("client", "train_examples", "test_examples")


class Clients(NamedTuple):
    """Values by client.

    Attributes:
      names: K texts.
      train_examples: Int[K], n_k.
      test_examples: Int[K], which the values are means over.
      columns: MODEL_METRIC, as "global_accuracy" or "personal_loss" -> Float[K]; NaN of a client
        without a test example.
    """

    names: tuple[str, ...]
    train_examples: np.ndarray
    test_examples: np.ndarray
    columns: Mapping[str, np.ndarray]

    @property
    def metric(self) -> str:
        """What is compared: the accuracy, or the loss where there is none."""
        metrics = {name.partition("_")[2] for name in self.columns}
        return "accuracy" if "accuracy" in metrics else "loss"

    def by_model(self, metric: str) -> dict[str, np.ndarray]:
        """Model -> Float[of the clients that have test examples], in the order of `MODELS`."""
        has_examples = self.test_examples > 0
        columns = {model: self.columns.get(f"{model}_{metric}") for model in MODELS}
        return {model: x[has_examples] for model, x in columns.items() if x is not None}

    def save(self, path: Path) -> None:
        """Writes the file, or replaces it.

        Raises:
          SaveError: if it cannot be written.
        """
        text = io.StringIO(newline="")
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow([*_FIRST, *self.columns])
        numbers = (self.train_examples.tolist(), self.test_examples.tolist())
        cells = [[_cell(x) for x in column] for column in self.columns.values()]
        lines.writerows(zip(self.names, *numbers, *cells, strict=True))
        replace_file(path, lambda file: file.write(text.getvalue().encode("utf-8", "replace")))


def read(path: Path) -> Clients:
    """Reads what `Clients.save` wrote.

    Raises:
      ValueError: for a file that is broken.
    """
    try:
        header, *lines = csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        if tuple(header[: len(_FIRST)]) != _FIRST or not lines:
            raise ValueError(f"it has no columns {', '.join(_FIRST)}, or no client")
        names, *columns = zip(*lines, strict=True)
        train, test, *values = columns
        return Clients(
            tuple(names),
            np.array(train, np.int64),
            np.array(test, np.int64),
            {
                name: np.array([float(cell or "nan") for cell in column])
                for name, column in zip(header[len(_FIRST) :], values, strict=True)
            },
        )
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} is broken: {error}") from error


def worst_tenth(values: np.ndarray, lowest_is_worst: bool) -> float:
    """The mean of the worst ceil(n / 10) of n values.

    >>> worst_tenth(np.array([0.2, 0.9, 0.4]), lowest_is_worst=True)
    0.2
    """
    ordered = np.sort(values) if lowest_is_worst else np.sort(values)[::-1]
    return float(np.mean(ordered[: -(-len(values) // 10)]))


def _cell(value: float) -> str:
    return "" if np.isnan(value) else repr(float(value))
