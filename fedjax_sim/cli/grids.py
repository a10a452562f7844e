"""The grid of a sweep: `--grid`, `--zip` and `--random`, and the tables of the same names."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from fedjax_sim import grid
from fedjax_sim.cli.values import parsed, typed
from fedjax_sim.core.checks import check_count
from fedjax_sim.grid import Grid
from fedjax_sim.settings.options import VOCABULARY, Vocabulary

TABLES = ("grid", "zip", "random")
_NO_AXES = {
    "seed": "seeds are no axis of a grid; give --seeds N",
    "dataset": "scores of different data sets cannot be compared; make a sweep of each",
    "validation": "it says by what the best is chosen, not what is trained",
    "per_client": "it says what is evaluated, not what is trained",
    "target": "it says what is reached, not what is trained",
    "rounds": "it is a column of the results; make a sweep of each",
    "cores": "it says where a sweep runs, not what is trained",
}


def from_options(
    axes: Sequence[str],
    zips: Sequence[Sequence[str]],
    random: Sequence[str],
    vocabulary: Vocabulary = VOCABULARY,
) -> dict[str, Any]:
    """The tables that options describe, as a TOML file has them; a table without axes is left out.

    Raises:
      ValueError: for what is not NAME=VALUE,VALUE, an unknown name, or a value it does not take.
    """
    tables: dict[str, Any] = {}
    if axes:
        tables["grid"] = dict(_axis("grid", text, vocabulary) for text in axes)
    if zips:
        tables["zip"] = [dict(_axis("zip", text, vocabulary) for text in zipped) for zipped in zips]
    if random:
        if not random[0].isdecimal():
            raise ValueError(f"random must begin with a number of configurations; got {random[0]}")
        table: dict[str, Any] = {"num": int(random[0])}
        for text in random[1:]:
            name, value = _named(text)
            table[name] = int(value) if name == "seed" and value.isdecimal() else value
        tables["random"] = table
    return tables


def checked(tables: Mapping[str, Any], vocabulary: Vocabulary = VOCABULARY) -> dict[str, Any]:
    """The tables with every value typed, to be written as they are.

    Raises:
      ValueError: for a value that is no table, an unknown axis, or a value that an axis refuses.
    """
    typed_tables: dict[str, Any] = {}
    if "grid" in tables:
        typed_tables["grid"] = _axes("grid", tables["grid"], vocabulary)
    if "zip" in tables:
        several = tables["zip"] if isinstance(tables["zip"], list) else [tables["zip"]]
        typed_tables["zip"] = [_axes("zip", zipped, vocabulary) for zipped in several]
        for zipped in typed_tables["zip"]:
            if len(zipped) < 2:
                raise ValueError(
                    f"zip must have two axes or more; got {', '.join(zipped) or 'none'} (all "
                    "combinations are a grid)"
                )
    if "random" in tables:
        table = _table("random", tables["random"])
        num, seed = table.get("num"), table.get("seed", 0)
        for name, value in (("num", num), ("seed", seed)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"random.{name} must be a whole number; got {value!r}")
        check_count("random.num", num)
        draws = {k: v for k, v in table.items() if k not in ("num", "seed")}
        if not draws:
            raise ValueError(
                "random must have an axis behind its number, as client_lr=loguniform(0.01,1)"
            )
        for name, text in draws.items():
            _draw(name, text, vocabulary)
        typed_tables["random"] = {"num": num, "seed": seed, **draws}
    return typed_tables


def build(tables: Mapping[str, Any], vocabulary: Vocabulary = VOCABULARY) -> Grid:
    """The grid of such tables: the product of all axes, or one configuration without any."""
    configurations = grid.product(**tables.get("grid", {}))
    for zipped in tables.get("zip", []):
        configurations = configurations * grid.zip(**zipped)
    if "random" in tables:
        table = dict(tables["random"])
        num, key = table.pop("num"), jax.random.key(table.pop("seed"))
        drawn = {name: _draw(name, text, vocabulary) for name, text in table.items()}
        configurations = configurations * grid.random(key, num, **drawn)
    return configurations


def names(tables: Mapping[str, Any]) -> set[str]:
    """The names of all axes in such tables, which may be malformed (they are checked later)."""
    several = [tables.get("grid"), tables.get("random")]
    zips = tables.get("zip", [])
    several += zips if isinstance(zips, list) else [zips]
    return {name for table in several if isinstance(table, Mapping) for name in table}


def _axis(table_name: str, text: str, vocabulary: Vocabulary) -> tuple[str, list[Any]]:
    name, values = _named(text)
    _check_axis(name, vocabulary)
    try:
        return name, [parsed(name, value, vocabulary) for value in values.split(",")]
    except ValueError as error:
        raise ValueError(f"{table_name}.{error}") from None


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise ValueError(f"an axis must be NAME=VALUE,VALUE,...; got {text!r}")
    return name.strip().replace("-", "_"), value.strip()


def _table(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a table; got {value!r}")
    return value


def _axes(table_name: str, table: Any, vocabulary: Vocabulary) -> dict[str, list[Any]]:
    axes = {}
    for name, values in _table(table_name, table).items():
        _check_axis(name, vocabulary)
        if not isinstance(values, list):
            raise ValueError(f"{table_name}.{name} must be a list of values; got {values!r}")
        try:
            axes[name] = [typed(name, value, vocabulary) for value in values]
        except ValueError as error:
            raise ValueError(f"{table_name}.{error}") from None
        if table_name == "grid" and len(set(values)) != len(values):
            raise ValueError(f"grid.{name} must have each value once; got {values}")
    return axes


def _check_axis(name: str, vocabulary: Vocabulary) -> None:
    if name in _NO_AXES:
        raise ValueError(f"{name} cannot be an axis: {_NO_AXES[name]}")
    vocabulary.check(name, "axis", [axis for axis in vocabulary.names if axis not in _NO_AXES])


def _draw(
    name: str, text: Any, vocabulary: Vocabulary
) -> grid.Uniform | grid.LogUniform | grid.Choice:
    """loguniform(0.001, 1), uniform(0, 1) or choice(1, 5)."""
    _check_axis(name, vocabulary)
    match = re.fullmatch(r"(\w+)\((.*)\)", text) if isinstance(text, str) else None
    if match and match[1] == "choice":
        return grid.choice(
            [parsed(name, value.strip(), vocabulary) for value in match[2].split(",")]
        )
    ends = match[2].split(",") if match else []
    if not match or match[1] not in ("uniform", "loguniform") or len(ends) != 2:
        raise ValueError(
            f"random.{name} must be uniform(LOW,HIGH), loguniform(LOW,HIGH) or "
            f"choice(VALUE,VALUE,...); got {text!r}"
        )
    if vocabulary.options[name].kind is not float:
        raise ValueError(f"random.{name} must be a choice(VALUE,VALUE,...); got {text!r}")
    low, high = (parsed(name, end.strip(), vocabulary) for end in ends)
    try:
        return grid.uniform(low, high) if match[1] == "uniform" else grid.log_uniform(low, high)
    except ValueError as error:
        raise ValueError(f"random.{name}: {error}") from error
