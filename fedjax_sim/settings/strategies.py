"""The strategy that a setting's `execution` names."""

from fedjax_sim import execution


def strategy(text: str) -> execution.Strategy:
    """The strategy that `execution` names.

    Raises:
      ValueError: for a name that is none.
    """
    name, _, lanes = text.partition(":")
    if name == "automatic" and not lanes:
        return execution.automatic()
    if name == "vmapped" and not lanes:
        return execution.vmapped()
    if name == "packed" and (not lanes or (lanes.isdecimal() and int(lanes) > 0)):
        return execution.packed(int(lanes) if lanes else None)
    raise ValueError(f"execution must be automatic, vmapped, packed or packed:LANES; got {text!r}")
