"""A user's own files, looked for among a command's words before its options are known.

They declare options of their own, so the parser can be made only once they are imported.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_sim.results.folder import CONFIGURATION
from fedjax_sim.settings.options import Vocabulary, vocabulary_of
from fedjax_sim.settings.rooms import OWN_FILES, OWN_FOLDERS
from fedjax_sim.settings.user_files import is_path, is_reference

_FLAGS = {**{f"--{room}": room for room in OWN_FILES}, "--data": "dataset"}


def vocabulary_in(words: Sequence[str]) -> Vocabulary:
    """The package's options and those of the files and folders that the words name.

    They stand behind an option, in an axis, or in a TOML file that a word names, which is CONFIG or
    what is to be resumed.

    Raises:
      ValueError: if a file or folder that is named cannot be read.
    """
    named = [pair for pair in _named(words) if _is_own(*pair)]
    return vocabulary_of({}, *dict.fromkeys(named))


def _is_own(room: str, name: Any) -> bool:
    if not isinstance(name, str):
        return False
    return is_reference(name) or (room in OWN_FOLDERS and is_path(name))


def _named(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(room, name) of every algorithm, model, data set, ... that the words name."""
    for place, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in _FLAGS:
            following = words[place + 1] if place + 1 < len(words) else ""
            yield _FLAGS[flag], value or following
        elif flag in OWN_FILES:
            yield from ((flag, name) for name in value.split(","))
        elif not word.startswith("-") and not is_reference(word):
            for path in (Path(word), Path(word) / CONFIGURATION):
                yield from _in_file(path)


def _in_file(path: Path) -> Iterator[tuple[str, Any]]:
    """The names in a TOML file; none if it cannot be read, which the command itself reports."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return
    zips = values.get("zip", [])
    axes = [values.get("grid", {}), *(zips if isinstance(zips, list) else [zips])]
    for room in OWN_FILES:
        yield room, values.get(room)
        for table in axes:
            several = table.get(room) if isinstance(table, Mapping) else None
            yield from ((room, name) for name in several or ())
