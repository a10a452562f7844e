"""Files written whole or not at all, and the error of what could not be written."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


class SaveError(OSError):
    """Something could not be written; what was saved before it is as it was."""


def replace_file(path: Path, save: Callable[[IO[bytes]], Any]) -> None:
    """Writes beside the path and moves it there: a reader never sees half a file.

    Raises:
      SaveError: saying which file, and why.
    """
    beside = path.with_name(path.name + ".part")
    try:
        try:
            with beside.open("wb") as file:
                save(file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise SaveError(f"{path} was not written: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """The system's own word where there is one, else the first line."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    text = str(error)
    if "No space left" in text:
        return "No space left on device"
    return (text.splitlines() or [type(error).__name__])[0][:200]
