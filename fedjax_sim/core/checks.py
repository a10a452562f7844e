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

INT32_MAX = 2**31 - 1  # the largest count, offset or step, since JAX has 64 bits under x64 alone


def is_concrete(x: Any) -> bool:
    """Whether x has a value now, and is not being traced."""
    return not isinstance(x, jax.core.Tracer)


def has_values(x: Any) -> bool:
    """Whether x is an array with values now, and neither traced nor only a shape."""
    return isinstance(x, (np.ndarray, jax.Array)) and is_concrete(x)


def check_same_spec(name: str, argument: str, before: Any, after: Any) -> None:
    """Refuses a pytree that differs from another in structure, shape or dtype.

    Raises:
      ValueError: naming the argument, and the shapes and dtypes of both.
    """
    specs = [
        [f"{jnp.result_type(x)}{list(jnp.shape(x))}" for x in jax.tree.leaves(tree)]
        for tree in (before, after)
    ]
    structures: list[Any] = [jax.tree.structure(tree) for tree in (before, after)]
    if structures[0] != structures[1] or specs[0] != specs[1]:
        texts = [
            f"{', '.join(spec)} in {structure}" if spec else "nothing"
            for spec, structure in zip(specs, structures, strict=True)
        ]
        raise ValueError(
            f"{name} must keep the structure, shapes and dtypes of {argument}; it makes "
            f"{texts[1]} of {texts[0]}"
        )


def check_known(name: str, allowed: Iterable[str], kind: str) -> None:
    """Refuses a name that is not allowed.

    Args:
      kind: the word for such a name in the error, as "axis".

    Raises:
      ValueError: with the nearest allowed name.
    """
    allowed = list(allowed)
    if name not in allowed:
        normalised = name.replace("-", "_")
        near = get_close_matches(normalised, allowed, 1)
        # A user may give the end of several names, as lr for client_lr and server_lr.
        near = near or [
            allowed_name for allowed_name in allowed if allowed_name.endswith(f"_{normalised}")
        ]
        says = (
            f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else f"known are {', '.join(allowed)}"
        )
        raise ValueError(f"unknown {kind} {name!r}; {says}")


def check_not_a_name(name: str, value: Any, means: Mapping[str, str]) -> None:
    """Refuses the name of a value in place of the value.

    Args:
      means: a name -> the expression to write in its place.

    Raises:
      ValueError: saying what to write for the nearest of the names.
    """
    if isinstance(value, str) and (near := get_close_matches(value.replace("-", "_"), means, 1)):
        raise ValueError(f"{name} must be {means[near[0]]}, not its name; got {value!r}")


def check_count(name: str, value: Any, otherwise: str = "") -> int:
    """The count as a Python integer; refuses values that are no whole number of at least 1.

    NumPy's integers are converted, because under x64 their type would widen the results of
    arithmetic with them.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:
        shape = getattr(value, "shape", ())
        value_text = f"an array of shape {shape}" if shape else repr(value)
        raise ValueError(f"{name} must be a whole number, at least 1{otherwise}; got {value_text}")
    return int(value)


def check_in_32_bits(must: str, count: int, unit: str = "") -> None:
    """Refuses a count beyond 32 bits.

    Args:
      must: the beginning of the message, with the argument's name.
      unit: what is counted, as " examples".

    Raises:
      ValueError: with the count and the limit.

    >>> check_in_32_bits("capacity must be", 2**31)
    Traceback (most recent call last):
    ValueError: capacity must be at most 2147483647; got 2147483648
    """
    if count > INT32_MAX:
        raise ValueError(f"{must} at most {INT32_MAX}{unit}; got {count}")


def check_takes(name: str, function: Callable[..., Any], *arguments: str) -> None:
    """Refuses a function that cannot be called with as many positional arguments.

    Raises:
      ValueError: naming the function and the arguments that it is given.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{name} must take ({', '.join(arguments)}): {error}") from None


def check_number(
    name: str,
    value: ArrayLike,
    allowed: Callable[[float], bool],
    says: str,
    *,
    or_infinite: bool = False,
) -> None:
    """Refuses a hyper-parameter out of range; a traced one is taken as it is.

    Args:
      or_infinite: whether infinity is allowed, too, which `says` then has among its words.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    if not is_concrete(value):
        return
    if isinstance(value, (np.ndarray, jax.Array)) and value.shape != ():
        raise ValueError(f"{name} must be a scalar; got shape {value.shape} (vmap over it)")
    number = _as_float(value)
    if number is None:
        raise ValueError(f"{name} must be a number, {says}; got {value!r}")
    if or_infinite:
        if not allowed(number):
            raise ValueError(f"{name} must be a number, {says}; got {value}")
    elif not (math.isfinite(number) and allowed(number)):
        raise ValueError(f"{name} must be finite and {says}; got {value}")


def _as_float(value: Any) -> float | None:
    """None of what is no number, as a text, of which float() reads some and arithmetic none."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def check_index(name: str, value: ArrayLike, number: int) -> None:
    """Refuses a position out of range; whole floating numbers are allowed, as a sweep traces them.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    if not is_concrete(value):
        return
    given = np.asarray(value)
    is_number = given.ndim == 0 and given.dtype.kind in "iuf"
    if not is_number or not (0 <= float(given) < number and float(given).is_integer()):
        raise ValueError(f"{name} must be a whole number from 0 to {number - 1}; got {value!r}")
