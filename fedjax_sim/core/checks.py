"""Refusing arguments out of range, before anything compiles."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def is_concrete(x: Any) -> bool:
    """Has x a value now, or is it being traced?"""
    return not isinstance(x, jax.core.Tracer)


def has_values(x: Any) -> bool:
    """Is x an array with values now, and neither traced nor a shape alone?"""
    return isinstance(x, (np.ndarray, jax.Array)) and is_concrete(x)


def check_same_spec(name: str, of: str, before: Any, after: Any) -> None:
    """Refuses a pytree that differs from another in structure, shape or dtype.

    Raises:
      ValueError: naming the argument, and what it makes of what.
    """
    specs = [
        [f"{jnp.result_type(x)}{list(jnp.shape(x))}" for x in jax.tree.leaves(tree)]
        for tree in (before, after)
    ]
    structures: list[Any] = [jax.tree.structure(tree) for tree in (before, after)]
    if structures[0] != structures[1] or specs[0] != specs[1]:
        raise ValueError(
            f"{name} must keep the structure, shapes and dtypes of {of}; it makes "
            f"{', '.join(specs[1])} in {structures[1]} of {', '.join(specs[0])} in {structures[0]}"
        )


def check_known(name: str, known: Iterable[str], what: str) -> None:
    """Refuses a name that is not known.

    Raises:
      ValueError: with the nearest one that is.
    """
    known = list(known)
    if name not in known:
        asked = name.replace("-", "_")
        near = get_close_matches(asked, known, 1)
        # One's own word for what is more than one: lr of client_lr and server_lr.
        near = near or [one for one in known if one.endswith(f"_{asked}")]
        says = (
            f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else f"known are {', '.join(known)}"
        )
        raise ValueError(f"unknown {what} {name!r}; {says}")


def check_not_a_name(name: str, value: Any, means: Mapping[str, str]) -> None:
    """Refuses a string where the thing that it names is meant.

    Args:
      means: a name -> what to write in its place.

    Raises:
      ValueError: saying what to write for the nearest of the names.
    """
    if isinstance(value, str) and (near := get_close_matches(value.replace("-", "_"), means, 1)):
        raise ValueError(f"{name} must be {means[near[0]]}, not its name; got {value!r}")


def check_count(name: str, value: Any, otherwise: str = "") -> int:
    """The count as a Python integer; refuses what is not a whole number, at least 1.

    NumPy's integers have a type that would widen, under x64, what they are multiplied with.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:
        shape = getattr(value, "shape", ())
        given = f"an array of shape {shape}" if shape else repr(value)
        raise ValueError(f"{name} must be a whole number, at least 1{otherwise}; got {given}")
    return int(value)


def check_takes(name: str, function: Callable[..., Any], *arguments: str) -> None:
    """Refuses a function that cannot be called with as many positional arguments.

    Raises:
      ValueError: naming the function and the arguments that it is given.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some that are built in do not say
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{name} must take ({', '.join(arguments)}): {error}") from None


def check_number(name: str, value: ArrayLike, allowed: Callable[[float], bool], says: str) -> None:
    """Refuses a hyper-parameter out of range; a traced one is taken as it is.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    if not is_concrete(value):
        return
    if isinstance(value, (np.ndarray, jax.Array)) and value.shape != ():
        raise ValueError(f"{name} must be a scalar; got shape {value.shape} (vmap over it)")
    try:
        # The annotation promises a number; a caller may break it, and float() then raises.
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, {says}; got {value!r}") from None
    if not (math.isfinite(number) and allowed(number)):
        raise ValueError(f"{name} must be finite and {says}; got {value}")
