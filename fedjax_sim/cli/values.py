"""Values from the command line and from files, as a setting has them."""

from collections.abc import Mapping
from typing import Any

from fedjax_sim.core.registry import Option
from fedjax_sim.settings.options import VOCABULARY, Vocabulary
from fedjax_sim.settings.setting import Setting

_CALLED = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
# The papers' words for a value -> ours.
_SYNONYMS = {"batch_size": {"inf": "full"}}


def typed(name: str, value: Any, vocabulary: Vocabulary = VOCABULARY) -> Any:
    """A file's value in the option's type: 1 becomes 1.0 where a float is asked for.

    Raises:
      ValueError: for an unknown name, with the nearest one, and for a value of another type.
    """
    vocabulary.check(name, "name")
    option = vocabulary.options[name]
    is_bool = isinstance(value, bool)
    if isinstance(value, str) and value in option.words:
        return value
    if option.kind is float and isinstance(value, int) and not is_bool:
        return float(value)
    if not isinstance(value, option.kind) or (is_bool and option.kind is not bool):
        raise ValueError(f"{name} must be {_says(option)}; got {value!r}")
    return value


def _says(option: Option) -> str:
    return " or ".join([_CALLED[option.kind], *option.words])


def parsed(name: str, text: str, vocabulary: Vocabulary = VOCABULARY) -> Any:
    """A text of the command line in the option's type.

    Raises:
      ValueError: as `typed`.
    """
    vocabulary.check(name, "name")
    kind = vocabulary.options[name].kind
    value: Any = _SYNONYMS.get(name, {}).get(text, text)
    if kind is bool:
        value = {"true": True, "false": False}.get(text.lower(), text)
    elif kind is not str:
        for number in (int, float):
            try:
                value = number(text)
            except ValueError:
                continue
            break
    return typed(name, value, vocabulary)


def setting(values: Mapping[str, Any], vocabulary: Vocabulary = VOCABULARY) -> Setting:
    """A setting of some values by name, each checked for its type."""
    return Setting.of({name: typed(name, value, vocabulary) for name, value in values.items()})
