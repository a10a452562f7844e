"""Every name that a setting may have, its option, and which declarations it belongs to.

`VOCABULARY` is the package's; `vocabulary_of` adds the options of a user's own files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, NamedTuple

from fedjax_sim.core.checks import check_known
from fedjax_sim.core.registry import Declaration, Option
from fedjax_sim.settings.common import IN_ORDER
from fedjax_sim.settings.rooms import OWN_FILES, ROOMS, declarations, named

COMMON = tuple(option for option in IN_ORDER if isinstance(option, Option))
_OF_DATA = ("dataset", "partition", "partition_seed", "clients", "validation")
COMMON_NAMES = frozenset(option.name for option in COMMON)


class Owners(NamedTuple):
    """The declarations of a room that an option belongs to."""

    room: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.room} {listed(self.names)}"


class Vocabulary(NamedTuple):
    """All names, in the order of a file.

    Attributes:
      options: by name; options of one name that several of a room declare are merged.
      owners: by name, for options that only some settings have.
    """

    options: Mapping[str, Option]
    owners: Mapping[str, Owners]

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of a file."""
        return tuple(self.options)

    def of_room(self, *rooms: str) -> tuple[str, ...]:
        """The names of options that the rooms declare."""
        return tuple(name for name, owners in self.owners.items() if owners.room in rooms)

    @property
    def of_data(self) -> tuple[str, ...]:
        """Names of the options that the data and their split depend on."""
        names = {*_OF_DATA, *self.of_room("dataset", "partition")}
        return tuple(name for name in self.options if name in names)

    def check(self, name: str, kind: str, allowed: Iterable[str] | None = None) -> None:
        """Refuses an unknown name.

        Args:
          kind: the word for such a name in the error, as "axis".
          allowed: None for all names.

        Raises:
          ValueError: with the nearest name, and the declarations it belongs to.
        """
        allowed = self.names if allowed is None else tuple(allowed)
        if name in allowed:
            return  # at once: settings are resolved often, and the nearest name costs a millisecond
        near = get_close_matches(name.replace("-", "_"), allowed, 1)
        if near and near[0] in self.owners:
            raise ValueError(
                f"unknown {kind} {name!r}; did you mean {near[0]!r} (of {self.owners[near[0]]})?"
            )
        check_known(name, allowed, kind)


def choose(room: str, name: str) -> Declaration:
    """The declaration of a name: of the package, or of a user's own file or folder.

    Raises:
      ValueError: for an unknown name, or a file that has no such function.

    >>> choose("algorithm", "fedprox").options[0].name
    'mu'
    """
    return named(room, name, COMMON_NAMES)


def vocabulary_of(values: Mapping[str, Any], *further: tuple[str, str]) -> Vocabulary:
    """The package's names, and those of the user's own files that the values name.

    Args:
      further: (room, name) of others, as the values of a grid.

    Raises:
      ValueError: if a file cannot be read.
    """
    several = [(room, values[room]) for room in OWN_FILES if isinstance(values.get(room), str)]
    own_declarations: dict[str, list[Declaration]] = {}
    for room, name in dict.fromkeys([*several, *further]):
        if name not in declarations(room):
            own_declarations.setdefault(room, []).append(choose(room, name))
    return _vocabulary(own_declarations) if own_declarations else VOCABULARY


def listed(words: tuple[str, ...]) -> str:
    """Words as a sentence lists them.

    >>> listed(("a", "b", "c"))
    'a, b and c'
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _vocabulary(own_declarations: Mapping[str, list[Declaration]]) -> Vocabulary:
    options: dict[str, Option] = {}
    owners: dict[str, Owners] = {}
    for place in IN_ORDER:
        if isinstance(place, Option):
            options[place.name] = place
            continue
        (room,) = place
        declaring: dict[str, list[tuple[Declaration, Option]]] = {}
        for declaration in (*declarations(room).values(), *own_declarations.get(room, ())):
            for option in declaration.options:
                declaring.setdefault(option.name, []).append((declaration, option))
        # Options of one declaration come before shared ones, in the order that older versions wrote
        # to configuration.toml.
        for name, pairs in sorted(declaring.items(), key=lambda item: len(item[1]) > 1):
            if name in options:
                raise ValueError(f"option {name} of {pairs[0][0].name} has the name of another")
            options[name] = _merged(room, name, pairs)
            owners[name] = Owners(room, tuple(declaration.name for declaration, _ in pairs))
    return Vocabulary(options, owners)


def _merged(room: str, name: str, pairs: list[tuple[Declaration, Option]]) -> Option:
    """Merges the options of one name that several of a room declare, for the command line."""
    first = pairs[0][1]
    for declaration, option in pairs:
        if option.kind is not first.kind:
            raise ValueError(
                f"option {name} is {option.kind.__name__} of {declaration.name}, and "
                f"{first.kind.__name__} of {pairs[0][0].name}"
            )
    helps: dict[str, list[str]] = {}
    for declaration, option in pairs:
        default = "" if option.default is None else f"default: {option.default}"
        facts = "; ".join(filter(None, (option.allowed, default)))
        text = f"{option.help} ({facts})" if facts else option.help
        helps.setdefault(text, []).append(declaration.name)
    words = [f"of --{room} {listed(tuple(names))}: {help}" for help, names in helps.items()]
    return replace(first, help="; ".join(words), traced=all(option.traced for _, option in pairs))


VOCABULARY = _vocabulary({})
NAMES = VOCABULARY.names
TRACED = tuple(name for name, option in VOCABULARY.options.items() if option.traced)
assert {room for place in IN_ORDER if isinstance(place, tuple) for room in place} == {*ROOMS}
