"""The strategy that a setting's `execution` names: NAME, or NAME:NUMBER for one with an option."""

from fedjax_sim import execution
from fedjax_sim.core.registry import Declaration, declared

# The default strategy comes first. One that needs a mesh has no name in a setting, because the
# command makes the mesh of its `--cores`.
_STRATEGIES: dict[str, Declaration] = {
    declaration.name: declaration
    for declaration in sorted(
        declared(execution).values(), key=lambda x: (not x.is_default, len(x.options), x.name)
    )
    if not declaration.takes("mesh")
}


def forms(default: str = "") -> str:
    """The forms that a name may have, as a sentence lists them.

    Args:
      default: what is put behind the default strategy's name.

    >>> forms(" (default)")
    'automatic (default), vmapped, packed or packed:LANES'
    """
    texts = []
    for name, declaration in _STRATEGIES.items():
        texts.append(name + (default if declaration.is_default else ""))
        texts += [f"{name}:{option.name.upper()}" for option in declaration.options]
    return " or ".join([", ".join(texts[:-1]), texts[-1]])


def default_strategy() -> str:
    """The name of the default strategy."""
    return next(iter(_STRATEGIES))


def strategy(text: str) -> execution.Strategy:
    """The strategy that `execution` names.

    Raises:
      ValueError: for an unknown name, or a number that the strategy does not take.

    >>> strategy("packed:4").lanes
    4
    """
    name, colon, number = text.partition(":")
    declaration = _STRATEGIES.get(name)
    if declaration is not None and not colon:
        return declaration.call({})
    if declaration is not None and declaration.options and number.isdecimal() and int(number) > 0:
        (option,) = declaration.options
        return declaration.call({option.name: int(number)})
    raise ValueError(f"execution must be {forms()}; got {text!r}")
