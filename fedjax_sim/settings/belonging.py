"""Which settings belong to which choices, so that one without its owner is refused."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_sim.core.registry import Declaration
from fedjax_sim.settings.common import OF_OPTIONAL, SCHEDULES
from fedjax_sim.settings.options import COMMON, Owners, Vocabulary, listed, vocabulary_of
from fedjax_sim.settings.resolved import Choices
from fedjax_sim.settings.rooms import NONE, declarations

# A shared setting -> the room and the parameters: it applies to those that take one of these, and
# if no parameters are named to all of the room.
TAKEN_AS = {
    "fraction": ("sampler", ("m", "q")),
    "epochs": ("algorithm", ("local",)),
    "batch_size": ("algorithm", ("local",)),
    "client_lr": ("algorithm", ("client_optimizer", "client_lr")),
    "client_momentum": ("algorithm", ("client_optimizer",)),
    "schedule": ("algorithm", ("client_optimizer", "client_lr")),
    "unlabelled": ("algorithm", ("unlabelled",)),
    "server_optimizer": ("algorithm", ("server_optimizer",)),
    "server_lr": ("algorithm", ("server_optimizer", "server_lr")),
    **{name: (room, ()) for room, names in OF_OPTIONAL.items() for name in names},
}
OF_SCHEDULES = {
    "decay_rounds": SCHEDULES[1:],
    "decay_end": ("cosine", "linear"),
    "decay_rate": ("exponential", "step"),
}
(_SCHEDULE,) = (option for option in COMMON if option.name == "schedule")


def takes(choices: Choices, name: str) -> bool:
    """Whether these choices take a shared setting."""
    room, parameters = TAKEN_AS[name]
    return _is_taken(getattr(choices, room), name, parameters)


def _is_taken(choice: Declaration | None, name: str, parameters: tuple[str, ...]) -> bool:
    if choice is None:
        return False
    return (not parameters or choice.takes(*parameters)) and name not in choice.without


_MOST_LISTED = 6  # names in a message; a longer list says less than the one that is wrong


class Misplaced(NamedTuple):
    """Whose a value is that the choices do not take."""

    owners: Owners
    chosen: str  # the name in the owners' room, or none
    options: tuple[str, ...]  # those that what was chosen has in its place


def misplaced(
    values: Mapping[str, Any], choices: Choices, vocabulary: Vocabulary | None = None
) -> dict[str, Misplaced]:
    """The values that the choices do not take, by name.

    Args:
      vocabulary: None for that of the values.

    Raises:
      ValueError: for an unknown name or schedule.
    """
    vocabulary = vocabulary_of(values) if vocabulary is None else vocabulary
    own_names = {option.name for choice in choices.used for option in choice.options}
    schedule = values.get("schedule", "constant")
    _SCHEDULE.check(schedule)
    of_others: dict[str, Misplaced] = {}
    for name in values:
        vocabulary.check(name, "name")
        if name in vocabulary.owners and name not in own_names:
            owners = vocabulary.owners[name]
            chosen = choices.name_of(owners.room)
        elif name in TAKEN_AS and not takes(choices, name):
            room, parameters = TAKEN_AS[name]
            several = declarations(room).values()
            taking = (x.name for x in several if _is_taken(x, name, parameters))
            owners, chosen = Owners(room, tuple(taking)), choices.name_of(room)
        elif name in OF_SCHEDULES:
            in_use = schedule if takes(choices, "schedule") else NONE
            if in_use in OF_SCHEDULES[name]:
                continue
            owners, chosen = Owners("schedule", OF_SCHEDULES[name]), in_use
        else:
            continue
        choice = getattr(choices, owners.room, None)
        options = () if choice is None else tuple(option.name for option in choice.options)
        of_others[name] = Misplaced(owners, chosen, options)
    return of_others


def check_belongs(values: Mapping[str, Any], choices: Choices) -> None:
    """Refuses values that the choices do not take; the error names the choices that do."""
    for name, its in misplaced(values, choices).items():
        raise ValueError(refusal(name, [its]))


def refusal(name: str, of_each: Sequence[Misplaced]) -> str:
    """What a user is told of a value that no configuration takes.

    Args:
      of_each: whose it is, in each configuration.
    """
    room, owners = of_each[0].owners
    several = tuple(dict.fromkeys(its.chosen for its in of_each))
    if len(owners) > _MOST_LISTED:
        options = of_each[0].options if len(several) == 1 else ()
        own_words = f", which has {listed(options)}" if options else ""
        return f"{name} is not of {room} {listed(several)}{own_words}, but of {len(owners)} others"
    of_now = f"there is no {room}" if several == (NONE,) else f"the {room} is {listed(several)}"
    return f"{name} belongs to {of_each[0].owners}; {of_now}"
