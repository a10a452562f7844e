"""Data sets of LEAF (Caldas et al. 2018, arXiv 1812.01097), from its JSON files."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.datasets.by_client import Examples, halves, joined
from fedjax_sim.datasets.types import Dataset

# Of LEAF's Shakespeare, in its order.
LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
_IMAGES = (".jpg", ".jpeg", ".png")
_OF_CODE = np.array([LETTERS.find(chr(code)) for code in range(129)], np.int32)  # -1: not in it


def leaf(path: str | os.PathLike[str]) -> Dataset:
    """A data set of LEAF, after its `preprocess.sh`: clients are its users.

    Numbers are taken as they are: FEMNIST's x is Float32[N, 784]. Text (LEAF's Shakespeare: x of
    80 characters, y the one that follows) becomes x Int32[N, 80], y Int32[N, 80] of each
    position's next character, in LEAF's 80 letters, as `fs.models.character_lstm` is trained.
    Images that are file names (CelebA) are not read.

    Args:
      path: a folder with `train/*.json` and `test/*.json`, each of `users`, `num_samples` and
        `user_data` (`{user: {x: [...], y: [...]}}`).

    Raises:
      FileNotFoundError: if they are not there.
      ValueError: if a file is not of that form, in which case it is named.
    """
    parts, text = [], False
    for files in halves(path, ".json"):
        clients: dict[str, Examples] = {}
        for file in files:
            users = _users(file)
            if twice := sorted(users.keys() & clients.keys()):
                raise ValueError(f"{file} holds user {twice[0]}, as another file does")
            for user, (x, y) in users.items():
                text = text or _is_text(x)
                clients[user] = _arrays(x, y, f"{file}, user {user}")
        parts.append(clients)
    found = joined(*parts)
    return found._replace(num_classes=len(LETTERS)) if text else found


def _users(file: Path) -> dict[str, tuple[list[Any], list[Any]]]:
    """x and y of each user, as JSON has them."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        users, counts, data = (content[name] for name in ("users", "num_samples", "user_data"))
        found = {user: (data[user]["x"], data[user]["y"]) for user in users}
        if not len(users) == len(found) == len(counts):
            raise ValueError(
                f"{len(users)} users, {len(found)} of them different, and {len(counts)} num_samples"
            )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} must be LEAF's JSON, of users, num_samples and user_data {{user: {{x, y}}}}; "
            f"{type(error).__name__}: {error}"
        ) from None
    for (user, (x, y)), count in zip(found.items(), counts, strict=True):
        if not (isinstance(x, list) and isinstance(y, list) and len(x) == len(y) == count):
            sizes = " and ".join(str(len(v)) if isinstance(v, list) else "no list" for v in (x, y))
            raise ValueError(
                f"{file} says {count} samples of user {user}; its x and y have {sizes}"
            )
    return found


def _is_text(x: Sequence[Any]) -> bool:
    return len(x) > 0 and isinstance(x[0], str)


def _arrays(x: Sequence[Any], y: Sequence[Any], where: str) -> Examples:
    if _is_text(x):
        if not all(isinstance(after, str) for after in y) or x[0].endswith(_IMAGES):
            raise ValueError(
                f"{where} must have numbers, or text and the letter after it; got {x[0]!r} and "
                f"{y[0]!r} (images by name are not read)"
            )
        if not all(isinstance(before, str) for before in x):
            raise ValueError(f"{where} must have an x of texts alone, or of numbers alone")
        texts = [before + after for before, after in zip(x, y, strict=True)]
        if len({len(text) for text in texts}) > 1:
            raise ValueError(f"{where} must have texts of one length")
        whole = _indices("".join(texts), where).reshape(len(texts), -1)
        return whole[:, :-1], whole[:, 1:]
    try:
        return np.asarray(x), np.asarray(y)
    except ValueError:
        raise ValueError(f"{where} must have an x of one shape; got a ragged list") from None


def _indices(text: str, where: str) -> np.ndarray:
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    found = _OF_CODE[np.minimum(codes, len(_OF_CODE) - 1)]
    if (found < 0).any():
        unknown = text[int(np.argmax(found < 0))]
        raise ValueError(f"{where} must be in LEAF's {len(LETTERS)} letters; got {unknown!r}")
    return found
