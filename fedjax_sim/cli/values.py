"""Values from the command line and from files, as the fields of a setting have them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from fedjax_sim.core.checks import check_known as check_known
from fedjax_sim.settings.setting import FULL, NAMES, Setting

_FIELDS = {f.name: f for f in fields(Setting)}


def kinds(name: str) -> tuple[type, ...]:
    """The types that a field takes, None left out."""
    declared: Any = _FIELDS[name].type
    return tuple(t for t in get_args(declared) or (declared,) if t is not type(None))


def typed(name: str, value: Any) -> Any:
    """A value of a file, as the field has it: where numbers are asked for, 1 is 1.0.

    Raises:
      ValueError: for an unknown name, with the nearest one, and for a value of another type.
    """
    check_known(name, NAMES, "name")
    wanted = kinds(name)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if float in wanted and whole:
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        called = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        says = f"a whole number or {FULL}" if len(wanted) > 1 else called[wanted[0]]
        raise ValueError(f"{name} must be {says}; got {value!r}")
    return value


def parsed(name: str, text: str) -> Any:
    """A value of the command line, as the field has it.

    Raises:
      ValueError: as `typed`.
    """
    check_known(name, NAMES, "name")
    wanted = kinds(name)
    value: Any = text
    if name == "batch_size" and text == "inf":
        return FULL
    if wanted == (bool,):
        value = {"true": True, "false": False}.get(text.lower(), text)
    elif wanted != (str,):
        for number in (int, float):
            try:
                value = number(text)
            except ValueError:
                continue
            break
    return typed(name, value)


def setting(values: Mapping[str, Any]) -> Setting:
    """A setting of some values by name, each checked for its type."""
    return Setting(**{name: typed(name, value) for name, value in values.items()})
