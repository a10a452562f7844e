"""Which settings belong to which choices, so that one without its owner is refused."""

from collections.abc import Mapping
from typing import Any

from fedjax_sim.core.registry import Declaration
from fedjax_sim.settings.common import OF_OPTIONAL, SCHEDULES
from fedjax_sim.settings.options import COMMON, listed, vocabulary_of
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


def check_belongs(values: Mapping[str, Any], choices: Choices) -> None:
    """Refuses values that the choices do not take; the error names the choices that do."""
    own_names = {option.name for choice in choices.used for option in choice.options}
    vocabulary = vocabulary_of(values)
    schedule = values.get("schedule", "constant")
    _SCHEDULE.check(schedule)
    for name in values:
        vocabulary.check(name, "name")
        if name in vocabulary.owners and name not in own_names:
            room, owners = vocabulary.owners[name]
            chosen = choices.name_of(room)
        elif name in TAKEN_AS and not takes(choices, name):
            room, parameters = TAKEN_AS[name]
            several = declarations(room).values()
            owners = tuple(
                declaration.name
                for declaration in several
                if _is_taken(declaration, name, parameters)
            )
            chosen = choices.name_of(room)
        elif name in OF_SCHEDULES and schedule not in OF_SCHEDULES[name]:
            room, owners = "schedule", OF_SCHEDULES[name]
            chosen = schedule if takes(choices, "schedule") else "none"
        else:
            continue
        if len(owners) > _MOST_LISTED:
            choice = getattr(choices, room)
            options = [] if choice is None else [option.name for option in choice.options]
            own_words = f", which has {listed(tuple(options))}" if options else ""
            raise ValueError(
                f"{name} is not of {room} {chosen}{own_words}, but of {len(owners)} others"
            )
        of_now = f"the {room} is {chosen}" if chosen != NONE else f"there is no {room}"
        raise ValueError(f"{name} belongs to {room} {listed(owners)}; {of_now}")
