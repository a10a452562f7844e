"""Data sets of LEAF (Caldas et al. 2018, arXiv 1812.01097), from its JSON files."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.datasets.files import halves
from fedjax_sim.datasets.formats.by_client import Examples, check_task, joined
from fedjax_sim.datasets.types import Dataset

# The characters of LEAF's Shakespeare, in its order.
LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
_IMAGES = (".jpg", ".jpeg", ".png")
# Code point -> index in LETTERS; -1 for a character that is not there, and for all from 128 on.
_OF_CODE = np.array([LETTERS.find(chr(code)) for code in range(129)], np.int32)


def leaf(path: str | os.PathLike[str], *, task: str | None = None) -> Dataset:
    """A data set of LEAF, after its `preprocess.sh`: clients are its users.

    Numbers are taken as they are: FEMNIST's x is Float32[N, 784]. Text (LEAF's Shakespeare: x of
    80 characters, y the one that follows) becomes x Int32[N, 80], y Int32[N, 80] of each
    position's next character, in LEAF's 80 letters, as `fs.models.character_lstm` is trained.
    Clients in the order of the files, 2.json before 10.json, and of `users` in each.

    Images that are file names (CelebA) are not read, and neither are words (Sent140, Reddit),
    because the vocabulary is yours to choose. Write numbers for them to a file for each user, which
    `npz` reads; of Sent140, the first 25 words of a tweet by their hash:

        import json, zlib
        from pathlib import Path
        import numpy as np

        def numbers(tweet):  # Int32[25], 0 where there is no word
            words = tweet.lower().split()[:25]
            codes = [1 + zlib.crc32(word.encode()) % 9999 for word in words]
            return np.pad(np.array(codes, np.int32), (0, 25 - len(codes)))

        for part in ("train", "test"):
            (Path(converted) / part).mkdir(parents=True)
            for file in (Path(folder) / part).glob("*.json"):
                for user, data in json.loads(file.read_bytes())["user_data"].items():
                    x = np.stack([numbers(tweet) for *_, tweet in data["x"]])
                    np.savez(Path(converted) / part / f"{user}.npz", x=x, y=data["y"])

    Args:
      path: a folder with `train/*.json` and `test/*.json`, each of `users`, `num_samples` and
        `user_data` (`{user: {x: [...], y: [...]}}`), in UTF-8, UTF-16 or UTF-32, with a byte-order
        mark or without.
      task: "classification" or "regression"; None: labels if every y is a whole number, be it
        written as a float (FedProx's generators write 4.0), else a regression.

    Raises:
      FileNotFoundError: if they are not there.
      ValueError: if a file is not of that form, in which case it is named; if y is not of the
        task.
    """
    check_task(task)
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
    return joined(*parts, task=task, num_classes=len(LETTERS) if text else None)


def _users(file: Path) -> dict[str, tuple[list[Any], list[Any]]]:
    """x and y of each user, as lists."""
    try:
        content = json.loads(file.read_bytes())  # UTF-8, 16 or 32, with a byte-order mark or not
        users, counts, data = (content[name] for name in ("users", "num_samples", "user_data"))
        examples = {user: (data[user]["x"], data[user]["y"]) for user in users}
        if not len(users) == len(examples) == len(counts):
            raise ValueError(
                f"{len(users)} users, {len(examples)} of them different, and "
                f"{len(counts)} num_samples"
            )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} must be LEAF's JSON, of users, num_samples and user_data {{user: {{x, y}}}}; "
            f"{type(error).__name__}: {error}"
        ) from None
    for (user, (x, y)), count in zip(examples.items(), counts, strict=True):
        if not (isinstance(x, list) and isinstance(y, list) and len(x) == len(y) == count):
            sizes = " and ".join(str(len(v)) if isinstance(v, list) else "no list" for v in (x, y))
            raise ValueError(
                f"{file} says {count} samples of user {user}; its x and y have {sizes}"
            )
    return examples


def _is_text(x: Sequence[Any]) -> bool:
    return len(x) > 0 and isinstance(x[0], str)


def _arrays(x: Sequence[Any], y: Sequence[Any], where: str) -> Examples:
    if form := _not_read(x, y):
        raise ValueError(
            f"{where} must have numbers, or text and the letter after it; got {form}, which are "
            "not read: write numbers for them to one .npz a user, for fs.datasets.npz, as "
            "help(fs.datasets.leaf) shows"
        )
    if _is_text(x):
        if not all(isinstance(text, str) for text in x):
            raise ValueError(f"{where} must have an x of texts alone, or of numbers alone")
        texts = [text + following for text, following in zip(x, y, strict=True)]
        if len({len(text) for text in texts}) > 1:
            raise ValueError(f"{where} must have texts of one length")
        whole = _indices("".join(texts), where).reshape(len(texts), -1)
        return whole[:, :-1], whole[:, 1:]
    try:
        return np.asarray(x), np.asarray(y)
    except ValueError:
        raise ValueError(f"{where} must have an x of one shape; got a ragged list") from None


def _not_read(x: Sequence[Any], y: Sequence[Any]) -> str | None:
    """Describes a user's examples if their form is not read; else None."""
    if _is_text(x):
        if x[0].endswith(_IMAGES):
            return f"images by name ({x[0]!r}), as CelebA has"
        if not all(isinstance(target, str) for target in y):
            return f"texts with labels ({x[0]!r}, {y[0]!r})"
        return None
    first = x
    while isinstance(first, list) and first:
        first = first[0]
    if isinstance(first, str):
        source = "Reddit" if any(isinstance(target, dict) for target in y) else "Sent140"
        return f"words ({first!r}), as {source} has"
    return None


def _indices(text: str, where: str) -> np.ndarray:
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    indices = _OF_CODE[np.minimum(codes, len(_OF_CODE) - 1)]
    if (indices < 0).any():
        unknown = text[int(np.argmax(indices < 0))]
        raise ValueError(f"{where} must be in LEAF's {len(LETTERS)} letters; got {unknown!r}")
    return indices
