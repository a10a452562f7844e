"""A resolved setting: every choice is made, every default filled in, every value checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedjax_sim.core.registry import Declaration
from fedjax_sim.core.types import Array, LocalTraining
from fedjax_sim.datasets.types import REGRESSION, Facts
from fedjax_sim.settings.common import FULL
from fedjax_sim.settings.rooms import NONE, OPTIONAL

Number = float | Array  # a sweep may trace it


class Decay(NamedTuple):
    """The schedule by which the clients' learning rate falls over rounds."""

    schedule: str
    rounds: int  # to the end of cosine and linear, for one factor of the others
    end: Number = 0.0  # the share that cosine and linear leave
    rate: float = 1.0  # the factor of exponential and step


class ClientSteps(NamedTuple):
    """The clients' optimizer: plain SGD, or an algorithm's own that takes a learning rate."""

    lr: Number
    momentum: Number | None  # None where the algorithm takes none
    decay: Decay | None  # None for a constant rate
    has_schedule: bool = True  # whether the algorithm takes one


class ServerSteps(NamedTuple):
    """The server's optimizer."""

    lr: Number
    optimizer: str | None  # None where the algorithm takes a learning rate alone


class DataChoice(NamedTuple):
    """The data and their split; `settings.build` and `settings.splits` cache them by this."""

    dataset: str
    partition: str
    partition_seed: int
    clients: int
    unlabelled: float | None
    validation: float | None
    options: tuple[tuple[str, Any], ...]


class Choices(NamedTuple):
    """The declarations that a setting's names stand for; None where an optional room is unused."""

    dataset: Declaration
    partition: Declaration
    model: Declaration
    mode: Declaration
    sampler: Declaration
    algorithm: Declaration
    before: Declaration | None = None
    attack: Declaration | None = None
    compress: Declaration | None = None
    downlink: Declaration | None = None
    privacy: Declaration | None = None
    clock: Declaration | None = None
    availability: Declaration | None = None
    asynchronous: Declaration | None = None

    @property
    def used(self) -> tuple[Declaration, ...]:
        """All that there are."""
        return tuple(choice for choice in self if choice is not None)

    def name_of(self, room: str) -> str:
        """The name in this room; "none" if it is not used."""
        choice = getattr(self, room)
        return NONE if choice is None else choice.name


@dataclass(frozen=True)
class ResolvedSetting:
    """The complete description of one run, made by `settings.resolve`.

    Attributes:
      fraction: 1 where the sampler takes none.
      local: None of an algorithm whose clients take no local steps.
      client: None of an algorithm whose clients have no learning rate.
      unlabelled: None of an algorithm whose server needs no examples.
      server: None of an algorithm whose server has no learning rate.
      extras: the optional rooms that are used, by name, and the settings that belong to them.
      options: those that the choices declare and that have a value, by name.
      validation, target, cores: None for no held-out part, no target and all cores.
      compute: the dtype that training computes in; None for the parameters' own.
      choices: the declarations that the names stand for.
      facts: of the data set.
    """

    dataset: str
    partition: str
    partition_seed: int
    model: str
    clients: int
    algorithm: str
    mode: str
    sampler: str
    fraction: float
    local: LocalTraining | None
    client: ClientSteps | None
    unlabelled: float | None
    server: ServerSteps | None
    rounds: int
    seed: int
    evaluate_every: int
    validation: float | None
    compute: str | None
    per_client: bool
    target: float | None
    execution: str
    cores: int | None
    extras: Mapping[str, Any]
    options: Mapping[str, Any]
    choices: Choices
    facts: Facts

    @property
    def slots(self) -> int:
        """m, the slots of a cohort."""
        if not self.choices.sampler.takes("m"):
            return self.clients
        return cohort_size(self.fraction, self.clients)

    @property
    def expected_cohort(self) -> float:
        """Clients in a round, on average."""
        is_drawn_each = self.choices.sampler.takes("q")
        return self.fraction * self.clients if is_drawn_each else self.slots

    @property
    def score(self) -> str:
        """The evaluated metric that runs are compared by; higher is better."""
        return self.test_score if self.validation is None else f"validation_{self.measure}"

    @property
    def test_score(self) -> str:
        """The same on the test set, which is the score unless there is a validation set."""
        return f"test_{self.measure}"

    @property
    def measure(self) -> str:
        """The metric's name without that of the set: accuracy or r2."""
        return "r2" if self.facts.kind == REGRESSION else "accuracy"

    @property
    def data(self) -> DataChoice:
        """The values that the data and their split depend on."""
        declared = (*self.choices.dataset.options, *self.choices.partition.options)
        options = tuple((o.name, self.options[o.name]) for o in declared if o.name in self.options)
        return DataChoice(
            self.dataset,
            self.partition,
            self.partition_seed,
            self.clients,
            self.unlabelled,
            self.validation,
            options,
        )

    def values(self) -> dict[str, Any]:
        """The values that are not None, by their flat names, in the order of a file."""
        values: dict[str, Any] = {"dataset": self.dataset}
        values |= self._own(self.choices.dataset)
        values["partition"] = self.partition
        values |= self._own(self.choices.partition)
        values |= {"partition_seed": self.partition_seed, "model": self.model}
        values |= self._own(self.choices.model)
        values |= {"clients": self.clients, "algorithm": self.algorithm, "mode": self.mode}
        values |= self._own(self.choices.mode)
        values["sampler"] = self.sampler
        values |= self._own(self.choices.sampler)
        if self.choices.sampler.takes("m", "q"):
            values["fraction"] = self.fraction
        if self.local is not None:
            batch_size = FULL if self.local.batch_size is None else self.local.batch_size
            values |= {"epochs": self.local.epochs, "batch_size": batch_size}
        if self.client is not None:
            values |= _of_client(self.client)
        values |= self._own(self.choices.algorithm)
        values["unlabelled"] = self.unlabelled
        if self.server is not None:
            values |= {"server_optimizer": self.server.optimizer, "server_lr": self.server.lr}
        for name, value in self.extras.items():
            values[name] = value
            if name in OPTIONAL:
                values |= self._own(getattr(self.choices, name))
        values |= {
            "rounds": self.rounds,
            "seed": self.seed,
            "evaluate_every": self.evaluate_every,
            "validation": self.validation,
            "compute": self.compute,
            "per_client": self.per_client,
            "target": self.target,
            "execution": self.execution,
            "cores": self.cores,
        }
        return {name: value for name, value in values.items() if value is not None}

    def values_without_target(self) -> dict[str, Any]:
        """The values that a resume must find the same: all but the target, which may change."""
        return {name: value for name, value in self.values().items() if name != "target"}

    def _own(self, choice: Declaration) -> dict[str, Any]:
        names = (option.name for option in choice.options)
        return {name: self.options[name] for name in names if name in self.options}


def cohort_size(fraction: float, num_clients: int) -> int:
    """m = max(1, round(C K)), McMahan et al. 2017; half is rounded up."""
    return max(1, int(fraction * num_clients + 0.5))


def _of_client(client: ClientSteps) -> dict[str, Any]:
    values: dict[str, Any] = {"client_lr": client.lr, "client_momentum": client.momentum}
    if not client.has_schedule:
        return values
    if client.decay is None:
        return {**values, "schedule": "constant"}
    decay = client.decay
    values |= {"schedule": decay.schedule, "decay_rounds": decay.rounds}
    if decay.schedule in ("cosine", "linear"):
        return {**values, "decay_end": decay.end}
    return {**values, "decay_rate": decay.rate}
