"""The rooms whose files declare themselves, and their declarations by name."""

from difflib import get_close_matches
from functools import cache
from types import ModuleType
from typing import NamedTuple

from fedjax_sim import aggregation, algorithms, clocks, datasets, models, partition, sampling
from fedjax_sim.core.checks import check_known
from fedjax_sim.core.registry import Declaration, declared, renamed
from fedjax_sim.settings import user_files
from fedjax_sim.transforms import asynchronous, attacks, compression, privacy


class Room(NamedTuple):
    """The package that a field of a setting names a part of, and what factories there are given.

    Attributes:
      face: the package, whose exports are read.
      parameters: parameters of its factories that are no options.
      optional: whether a setting may go without; its field is then None.
      prefix: of its options' names, where another room has the same face.
      takes_rule: whether its factories take a rule, where another room has the same face and theirs
        do not.
    """

    face: ModuleType
    parameters: tuple[str, ...] = ()
    optional: bool = False
    prefix: str = ""
    takes_rule: bool = False


ROOMS = {
    "dataset": Room(datasets, ("key", "num_clients", "num_regions")),
    "partition": Room(partition, ("key", "num_examples", "labels", "num_clients", "ids")),
    "model": Room(models, ("input_shape", "num_classes", "outputs", "vocabulary", "length")),
    "mode": Room(aggregation, ("cohort", "client_weights", "all_client_weights")),
    "sampler": Room(sampling, ("m", "q", "loss_fn")),
    "algorithm": Room(
        algorithms,
        (
            "loss_fn",
            "client_optimizer",
            "client_lr",
            "local",
            "server_optimizer",
            "server_lr",
            "unlabelled",
        ),
    ),
    "before": Room(aggregation, ("rule",), optional=True, takes_rule=True),
    "attack": Room(attacks, ("data", "malicious", "num_classes"), optional=True),
    "compress": Room(compression, optional=True),
    "downlink": Room(compression, optional=True, prefix="downlink"),
    "privacy": Room(privacy, ("algorithm", "expected_cohort"), optional=True),
    "clock": Room(clocks, ("key", "num_clients"), optional=True),
    "availability": Room(sampling.traces, ("labels",), optional=True),
    "asynchronous": Room(asynchronous, ("algorithm", "clock"), optional=True),
}
# The rooms that a setting may go without, in the order of a file; NONE says so in words.
OPTIONAL = tuple(name for name, room in ROOMS.items() if room.optional)
NONE = "none"
# Rooms for which a user may name a file of their own, and those for which a folder.
OWN_FILES, OWN_FOLDERS = ("algorithm", "model", "dataset"), ("dataset",)


@cache
def declarations(room: str) -> dict[str, Declaration]:
    """The declarations of a room that ship with the package, by name."""
    face, prefix = ROOMS[room].face, ROOMS[room].prefix
    own_declarations = {
        name: declaration
        for name, declaration in declared(face).items()
        if declaration.takes("rule") == ROOMS[room].takes_rule
    }
    if not prefix:
        return own_declarations
    return {
        name: renamed(declaration, prefix, frozenset(o.name for o in declaration.options))
        for name, declaration in own_declarations.items()
    }


@cache
def default_of(room: str) -> str:
    """The name of the room's default.

    >>> default_of("sampler")
    'uniform'
    """
    return next(name for name, declaration in declarations(room).items() if declaration.is_default)


@cache
def names_taken(room: str) -> frozenset[str]:
    """The names of options of all rooms but this one."""
    return frozenset(
        option.name
        for other_room in ROOMS
        if other_room != room
        for declaration in declarations(other_room).values()
        for option in declaration.options
    )


def named(room: str, name: str, taken: frozenset[str]) -> Declaration:
    """The declaration of a name: of the package, of a function in a user's file, or of a folder.

    Args:
      taken: names that no option of a user's file may have.

    Raises:
      ValueError: for an unknown name, or a file that has no such function.
    """
    shipped = declarations(room)
    if name in shipped:
        return shipped[name]
    if room in OWN_FILES and user_files.is_reference(name):
        return user_files.declaration(room, name, ROOMS[room].parameters, taken | names_taken(room))
    if room in OWN_FOLDERS and user_files.is_path(name):
        return user_files.folder(name)
    own_forms = f" or FILE.py:FUNCTION{' or a folder' if room in OWN_FOLDERS else ''}"
    own_forms = own_forms if room in OWN_FILES else ""
    own_forms = f" or {NONE}" if ROOMS[room].optional else own_forms
    if room == "dataset" and get_close_matches(name.replace("-", "_"), shipped, 1):
        check_known(name, shipped, room)
    raise ValueError(f"{room} must be one of {', '.join(shipped)}{own_forms}; got {name!r}")
