"""The configurations of a grid: each has its own values, and of the shared ones those it takes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from fedjax_sim.settings.belonging import Misplaced, misplaced, refusal
from fedjax_sim.settings.options import Vocabulary
from fedjax_sim.settings.resolve import resolve, with_choices
from fedjax_sim.settings.resolved import ResolvedSetting


def resolved_one(
    shared: Mapping[str, Any], own: Mapping[str, Any], vocabulary: Vocabulary | None = None
) -> ResolvedSetting:
    """Resolves one configuration; a shared value that its choices do not take is left out.

    Args:
      shared: values by their flat names, of all configurations.
      own: those of this one, which replace shared ones, and which may be traced as in `resolve`.
      vocabulary: None for that of the values.

    Raises:
      ValueError: as `resolve`, and for a value of its own that its choices do not take.

    >>> [
    ...     resolved_one({"mu": 0.1}, {"algorithm": name}).options.get("mu")
    ...     for name in ("fedprox", "fedavg")
    ... ]
    [0.1, None]
    """
    return _resolved(shared, own, _of_others(shared, own, vocabulary))


def resolved_each(
    shared: Mapping[str, Any],
    several: Iterable[Mapping[str, Any]],
    vocabulary: Vocabulary | None = None,
) -> tuple[ResolvedSetting, ...]:
    """Resolves all configurations, as `resolved_one` does.

    Args:
      several: the values of each one.

    Raises:
      ValueError: as `resolved_one`, and for a shared value that no configuration takes.

    >>> resolved_each({"mu": 0.1}, [{"algorithm": "fedavg"}, {"algorithm": "fedsgd"}])
    Traceback (most recent call last):
    ValueError: mu belongs to ...; the algorithm is fedavg and fedsgd
    """
    several = tuple(several)
    of_others = [_of_others(shared, own, vocabulary) for own in several]
    for name in shared:
        if all(name in its for its in of_others) and not any(name in own for own in several):
            raise ValueError(refusal(name, [its[name] for its in of_others]))
    return tuple(_resolved(shared, own, its) for own, its in zip(several, of_others, strict=True))


def in_common(settings: Sequence[ResolvedSetting], without: Collection[str]) -> dict[str, Any]:
    """The values that all of these have, and have the same, but for those of some names."""
    first, *others = [setting.values() for setting in settings]
    return {
        name: value
        for name, value in first.items()
        if name not in without and all(values.get(name) == value for values in others)
    }


def _of_others(
    shared: Mapping[str, Any], own: Mapping[str, Any], vocabulary: Vocabulary | None
) -> dict[str, Misplaced]:
    """The values that the choices of a configuration do not take."""
    values, choices, _ = with_choices({**shared, **own})
    return misplaced(values, choices, vocabulary)


def _resolved(
    shared: Mapping[str, Any], own: Mapping[str, Any], of_others: Mapping[str, Misplaced]
) -> ResolvedSetting:
    taken = {name: value for name, value in shared.items() if name not in of_others}
    return resolve({**taken, **own})
