"""A run as a user describes it, in plain values: options, lines of a file, axes of a grid."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fedjax_sim.settings.common import FULL as FULL
from fedjax_sim.settings.options import NAMES
from fedjax_sim.settings.resolve import resolve
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.settings.rooms import default_of


@dataclass(frozen=True)
class Setting:
    """The values that a user gave for one run; None stands for values that were not given.

    Attributes:
      options: values of options that an algorithm, a rule, a sampler, a split, a data set or a
        model declares, by their flat names.
    """

    dataset: str = default_of("dataset")
    partition: str | None = None
    partition_seed: int = 0
    model: str | None = None
    clients: int | None = None
    algorithm: str = default_of("algorithm")
    mode: str | None = None
    sampler: str | None = None
    fraction: float | None = None
    epochs: int | None = None
    batch_size: int | str | None = None
    client_lr: float | None = None
    client_momentum: float | None = None
    schedule: str | None = None
    decay_rounds: int | None = None
    decay_end: float | None = None
    decay_rate: float | None = None
    unlabelled: float | None = None
    server_optimizer: str | None = None
    server_lr: float | None = None
    before: str | None = None
    attack: str | None = None
    malicious: float | None = None
    malicious_ids: str | None = None
    compress: str | None = None
    error_feedback: bool | None = None
    downlink: str | None = None
    downlink_error_feedback: bool | None = None
    privacy: str | None = None
    delta: float | None = None
    epsilon: float | None = None
    clock: str | None = None
    deadline: float | None = None
    late: str | None = None
    availability: str | None = None
    asynchronous: str | None = None
    rounds: int = 100
    seed: int = 0
    evaluate_every: int = 1
    validation: float | None = None
    compute: str | None = None
    per_client: bool = False
    target: float | None = None
    execution: str = "automatic"
    cores: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Setting":
        """The setting of values by their flat names, as a file has them.

        >>> Setting.of({"algorithm": "fedprox", "mu": 0.1}).options
        {'mu': 0.1}
        """
        options = {name: value for name, value in values.items() if name not in _FIELDS}
        shared = {name: value for name, value in values.items() if name in _FIELDS}
        return cls(**shared, options=options)

    def values(self) -> dict[str, Any]:
        """The values that are not None, by their flat names, in the order of a file."""
        flat = {name: getattr(self, name) for name in _FIELDS} | dict(self.options)
        order = [*(name for name in NAMES if name in flat), *flat]
        return {name: flat[name] for name in dict.fromkeys(order) if flat[name] is not None}

    def identity(self) -> dict[str, Any]:
        """The values that identify it in a record: with the rule and the sampler that it has where
        nothing else asks for others, as records have had them from the first on.
        """
        return {room: default_of(room) for room in ("mode", "sampler")} | self.values()

    def but(self, **values: Any) -> "Setting":
        """The same setting with these values, by their flat names."""
        return Setting.of(self.values() | values)

    def resolved(self) -> ResolvedSetting:
        """The same setting, checked and with every default filled in.

        Raises:
          ValueError: naming the field, what was given and what is allowed.
        """
        return resolve(self.values())

    @property
    def score(self) -> str:
        """The evaluated metric that runs are compared by; higher is better."""
        return self.resolved().score


_FIELDS = tuple(f.name for f in fields(Setting) if f.name != "options")
