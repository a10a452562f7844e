"""Measured wind power: two years of four turbines at La Haute Borne."""

import csv
import io
import os
import zipfile
from pathlib import Path

import numpy as np

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.registry import declare
from fedjax_sim.datasets.arrays import read_npz
from fedjax_sim.datasets.fetching.cache import located
from fedjax_sim.datasets.series import forecasting, on_a_circle
from fedjax_sim.datasets.types import REGRESSION, Dataset, Facts

TURBINES = ("R80711", "R80721", "R80736", "R80790")
RATED = 2050.0  # kW
_COLDEST = -50.0  # degrees Celsius; a broken sensor says absolute zero
FILES = (("wind_farm.npz",),)
_COLUMNS = ("P_avg", "Ws_avg", "Wa_avg", "Ot_avg")
_START, _STEPS = np.datetime64("2014-01-01T00:00"), 105_120  # two years of ten minutes, UTC


@declare(
    "two years of four wind turbines, La Haute Borne",
    facts=Facts("mlp", 4, REGRESSION, fraction=0.5, client_lr=0.02, target=0.75, natural=True),
)
def wind_farm(path: str | os.PathLike[str] | None = None, length: int = 24) -> Dataset:
    """A turbine's power in the next hour from its last T hours: 4 clients, regression.

    x: Float32[N, T, 5], hourly means of power, wind speed and outdoor temperature, and sine and
    cosine of the wind's direction; y: Float32[N], the next hour's mean power. Power, speed and
    temperature lose the mean and are divided by the standard deviation of all turbines'
    training hours; the rating is `RATED` kW. The first four fifths of 2014 and 2015 train.
    Clients as `TURBINES`. Examples with a missing value are left out.

    ENGIE, La Haute Borne, Open Licence 2.0, from PyPI's openoa. Quirks: 0.6 % of the ten-minute
    rows have no values, and 34 a temperature at absolute zero or near (taken as missing); at the
    end of summer time an hour is there twice (the first is kept) and another is not.

    Args:
      path: a folder with `wind_farm.npz`; None for where `fetch` puts it.
      length: T.

    Raises:
      FileNotFoundError: if it is not there: how to get it.
      ValueError: if T < 1, or longer than leaves examples.
    """
    check_count("length", length)
    (file,) = located("wind_farm", FILES, path)
    (measured,) = read_npz(file, "measured")  # [4, steps, 4] in the order of _COLUMNS
    series, targets = [], []
    for turbine in measured:
        power, speed, direction, temperature = turbine.T
        rows = np.column_stack([power, speed, temperature, on_a_circle(direction / 360)])
        hours = rows.reshape(-1, 6, 5).mean(axis=1)  # NaN if any of its six rows is
        series.append(hours)
        targets.append(hours[:, 0])
    return forecasting(series, targets, length, scaled=3, names=TURBINES)


def convert(raw: Path, converted: Path) -> None:
    """The CSV as `measured`: Float32[4, 105120, 4], NaN where nothing was measured."""
    measured = np.full((len(TURBINES), _STEPS, len(_COLUMNS)), np.nan, np.float32)
    is_filled = np.zeros((len(TURBINES), _STEPS), bool)
    with (
        zipfile.ZipFile(raw / "la_haute_borne.zip") as archive,
        archive.open("la-haute-borne-data-2014-2015.csv") as binary,
    ):
        for row in csv.DictReader(io.TextIOWrapper(binary, "utf-8")):
            k = TURBINES.index(row["Wind_turbine_name"])
            local, zone = row["Date_time"][:16], int(row["Date_time"][-6:-3])
            minutes = (np.datetime64(local) - _START).astype(int) - 60 * zone
            step = minutes // 10
            if not 0 <= step < _STEPS or is_filled[k, step]:
                continue
            is_filled[k, step] = True
            values = [float(row[name] or "nan") for name in _COLUMNS]
            if values[-1] > _COLDEST:
                measured[k, step] = values
    np.savez(converted / "wind_farm.npz", measured=measured)
