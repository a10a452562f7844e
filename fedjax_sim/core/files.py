"""Writing files whole or not at all, and the error if that fails."""

import hashlib
import json
import math
import os
import re
import secrets
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from fedjax_sim.core.interrupted import InterruptedRun

# Errors that a damaged archive of arrays raises when it is read. A changed byte may, for example,
# name an unknown compression (NotImplementedError), mark an entry as encrypted (RuntimeError), or
# spoil the name of a dtype.
DAMAGED = (
    AttributeError,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


class SaveError(InterruptedRun, OSError):
    """A file could not be written; files that were saved before are unchanged.

    An OSError. `partial` is what a run or a sweep had computed, as of any `fs.InterruptedRun`.
    """


def replace_file(path: Path, save: Callable[[IO[bytes]], Any]) -> None:
    """Writes beside the path and moves it there: a reader never sees half a file.

    Several processes may write one path at a time, each beside it in a file of its own.

    Raises:
      SaveError: saying which file, and why.
    """
    with _written_beside(path, save) as beside:
        beside.replace(path)


def check_writable(folder: Path, what: str) -> None:
    """Makes a folder if it is not there, and tests that files can be written in it.

    Args:
      what: how the error begins.

    Raises:
      ValueError: if they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror
        raise ValueError(f"{what} cannot be written: {why}") from error


def make_file(path: Path, contents: bytes) -> bool:
    """Writes a file, whole, that only one of several processes can make; whether it is this one.

    Raises:
      SaveError: saying which file, and why.
    """
    with _written_beside(path, lambda file: file.write(contents)) as beside:
        try:
            os.link(beside, path)  # which, unlike a move, fails if it exists
        except FileExistsError:
            return False
    return True


@contextmanager
def _written_beside(path: Path, save: Callable[[IO[bytes]], Any]) -> Iterator[Path]:
    """A file beside the path, whole and on the disk, which is gone afterwards.

    Raises:
      SaveError: for an OSError of writing it, or of what is then done with it.
    """
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            with beside.open("xb") as file:
                save(file)
                file.flush()
                os.fsync(file.fileno())
            yield beside
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise SaveError(f"{path} was not written: {reason(error)}") from error


def to_json(value: Any) -> bytes:
    """JSON text, with null in place of NaN and infinity, which JSON does not have."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): clean(x) for key, x in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(x) for x in value]
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)

    return (json.dumps(clean(value), indent=2) + "\n").encode()


def fingerprint(numbers: Any) -> str:
    """A checksum of anything JSON-able, the same on every machine.

    >>> fingerprint({"a": [1.0, None]}) == fingerprint({"a": [1.0, None]})
    True
    """
    text = json.dumps(numbers, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_png(figure: Any, path: Path, numbers: Any, dpi: int) -> None:
    """Writes a picture that carries the fingerprint of the numbers that it was made of."""
    stamp = {"Numbers": fingerprint(numbers)}
    replace_file(path, lambda file: figure.savefig(file, format="png", dpi=dpi, metadata=stamp))


def stamp_of(path: Path) -> str | None:
    """The fingerprint that a picture carries; None if it has none."""
    match = re.search(rb"tEXtNumbers\0([0-9a-f]{16})", path.read_bytes())
    return None if match is None else match[1].decode()


def reason(error: BaseException) -> str:
    """The operating system's message of an error or of its causes, or else its first line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    if "No space left" in text:
        return "No space left on device"
    return (text.splitlines() or [type(error).__name__])[0][:200]


def lock_of(path: Path) -> Path:
    """The lock beside a file that one process writes at a time."""
    return path.with_name(f"{path.name}.lock")


@contextmanager
def locked(path: Path, refusal: str, *, or_unlocked: bool = False) -> Iterator[None]:
    """Within it no other process holds the lock at this path, whose folder is there.

    The lock is the operating system's, so that a killed process loses it.

    Args:
      refusal: the error's message.
      or_unlocked: whether a file system without locks, as of some mounts, will do without one.

    Raises:
      ValueError: if another process holds it.
      OSError: if it cannot be written.
      NotImplementedError: of a file system without locks, unless `or_unlocked`.
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(refusal) from None
    except NotImplementedError:  # a file system without locks, on which a run must work, too
        if not or_unlocked:
            raise
        yield
        return
    try:
        yield
    finally:
        lock.release()
