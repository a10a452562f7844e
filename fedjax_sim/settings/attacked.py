"""A setting's attack: who makes it, and what it is made on; and the rule that stands against it."""

from typing import NamedTuple

import jax

from fedjax_sim.core.tasks import Attack
from fedjax_sim.core.types import AggregationRule, Array
from fedjax_sim.data import FederatedData, Source
from fedjax_sim.settings.malicious import client_ids
from fedjax_sim.settings.resolved import ResolvedSetting
from fedjax_sim.settings.splits import split
from fedjax_sim.transforms import attacks


class Attacked(NamedTuple):
    """What an experiment is given of an attack; under one on labels the data have other labels."""

    data: FederatedData | Source
    attack: Attack | None = None
    malicious: Array | None = None


def attacked(setting: ResolvedSetting, data: FederatedData | Source) -> Attacked:
    """The attack of a setting, by clients that its split's seed draws, or that it names.

    Raises:
      ValueError: for an attack on labels of data that have none, or that memory does not hold.
    """
    attack = setting.choices.attack
    if attack is None:
        return Attacked(data)
    ids = setting.extras.get("malicious_ids")
    if ids is None:
        key = jax.random.key(setting.partition_seed)
        malicious = attacks.draw_malicious(key, setting.clients, setting.extras["malicious"])
    else:
        malicious = attacks.malicious_of(client_ids(ids), setting.clients)
    if not attack.takes("data"):
        return Attacked(data, attack.call(setting.options), malicious)
    num_classes = split(setting.data).dataset.num_classes
    if num_classes is None:
        raise ValueError(f"attack {attack.name} needs labels; {setting.dataset} has none")
    return Attacked(attack.call({}, data=data, malicious=malicious, num_classes=num_classes))


def rule(setting: ResolvedSetting) -> AggregationRule:
    """The aggregation rule of a setting, with what is done to the updates before it."""
    mode, before = setting.choices.mode, setting.choices.before
    own_rule = mode.factory if mode.takes("cohort") else mode.call(setting.options)
    return own_rule if before is None else before.call(setting.options, rule=own_rule)
