"""The clock of a setting, and what its sampler makes of time: availability and a deadline."""

from collections.abc import Callable
from typing import Any

import jax

from fedjax_sim import sampling
from fedjax_sim.core.clock import Clock
from fedjax_sim.sampling import Sampler
from fedjax_sim.settings.resolved import ResolvedSetting


def clock(setting: ResolvedSetting) -> Clock | None:
    """How fast the clients are, of the partition's seed: one federation for all seeds of a run."""
    chosen = setting.choices.clock
    if chosen is None:
        return None
    key = jax.random.key(setting.partition_seed)
    own_clock: Clock = chosen.call(setting.options, key=key, num_clients=setting.clients)
    return own_clock


def timed(
    sampler: Sampler, setting: ResolvedSetting, problem: Callable[[ResolvedSetting], Any]
) -> Sampler:
    """The sampler among the clients that are available, with the deadline of the setting."""
    chosen = setting.choices.availability
    if chosen is not None:
        labels = {}
        if chosen.takes("labels"):
            labels["labels"] = sampling.traces.majority_labels(problem(setting).data)
        sampler = sampling.available(sampler, chosen.call(setting.options, **labels))
    seconds = setting.extras.get("deadline")
    if seconds is None:
        if "late" in setting.extras:
            raise ValueError("late belongs to a deadline; there is no deadline")
        return sampler
    return sampling.deadline(sampler, seconds, setting.extras.get("late", "drop"))
