"""From what was said of a run to all that it is: choices, defaults, checks."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from fedjax_sim.core.checks import is_concrete
from fedjax_sim.core.registry import Declaration, Option, SameAs
from fedjax_sim.core.types import LocalTraining
from fedjax_sim.datasets.types import Facts
from fedjax_sim.settings.common import FULL, SCHEDULES
from fedjax_sim.settings.options import COMMON, COMMON_NAMES, listed, vocabulary_of
from fedjax_sim.settings.resolved import (
    Choices,
    ClientSteps,
    Decay,
    ResolvedSetting,
    ServerSteps,
)
from fedjax_sim.settings.rooms import declarations, default_of, named
from fedjax_sim.settings.schedules import first_without_training, share
from fedjax_sim.settings.strategies import strategy
from fedjax_sim.settings.user_data import facts_of

_SHARED = {option.name: option for option in COMMON}
# A setting that all share is of those algorithms and samplers that take one of these parameters.
_TAKEN_AS = {
    "fraction": ("sampler", ("m", "q")),
    "epochs": ("algorithm", ("local",)),
    "batch_size": ("algorithm", ("local",)),
    "client_lr": ("algorithm", ("client_optimizer", "client_lr")),
    "client_momentum": ("algorithm", ("client_optimizer",)),
    "schedule": ("algorithm", ("client_optimizer", "client_lr")),
    "server_optimizer": ("algorithm", ("server_optimizer",)),
    "server_lr": ("algorithm", ("server_optimizer", "server_lr")),
}
_OF_SCHEDULES = {
    "decay_rounds": SCHEDULES[1:],
    "decay_end": ("cosine", "linear"),
    "decay_rate": ("exponential", "step"),
}
_WITH_DEFAULT = ("dataset", "mode", "sampler", "algorithm")
_ADAPTIVE_LR = 0.01  # of the server, where it is not plain SGD


def resolve(values: Mapping[str, Any]) -> ResolvedSetting:
    """The setting of values by their flat names; None is no value.

    Raises:
      ValueError: naming the value, what was given and what is allowed.
    """
    said = {name: value for name, value in values.items() if value is not None}
    owed = (option for option in COMMON if option.default is not None)
    # Those that not all have get their default where they are taken.
    always = (option for option in owed if option.name not in {*_TAKEN_AS, *_OF_SCHEDULES})
    said = {option.name: option.default for option in always} | said
    said = {room: default_of(room) for room in _WITH_DEFAULT} | said
    choices, facts = _choices(said)
    _check_belongs(said, choices)
    for option in COMMON:
        if option.name in said:
            option.check(said[option.name])
    options = _own_options(said, choices)
    clients = said.get("clients", facts.clients)
    if choices.partition.takes("ids") and facts.fixed and clients != facts.clients:
        raise ValueError(
            f"clients must be the {facts.clients} that {said['dataset']} has; got {clients} (any "
            "number with partition iid)"
        )
    resolved = ResolvedSetting(
        dataset=choices.dataset.name,
        partition=choices.partition.name,
        partition_seed=said["partition_seed"],
        model=choices.model.name,
        clients=clients,
        algorithm=choices.algorithm.name,
        mode=choices.mode.name,
        sampler=choices.sampler.name,
        fraction=said.get("fraction", facts.fraction) if _takes(choices, "fraction") else 1.0,
        local=_local(said, choices),
        client=_client_steps(said, choices, facts),
        server=_server_steps(said, choices, facts),
        rounds=said["rounds"],
        seed=said["seed"],
        evaluate_every=said["evaluate_every"],
        validation=said.get("validation"),
        per_client=said["per_client"],
        target=said.get("target"),
        execution=said["execution"],
        cores=said.get("cores"),
        options=options,
        choices=choices,
        facts=facts,
    )
    _check_trains(resolved)
    lanes = strategy(resolved.execution).lanes
    if lanes is not None and lanes > resolved.slots:
        raise ValueError(
            f"execution {resolved.execution} needs a lane's client in every cohort; the smallest "
            f"has {resolved.slots}"
        )
    return resolved


def _choices(said: Mapping[str, Any]) -> tuple[Choices, Facts]:
    """What is named, and the facts of the data set, on which split and model depend."""

    def choose(room: str, name: str) -> Declaration:
        return named(room, name, COMMON_NAMES)

    dataset = choose("dataset", said["dataset"])
    facts = facts_of(dataset, said)
    split = choose("partition", said.get("partition", facts.partition))
    if split.takes("ids") and not facts.natural:
        natural = [
            name for name, one in declarations("dataset").items() if one.facts and one.facts.natural
        ]
        raise ValueError(
            f"partition {split.name} needs a dataset with natural clients ({', '.join(natural)})"
        )
    if split.takes("labels") and not facts.has_labels:
        others = [
            name
            for name, other in declarations("partition").items()
            if not other.takes("labels") and (facts.natural or not other.takes("ids"))
        ]
        raise ValueError(
            f"partition {split.name} splits by label, and {dataset.name} has none; use "
            f"{' or '.join([', '.join(others[:-1]), others[-1]])}"
        )
    model = _model(said.get("model", facts.model), dataset.name, facts)
    return Choices(
        dataset=dataset,
        partition=split,
        model=model,
        mode=choose("mode", said["mode"]),
        sampler=choose("sampler", said["sampler"]),
        algorithm=choose("algorithm", said["algorithm"]),
    ), facts


def _model(name: str, dataset: str, facts: Facts) -> Declaration:
    fitting = [
        model
        for model, declaration in declarations("model").items()
        if facts.kind in declaration.facts.takes
    ]
    if name not in fitting and not name.endswith(".py") and ".py:" not in name:
        ordered = dict.fromkeys([facts.model, *fitting])
        raise ValueError(
            f"model (of {dataset}) must be one of {', '.join(ordered)} or FILE.py:FUNCTION; got "
            f"{name!r}"
        )
    return named("model", name, COMMON_NAMES)


def _takes(choices: Choices, name: str) -> bool:
    """Whether a setting that not all have is one of these choices'."""
    room, parameters = _TAKEN_AS[name]
    return _is_taken(getattr(choices, room), name, parameters)


def _is_taken(choice: Declaration, name: str, parameters: tuple[str, ...]) -> bool:
    return choice.takes(*parameters) and name not in choice.without


def _check_belongs(said: Mapping[str, Any], choices: Choices) -> None:
    """Refuses what is of another choice than the one made: whose it is."""
    own = {option.name for choice in choices for option in choice.options}
    vocabulary = vocabulary_of(said)
    schedule = said.get("schedule", "constant")
    _SHARED["schedule"].check(schedule)
    for name in said:
        vocabulary.check(name, "name")
        if name in vocabulary.owners and name not in own:
            room, owners = vocabulary.owners[name]
            chosen = getattr(choices, room).name
        elif name in _TAKEN_AS and not _takes(choices, name):
            room, parameters = _TAKEN_AS[name]
            several = declarations(room).values()
            owners = tuple(one.name for one in several if _is_taken(one, name, parameters))
            chosen = getattr(choices, room).name
        elif name in _OF_SCHEDULES and schedule not in _OF_SCHEDULES[name]:
            room, owners = "schedule", _OF_SCHEDULES[name]
            chosen = schedule if _takes(choices, "schedule") else "none"
        else:
            continue
        raise ValueError(f"{name} belongs to {room} {listed(owners)}; the {room} is {chosen}")


def _own_options(said: Mapping[str, Any], choices: Choices) -> dict[str, Any]:
    """The values of what the choices declare, checked."""
    options: dict[str, Any] = {}
    for choice in choices:
        for option in choice.options:
            value = said.get(option.name, option.default)
            if value is not None:
                option.check(value)
                options[option.name] = value
        if choice.check is not None:
            choice.check(options)
    return options


def _default(option: Option, choices: Choices, facts: Facts) -> Any:
    """Of a setting that all share: the algorithm's own, the data set's, or the common one."""
    default = choices.algorithm.defaults.get(option.name)
    if isinstance(default, SameAs):
        return _default(_SHARED[default.name], choices, facts)
    if default is not None:
        return default
    return facts.client_lr if option.name == "client_lr" else option.default


def _local(said: Mapping[str, Any], choices: Choices) -> LocalTraining | None:
    if not _takes(choices, "epochs"):
        return None
    defaults = choices.algorithm.defaults
    epochs, batch_size = (
        said.get(name, defaults.get(name, _SHARED[name].default))
        for name in ("epochs", "batch_size")
    )
    return LocalTraining(epochs=epochs, batch_size=None if batch_size == FULL else batch_size)


def _client_steps(said: Mapping[str, Any], choices: Choices, facts: Facts) -> ClientSteps | None:
    if not _takes(choices, "client_lr"):
        return None

    def value(name: str) -> Any:
        return said.get(name, _default(_SHARED[name], choices, facts))

    has_schedule = _takes(choices, "schedule")
    return ClientSteps(
        lr=value("client_lr"),
        momentum=value("client_momentum") if _takes(choices, "client_momentum") else None,
        decay=_decay(said, value("schedule")) if has_schedule else None,
        has_schedule=has_schedule,
    )


def _decay(said: Mapping[str, Any], schedule: str) -> Decay | None:
    if schedule == "constant":
        return None
    third = max(1, said["rounds"] // 3)
    span = {"exponential": 1, "step": third}.get(schedule, said["rounds"])
    rounds = said.get("decay_rounds", span)
    if schedule in _OF_SCHEDULES["decay_end"]:
        return Decay(schedule, rounds, end=said.get("decay_end", 0.0))
    return Decay(schedule, rounds, rate=said.get("decay_rate", 0.1 if schedule == "step" else 0.99))


def _server_steps(said: Mapping[str, Any], choices: Choices, facts: Facts) -> ServerSteps | None:
    if not _takes(choices, "server_lr"):
        return None
    optimizer = None
    default = _default(_SHARED["server_lr"], choices, facts)
    if _takes(choices, "server_optimizer"):
        optimizer = said.get(
            "server_optimizer", _default(_SHARED["server_optimizer"], choices, facts)
        )
        default = default if optimizer == "sgd" else _ADAPTIVE_LR
    return ServerSteps(said.get("server_lr", default), optimizer)


def _check_trains(resolved: ResolvedSetting) -> None:
    """Refuses a schedule that leaves whole rounds at rate 0, in which nobody trains."""
    client = resolved.client
    if client is None or client.decay is None:
        return
    decay = client.decay
    if not all(map(is_concrete, (client.lr, decay.end, decay.rate))):
        return
    rate, end, rounds = float(client.lr), float(decay.end), resolved.rounds
    at = partial(share, decay.schedule, span=decay.rounds, end=end, factor=decay.rate)
    first = first_without_training(lambda round: rate * at(round), rounds)
    if first is None:
        return
    if decay.schedule in _OF_SCHEDULES["decay_end"]:
        raise ValueError(
            f"decay_rounds must be at least the {rounds} rounds where decay_end is {end:g}: "
            f"{decay.schedule} leaves a rate of 0 from round {first} on, and nobody trains; got "
            f"{decay.rounds} (a positive decay_end trains on)"
        )
    raise ValueError(
        f"decay_rate must leave a rate that float32 can tell from 0 in all {rounds} rounds, and "
        f"{decay.schedule} leaves none from round {first} on; got {decay.rate:g} with decay_rounds "
        f"{decay.rounds}"
    )
