"""Daily wind at twelve Irish stations, 1961 to 1978."""

import os
from pathlib import Path

import numpy as np

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.registry import declare
from fedjax_sim.datasets.arrays import read_npz
from fedjax_sim.datasets.fetching.cache import located
from fedjax_sim.datasets.series import forecasting, on_a_circle
from fedjax_sim.datasets.types import REGRESSION, Dataset, Facts

STATIONS = ("RPT", "VAL", "ROS", "KIL", "SHA", "BIR", "DUB", "CLA", "MUL", "CLO", "BEL", "MAL")
FILES = (("irish_wind.npz",),)


@declare(
    "daily wind speed at 12 stations, 1961-78",
    facts=Facts("mlp", 12, REGRESSION, fraction=0.3, client_lr=0.02, target=0.75, natural=True),
)
def irish_wind(path: str | os.PathLike[str] | None = None, length: int = 14) -> Dataset:
    """Tomorrow's mean wind speed at a station from its last T days: 12 clients, regression.

    x: Float32[N, T, 3]: the speed, and sine and cosine of the day of the year; y: Float32[N], the
    next day's speed; both speeds less the mean of all stations' training days, over their
    standard deviation. The first four fifths of the 6,574 days train. Clients as `STATIONS`
    (Roche's Point, Valentia, Rosslare, Kilkenny, Shannon, Birr, Dublin, Claremorris, Mullingar,
    Clones, Belmullet, Malin Head).

    It is wind speed, in knots in the file, not power. Haslett and Raftery 1989, Space-time
    modelling with long-memory dependence, Applied Statistics 38; from R's gstat (GPL-2+).

    Args:
      path: a folder with `irish_wind.npz`; None for where `fetch` puts it.
      length: T.

    Raises:
      FileNotFoundError: if it is not there: how to get it.
      ValueError: if T < 1, or longer than leaves examples.
    """
    check_count("length", length)
    (file,) = located("irish_wind", FILES, path)
    speed, day = read_npz(file, "speed", "day_of_year")
    season = on_a_circle(day / 365.25)
    series = [np.column_stack([station, season]) for station in speed.T]
    return forecasting(series, list(speed.T), length, scaled=1, names=STATIONS)


def convert(raw: Path, converted: Path) -> None:
    """R's data frame as arrays: speed Float32[6574, 12] in knots, day_of_year Int16[6574]."""
    import pyreadr

    frame = pyreadr.read_r(str(raw / "wind.rda"))["wind"]
    year, month, day = (frame[name].to_numpy().astype(int) for name in ("year", "month", "day"))
    dates = (1900 + year - 1970).astype("datetime64[Y]").astype("datetime64[M]") + (month - 1)
    days = dates.astype("datetime64[D]") + (day - 1)
    speed = np.stack([frame[name].to_numpy() for name in STATIONS], axis=1)
    if (np.diff(days).astype(int) != 1).any():
        raise ValueError("its days do not follow each other")
    of_year = (days - days.astype("datetime64[Y]")).astype(int) + 1
    np.savez(
        converted / "irish_wind.npz",
        speed=speed.astype(np.float32),
        day_of_year=of_year.astype(np.int16),
    )
