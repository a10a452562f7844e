"""Reading packages that are not installed: npm's .tgz, wheels and Debian's .deb."""

import hashlib
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import IO


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extract(archive: Path, patterns: Iterable[str], to: Path) -> None:
    """Writes the files that match a pattern to a folder, under their last names alone.

    Raises:
      ValueError: if a pattern matches nothing, or the archive is corrupt.
    """
    missing = dict.fromkeys(patterns)
    all_patterns = tuple(missing)
    with _members(archive) as members:
        for name, file in members:
            for pattern in all_patterns:
                if fnmatch(name, pattern):
                    with (to / Path(name).name).open("wb") as out:
                        shutil.copyfileobj(file, out, 1 << 20)
                    missing.pop(pattern, None)
                    break
    if missing:
        raise ValueError(f"it holds no {next(iter(missing))}")


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield ((name, wheel.open(name)) for name in wheel.namelist() if name[-1] != "/")
    elif archive.suffix == ".tgz":
        with tarfile.open(archive, "r|gz") as tar:
            yield _of_tar(tar)
    else:
        # dpkg-deb knows every compression of Debian and its derivatives, and comes with apt.
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                    yield _of_tar(tar)
            except tarfile.ReadError:
                raise ValueError(
                    " ".join(process.stderr.read().decode().split()) or "no tar"
                ) from None
            finally:
                process.stdout.read()  # read to its end, because dpkg-deb waits until it can write


def _of_tar(tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for member in tar:
        file = tar.extractfile(member) if member.isfile() else None
        if file is not None:
            yield member.name.removeprefix("./"), file
