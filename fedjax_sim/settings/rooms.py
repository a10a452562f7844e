"""The rooms whose files declare themselves, and what each has, by the name that a setting gives."""

from functools import cache
from types import ModuleType
from typing import NamedTuple

from fedjax_sim import aggregation, algorithms, datasets, models, partition, sampling
from fedjax_sim.core.checks import check_known
from fedjax_sim.core.registry import Declaration, declared
from fedjax_sim.settings import user_files


class Room(NamedTuple):
    """A field of a setting, where what it may name is declared, and what a factory is given."""

    face: ModuleType
    parameters: tuple[str, ...]  # those that are no options of a factory


ROOMS = {
    "dataset": Room(datasets, ("key", "num_clients", "num_regions")),
    "partition": Room(partition, ("key", "num_examples", "labels", "num_clients", "ids")),
    "model": Room(models, ("input_shape", "num_classes", "outputs", "vocabulary", "length")),
    "mode": Room(aggregation, ("cohort", "client_weights", "all_client_weights")),
    "sampler": Room(sampling, ("m", "q")),
    "algorithm": Room(
        algorithms,
        ("loss_fn", "client_optimizer", "client_lr", "local", "server_optimizer", "server_lr"),
    ),
}
# What a user's own file may be, and the one room whose own may be a folder.
OWN_FILES, OWN_FOLDERS = ("algorithm", "model", "dataset"), ("dataset",)


@cache
def declarations(room: str) -> dict[str, Declaration]:
    """All that ship with the package, by name."""
    return declared(ROOMS[room].face)


@cache
def default_of(room: str) -> str:
    """The name that the room's setting has unless another is given.

    >>> default_of("sampler")
    'uniform'
    """
    return next(name for name, each in declarations(room).items() if each.is_default)


@cache
def names_taken(room: str) -> frozenset[str]:
    """The names of options of all rooms but this one."""
    return frozenset(
        option.name
        for other in ROOMS
        if other != room
        for declaration in declarations(other).values()
        for option in declaration.options
    )


def named(room: str, name: str, taken: frozenset[str]) -> Declaration:
    """What a setting names: a declaration of the package, a function of a user's file, a folder.

    Args:
      taken: names that no option of a user's file may have.

    Raises:
      ValueError: for what is none of them, or a file that does not hold it.
    """
    known = declarations(room)
    if name in known:
        return known[name]
    if room in OWN_FILES and user_files.is_reference(name):
        return user_files.declaration(room, name, ROOMS[room].parameters, taken | names_taken(room))
    if room in OWN_FOLDERS and user_files.is_path(name):
        return user_files.folder(name)
    own = f" or FILE.py:FUNCTION{' or a folder' if room in OWN_FOLDERS else ''}"
    own = own if room in OWN_FILES else ""
    if room == "dataset":
        check_known(name, known, room)
    raise ValueError(f"{room} must be one of {', '.join(known)}{own}; got {name!r}")
