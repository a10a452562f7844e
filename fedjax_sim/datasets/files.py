"""The files of a federation, and their order."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Pair = tuple[str | os.PathLike[str], str | os.PathLike[str]]


def natural_order(name: str) -> tuple[Any, ...]:
    """A key to sort names by: the numbers in them count as numbers.

    >>> sorted(["10", "2", "1"], key=natural_order)
    ['1', '2', '10']
    """
    # Every second part consists of digits. These are compared by their count and then as text,
    # because Python refuses to convert thousands of digits to an integer.
    parts = re.split("([0-9]+)", name)
    digits = [part.lstrip("0") for part in parts[1::2]]
    parts[1::2] = [""] * len(digits)
    key = [
        (text, len(number), number) for text, number in zip(parts[::2], [*digits, ""], strict=True)
    ]
    return tuple(key), name  # the name breaks ties, as of "01" and "1"


def halves(path: Any, ending: str) -> tuple[list[Path], list[Path]]:
    """The files of `path`/train and of `path`/test, in the natural order of their names.

    Raises:
      FileNotFoundError: if there are none.
    """
    parts = []
    for part in ("train", "test"):
        files = _visible(Path(path).expanduser() / part, f"*{ending}")
        if not files:
            raise FileNotFoundError(
                f"path must be a folder with {ending} files in train/ and in test/; got {path}, "
                f"without any in {part}/"
            )
        parts.append(files)
    return parts[0], parts[1]


def pair(path: str | os.PathLike[str] | Pair, ending: str) -> tuple[Path, Path]:
    """The one file of training examples and the one of test examples.

    Args:
      path: a folder that has one `*train*` and one `*test*` with this ending, or the two files.

    Raises:
      FileNotFoundError: if they are not there.
      ValueError: if there is a choice of several, or `path` is neither a folder nor a pair.
    """
    if isinstance(path, (tuple, list)):
        files = [Path(file).expanduser() for file in path]
        if len(files) != 2:
            raise ValueError(f"path must be a folder, or two files (train, test); got {len(files)}")
        if missing := [file for file in files if not file.is_file()]:
            raise FileNotFoundError(
                f"path must name two files (train, test); got {missing[0]}, which is none"
            )
        return files[0], files[1]
    chosen = []
    for part in ("train", "test"):
        files = _visible(Path(path).expanduser(), f"*{part}*{ending}")
        if not files:
            raise FileNotFoundError(
                f"path must be a folder with one *{part}*{ending}; got {path}, with none"
            )
        if len(files) > 1:
            raise ValueError(
                f"path must be a folder with one *{part}*{ending}; got {path}, with "
                f"{len(files)}: {_listed(files)}; give the two files, as path=(train, test)"
            )
        chosen.append(files[0])
    return chosen[0], chosen[1]


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Matching files in natural order, without hidden ones, whose names begin with a dot."""
    files = [file for file in folder.glob(pattern) if not file.name.startswith(".")]
    return sorted(files, key=lambda file: natural_order(file.name))


def _listed(files: Iterable[Path]) -> str:
    names = [file.name for file in files]
    return " and ".join([", ".join(names[:-1]), names[-1]])
