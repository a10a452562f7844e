"""configuration.toml: read, and written such that it can be read again."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedjax_sim.core.files import replace_file
from fedjax_sim.host.manifest import MORE_ROUNDS, differences
from fedjax_sim.results.folder import CONFIGURATION


def read(path: Path) -> dict[str, Any]:
    """A TOML file's values.

    Raises:
      ValueError: if it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # of TOML, or of UTF-8
        raise ValueError(f"{path} is not a TOML file: {error}") from error


def write(folder: Path, values: Mapping[str, Any]) -> None:
    """Writes configuration.toml, whole or not at all, unless it is there already."""
    text = toml(values).encode()
    if not (folder / CONFIGURATION).exists() or (folder / CONFIGURATION).read_bytes() != text:
        replace_file(folder / CONFIGURATION, lambda file: file.write(text))


def check_same(
    folder: Path,
    values: Mapping[str, Any],
    beside: Sequence[str] = (),
) -> None:
    """Refuses to resume with other values than the folder's configuration.toml, if it has one.

    Args:
      beside: names that are not compared.

    Raises:
      ValueError: saying what differs.
    """
    if (folder / CONFIGURATION).exists():
        saved, values_now = read(folder / CONFIGURATION), tomllib.loads(toml(values))
        for name in beside:
            saved.pop(name, None)
            values_now.pop(name, None)
        differs = differences(saved, values_now)
        if differs:
            hint = saved.get("rounds") != values_now.get("rounds") and "; " + MORE_ROUNDS
            raise ValueError(f"--out {folder} cannot be resumed: {differs}{hint or ''}")


@contextmanager
def written(folder: Path, values: Mapping[str, Any]) -> Iterator[None]:
    """Writes configuration.toml, and puts back what was there if the block raises ValueError.

    Raises:
      ValueError: the block's own.
    """
    path = folder / CONFIGURATION
    previous = path.read_bytes() if path.exists() else None
    write(folder, values)
    try:
        yield
    except ValueError:
        if previous is not None:
            replace_file(path, lambda file: file.write(previous))
        raise


def toml(values: Mapping[str, Any]) -> str:
    """TOML of scalars, lists of scalars, tables and lists of tables, too little for a dependency.

    >>> print(toml({"rounds": 5, "grid": {"client_lr": [0.1, 1.0]}}), end="")
    rounds = 5
    <BLANKLINE>
    [grid]
    client_lr = [0.1, 1.0]
    """

    def text(value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(text, value))}]"
        # JSON's strings and booleans are TOML's; a float keeps all its digits, and its point.
        is_json = isinstance(value, (str, bool))
        return json.dumps(value, ensure_ascii=False) if is_json else repr(value)

    lines, tables = [], []
    for name, value in values.items():
        several = value if isinstance(value, (list, tuple)) else [value]
        if several and all(isinstance(table, Mapping) for table in several):
            heading = f"[[{name}]]" if several is value else f"[{name}]"
            for table in several:
                tables += ["", heading, *(f"{k} = {text(v)}" for k, v in table.items())]
        else:
            lines.append(f"{name} = {text(value)}")
    return "\n".join([*lines, *tables]) + "\n"
