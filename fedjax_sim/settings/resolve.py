"""Resolves a setting: makes its choices, fills in defaults, and checks all values."""

from collections.abc import Mapping
from functools import partial
from inspect import Parameter
from typing import Any, NamedTuple

from fedjax_sim.core.checks import is_concrete
from fedjax_sim.core.registry import Declaration, SameAs
from fedjax_sim.core.types import LocalTraining
from fedjax_sim.datasets.types import Facts
from fedjax_sim.settings.asynchronous import check_asynchronous
from fedjax_sim.settings.belonging import OF_SCHEDULES, TAKEN_AS, check_belongs, takes
from fedjax_sim.settings.common import FULL, OF_OPTIONAL
from fedjax_sim.settings.malicious import check_malicious, with_assumed
from fedjax_sim.settings.options import COMMON, choose
from fedjax_sim.settings.private import check_all_can_come, with_noise
from fedjax_sim.settings.resolved import (
    Choices,
    ClientSteps,
    Decay,
    ResolvedSetting,
    ServerSteps,
    cohort_size,
)
from fedjax_sim.settings.rooms import NONE, OPTIONAL, declarations, default_of
from fedjax_sim.settings.schedules import first_without_training, share
from fedjax_sim.settings.strategies import strategy
from fedjax_sim.settings.user_data import facts_of

_SHARED = {option.name: option for option in COMMON}
_WITH_DEFAULT = ("dataset", "mode", "sampler", "algorithm")
_ADAPTIVE_LR = 0.01  # the server's default, where it is not plain SGD


class _Context(NamedTuple):
    """The values of a setting, and the choices and facts that its defaults depend on."""

    values: Mapping[str, Any]
    choices: Choices
    facts: Facts

    def value(self, name: str) -> Any:
        """The value of a shared setting: the user's, or else the default."""
        return self.values[name] if name in self.values else self._default(name)

    def _default(self, name: str) -> Any:
        """The algorithm's own default, or else the data set's, or else the common one."""
        own_default = self.choices.algorithm.defaults.get(name)
        if isinstance(own_default, SameAs):
            return self._default(own_default.name)
        if own_default is not None:
            return own_default
        of_data = {"client_lr": self.facts.client_lr, "fraction": self.facts.fraction}
        return of_data.get(name, _SHARED[name].default)


def resolve(values: Mapping[str, Any]) -> ResolvedSetting:
    """Resolves values by their flat names; None stands for values that were not given.

    Raises:
      ValueError: naming the value, what was given and what is allowed.
    """
    values, choices, facts = with_choices(values)
    check_belongs(values, choices)
    for option in COMMON:
        if option.name in values:
            option.check(values[option.name])
    values = _with_noise(_Context(values, choices, facts))
    values = with_assumed(values, choices.mode, _cohort(_Context(values, choices, facts)))
    options = _own_options(values, choices)
    check_all_can_come(options, choices.privacy, choices.availability)
    clients = values.get("clients", facts.clients)
    if choices.partition.takes("ids") and facts.fixed and clients != facts.clients:
        raise ValueError(
            f"clients must be the {facts.clients} that {values['dataset']} has; got {clients} (any "
            "number with partition iid)"
        )
    context = _Context(values, choices, facts)
    resolved = ResolvedSetting(
        dataset=choices.dataset.name,
        partition=choices.partition.name,
        partition_seed=values["partition_seed"],
        model=choices.model.name,
        clients=clients,
        algorithm=choices.algorithm.name,
        mode=choices.mode.name,
        sampler=choices.sampler.name,
        fraction=context.value("fraction") if takes(choices, "fraction") else 1.0,
        local=_local(context),
        client=_client_steps(context),
        unlabelled=context.value("unlabelled") if takes(choices, "unlabelled") else None,
        server=_server_steps(context),
        rounds=values["rounds"],
        seed=values["seed"],
        evaluate_every=values["evaluate_every"],
        validation=values.get("validation"),
        compute=values.get("compute"),
        per_client=values["per_client"],
        target=values.get("target"),
        execution=values["execution"],
        cores=values.get("cores"),
        extras=_extras(context),
        options=options,
        choices=choices,
        facts=facts,
    )
    _check_trains(resolved)
    check_asynchronous(resolved)
    lanes = strategy(resolved.execution).lanes
    if lanes is not None and lanes > resolved.slots:
        raise ValueError(
            f"execution {resolved.execution} needs a lane's client in every cohort; the smallest "
            f"has {resolved.slots}"
        )
    return resolved


def with_choices(values: Mapping[str, Any]) -> tuple[dict[str, Any], Choices, Facts]:
    """The values that are given and the common defaults, the choices of them, the data's facts."""
    values = {
        name: value
        for name, value in values.items()
        if value is not None and not (name in OPTIONAL and value == NONE)
    }
    with_default = (option for option in COMMON if option.default is not None)
    # Settings that only some choices take get their defaults below, if the choices take them.
    always = (option for option in with_default if option.name not in {*TAKEN_AS, *OF_SCHEDULES})
    values = {option.name: option.default for option in always} | values
    values = {room: default_of(room) for room in _WITH_DEFAULT} | _of_optional(values) | values
    return values, *_choices(values)


def _choices(values: Mapping[str, Any]) -> tuple[Choices, Facts]:
    """The declarations of the names, and the data set's facts, on which split and model depend."""
    dataset = choose("dataset", values["dataset"])
    facts = facts_of(dataset, values)
    split = choose("partition", values.get("partition", facts.partition))
    if split.takes("ids") and not facts.natural:
        facts_of_all = {
            name: declaration.facts for name, declaration in declarations("dataset").items()
        }
        natural = [name for name, its in facts_of_all.items() if its is not None and its.natural]
        raise ValueError(
            f"partition {split.name} needs a dataset with natural clients ({', '.join(natural)})"
        )
    if split.takes("labels") and not facts.has_labels:
        other_splits = [
            name
            for name, declaration in declarations("partition").items()
            if not declaration.takes("labels") and (facts.natural or not declaration.takes("ids"))
        ]
        raise ValueError(
            f"partition {split.name} splits by label, and {dataset.name} has none; use "
            f"{' or '.join([', '.join(other_splits[:-1]), other_splits[-1]])}"
        )
    model = _model(values.get("model", facts.model), dataset.name, facts)
    return Choices(
        dataset=dataset,
        partition=split,
        model=model,
        mode=choose("mode", values["mode"]),
        sampler=choose("sampler", values["sampler"]),
        algorithm=choose("algorithm", values["algorithm"]),
        **{room: choose(room, values[room]) for room in OPTIONAL if room in values},
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
    return choose("model", name)


def _of_optional(values: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of rule and sampler where an optional room asks for others, as privacy does."""
    defaults: dict[str, Any] = {}
    for room in OPTIONAL:
        if room in values:
            defaults |= choose(room, values[room]).defaults
    return defaults


def _cohort(context: _Context) -> int:
    """Clients in a round, on average."""
    clients = context.values.get("clients", context.facts.clients)
    if not takes(context.choices, "fraction"):
        return int(clients)
    return cohort_size(context.value("fraction"), clients)


def _with_noise(context: _Context) -> Mapping[str, Any]:
    """The values, with the noise multiplier where privacy is asked for by its epsilon."""
    values, choices, facts = context
    if choices.privacy is None:
        return values
    clients = values.get("clients", facts.clients)
    fraction = context.value("fraction")
    # Of a sampler that asks for the model's loss, which is not known here, the law alone is read.
    sampler = choices.sampler.call(
        values, m=cohort_size(fraction, clients), q=fraction, loss_fn=lambda *_: None
    )
    return with_noise(values, choices.privacy, sampler, context.value("delta"), clients)


def _own_options(values: Mapping[str, Any], choices: Choices) -> dict[str, Any]:
    """The values of the options that the choices declare, checked."""
    options: dict[str, Any] = {}
    for choice in choices.used:
        for option in choice.options:
            value = values.get(option.name, option.default)
            if value is not None:
                option.check(value)
                options[option.name] = value
            elif choice.parameters[option.argument].default is Parameter.empty:
                allowed = f" ({option.allowed})" if option.allowed else ""
                raise ValueError(
                    f"{option.name} must be given to {choice.name}: {option.help}{allowed}"
                )
        if choice.check is not None:
            choice.check(options)
    return options


def _extras(context: _Context) -> dict[str, Any]:
    """The optional rooms that are used, by name, and the settings that belong to each."""
    extras: dict[str, Any] = {}
    for room in OPTIONAL:
        if getattr(context.choices, room) is None:
            continue
        extras[room] = context.choices.name_of(room)
        for name in OF_OPTIONAL.get(room, ()):
            if takes(context.choices, name) and (value := context.value(name)) is not None:
                extras[name] = value
    check_malicious(extras, context.values.get("clients", context.facts.clients))
    return extras


def _local(context: _Context) -> LocalTraining | None:
    if not takes(context.choices, "epochs"):
        return None
    batch_size = context.value("batch_size")
    return LocalTraining(
        epochs=context.value("epochs"), batch_size=None if batch_size == FULL else batch_size
    )


def _client_steps(context: _Context) -> ClientSteps | None:
    if not takes(context.choices, "client_lr"):
        return None
    takes_momentum = takes(context.choices, "client_momentum")
    has_schedule = takes(context.choices, "schedule")
    return ClientSteps(
        lr=context.value("client_lr"),
        momentum=context.value("client_momentum") if takes_momentum else None,
        decay=_decay(context) if has_schedule else None,
        has_schedule=has_schedule,
    )


def _decay(context: _Context) -> Decay | None:
    schedule, rounds = context.value("schedule"), context.value("rounds")
    if schedule == "constant":
        return None
    span = {"exponential": 1, "step": max(1, rounds // 3)}.get(schedule, rounds)
    span = context.values.get("decay_rounds", span)
    if schedule in OF_SCHEDULES["decay_end"]:
        return Decay(schedule, span, end=context.value("decay_end"))
    factor = 0.1 if schedule == "step" else 0.99
    return Decay(schedule, span, rate=context.values.get("decay_rate", factor))


def _server_steps(context: _Context) -> ServerSteps | None:
    if not takes(context.choices, "server_lr"):
        return None
    if not takes(context.choices, "server_optimizer"):
        return ServerSteps(context.value("server_lr"), None)
    optimizer = context.value("server_optimizer")
    if optimizer == "sgd":
        return ServerSteps(context.value("server_lr"), optimizer)
    return ServerSteps(context.values.get("server_lr", _ADAPTIVE_LR), optimizer)


def _check_trains(resolved: ResolvedSetting) -> None:
    """Refuses a schedule that leaves rounds at rate 0, in which nobody trains."""
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
    if decay.schedule in OF_SCHEDULES["decay_end"]:
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
