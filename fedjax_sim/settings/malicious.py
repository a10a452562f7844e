"""Which clients of a setting are malicious, checked before anything is loaded."""

import math
from collections.abc import Mapping
from typing import Any

from fedjax_sim.core.checks import is_concrete
from fedjax_sim.core.registry import Declaration
from fedjax_sim.transforms import attacks


def check_malicious(extras: Mapping[str, Any], clients: int) -> None:
    """Refuses an attack that nobody makes, or that clients make who are not there.

    Raises:
      ValueError: naming the setting and what is allowed.
    """
    if "attack" not in extras:
        return
    if ("malicious" in extras) == ("malicious_ids" in extras):
        raise ValueError(
            "malicious must be given, a share of the clients in (0, 1], or malicious_ids, as 3,7, "
            f"and not both, for attack {extras['attack']}"
        )
    if "malicious_ids" in extras:
        attacks.malicious_of(client_ids(extras["malicious_ids"]), clients)


def with_assumed(values: Mapping[str, Any], mode: Declaration, cohort: int) -> Mapping[str, Any]:
    """The values with a rule's `f`, the malicious clients of a round that it bears, if not given.

    It is then as many as an attack's share of the clients has in a cohort, and at least one.

    Args:
      cohort: clients in a round.

    >>> from fedjax_sim.settings.rooms import declarations
    >>> krum = declarations("mode")["krum"]
    >>> with_assumed({"attack": "alie", "malicious": 0.2}, krum, 20)["f"]
    4
    """
    share = values.get("malicious")
    if "f" in values or not mode.takes("f") or share is None or not is_concrete(share):
        return values
    # A half is rounded up, as where the malicious clients are drawn.
    return {**values, "f": max(1, math.floor(float(share) * cohort + 0.5))}


def client_ids(text: str) -> list[int]:
    """Ids of clients, separated by commas.

    Raises:
      ValueError: for what is no whole number.

    >>> client_ids("3, 7")
    [3, 7]
    """
    try:
        return [int(word) for word in str(text).split(",")]
    except ValueError:
        raise ValueError(
            f"malicious_ids must be whole numbers, separated by commas; got {text!r}"
        ) from None
