"""Electricity of seventeen homes with solar cells, hour by hour for a year."""

import csv
import os
from pathlib import Path

import numpy as np

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.registry import declare
from fedjax_sim.datasets.arrays import read_npz
from fedjax_sim.datasets.fetching.cache import located
from fedjax_sim.datasets.series import forecasting, on_a_circle
from fedjax_sim.datasets.types import REGRESSION, Dataset, Facts

HOMES = 17
FILES = (("household.npz",),)
_COLUMNS = ("Equipment Electric Power [kWh]", "Solar Generation [W/kW]", "Hour")


@declare(
    "a year of electricity of 17 homes",
    facts=Facts("mlp", 17, REGRESSION, fraction=0.3, client_lr=0.02, target=0.75, natural=True),
)
def household(path: str | os.PathLike[str] | None = None, length: int = 24) -> Dataset:
    """A home's electricity in the next hour from its last T hours: 17 clients, regression.

    x: Float32[N, T, 4]: load (kWh), solar generation (W for each kW of cells), sine and cosine of
    the hour of the day; y: Float32[N], the next hour's load. Load and generation lose the mean
    and are divided by the standard deviation of all homes' training hours. The first four fifths
    of the 8,760 hours (from the end of July on) train, so that June and July are tested.

    CityLearn's challenge of 2022, all phases (MIT): homes in Fontana, California, of EPRI's
    study, as their load without heating, cooling and hot water, which are zero in the files.

    Args:
      path: a folder with `household.npz`; None for where `fetch` puts it.
      length: T.

    Raises:
      FileNotFoundError: if it is not there: how to get it.
      ValueError: if T < 1, or longer than leaves examples.
    """
    check_count("length", length)
    (file,) = located("household", FILES, path)
    load, solar, hour = read_npz(file, "load", "solar", "hour")
    clock = on_a_circle(hour / 24)
    series = [np.column_stack([*home, clock]) for home in zip(load, solar, strict=True)]
    names = tuple(f"Building_{home}" for home in range(1, HOMES + 1))
    return forecasting(series, list(load), length, scaled=2, names=names)


def convert(raw: Path, converted: Path) -> None:
    """The homes' CSV as load and solar, Float32[17, 8760], and hour, Int8[8760], 1 to 24."""
    columns: list[list[list[float]]] = []
    for home in range(1, HOMES + 1):
        with (raw / f"Building_{home}.csv").open(newline="") as file:
            columns.append([[float(row[n]) for n in _COLUMNS] for row in csv.DictReader(file)])
    values = np.array(columns)  # [17, hours, 3]
    load, solar = (values[..., i].astype(np.float32) for i in (0, 1))
    hour = values[0, :, 2].astype(np.int8)
    np.savez(converted / "household.npz", load=load, solar=solar, hour=hour)
