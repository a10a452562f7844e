"""Reprs of objects in one line: arrays by shape and dtype, functions by name, without addresses."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

_LEAVES = 4  # leaves of a pytree that are listed at most; more are counted
_LETTERS = 60  # letters at most of a value that is shown as Python does
_SCALARS = (bool, int, float, complex, str)
Kind = TypeVar("Kind", bound=type)
_OF_CONTAINERS: tuple[Any, ...] = (tuple.__repr__, dict.__repr__, list.__repr__)


def fields_of(value: Any, *names: str) -> str:
    """A NamedTuple or dataclass in one line: those of its fields that hold something.

    Args:
      names: of the fields; all of them if none is named.

    >>> from fedjax_sim import Cohort
    >>> fields_of(Cohort(np.arange(3, dtype=np.int32), reports=np.ones(3, bool)))
    'Cohort(client_ids=int32[3], reports=bool[3])'
    """
    if not names:
        is_tuple = isinstance(value, tuple)
        names = tuple(value._fields if is_tuple else value.__dataclass_fields__)
    values = {name: getattr(value, name) for name in names}
    # Fields that are False or 0 are kept, and the truth of an array is undefined.
    non_empty = {k: x for k, x in values.items() if x is not None and not _is_empty(x)}
    return f"{type(value).__name__}({', '.join(f'{k}={short(x)}' for k, x in non_empty.items())})"


def one_line(kind: Kind) -> Kind:
    """A class whose objects say what `fields_of` says of them.

    >>> from typing import NamedTuple
    >>> @one_line
    ... class Pair(NamedTuple):
    ...     first: int
    ...     second: tuple = ()
    >>> Pair(1)
    Pair(first=1)
    """
    # A class decorator is the one place that assigns what every class has.
    kind.__repr__ = fields_of  # type: ignore[assignment, method-assign]
    return kind


def short(value: Any) -> str:
    """A value in a few words, traced or not.

    >>> short({"w": np.ones((3, 2)), "b": np.float64(0.123456)}), short(np.ones)
    ('{w: float64[3, 2], b: 0.1235}', 'ones')
    >>> short([np.ones(3)] * 9)
    '9 arrays of 27 numbers'
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if _is_module(value):
        return _module(value)
    if isinstance(value, partial) or (callable(value) and hasattr(value, "__qualname__")):
        return function_name(value)
    has_own = type(value).__repr__ not in _OF_CONTAINERS
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        # A NamedTuple's default repr would print the arrays.
        is_given = type(value).__repr__.__module__ != "collections"
        return repr(value) if is_given else fields_of(value)
    if isinstance(value, (Mapping, tuple, list)) and not has_own:
        return _container(value)
    text = repr(value)
    if isinstance(value, _SCALARS):
        return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"
    is_own = type(value).__module__.partition(".")[0] == "fedjax_sim"
    fits = "\n" not in text and " at 0x" not in text and (is_own or len(text) <= _LETTERS)
    return text if fits else type(value).__name__


def function_name(function: Any) -> str:
    """The name of a function, and the plain values that it was made with.

    >>> def scaled(by):
    ...     return lambda x: by * x
    >>> function_name(scaled(0.5)), function_name(np.ones)
    ('scaled(by=0.5)', 'ones')
    """
    if isinstance(function, partial):
        return function_name(function.func)
    name = getattr(function, "__qualname__", type(function).__name__)
    parts = [part for part in name.split(".") if part not in ("<locals>", "<lambda>")]
    values = ", ".join(f"{k}={short(x)}" for k, x in made_with(function).items())
    return (".".join(parts) or "lambda") + (f"({values})" if values else "")


def made_with(function: Callable[..., Any]) -> dict[str, Any]:
    """The plain values and modules among those that a function closes over, by name.

    And those of the functions among them, as a sampler's `draw`.
    """
    values: dict[str, Any] = {}
    for name, value in _closed_over(function).items():
        inner = _closed_over(value) if isinstance(value, FunctionType) else {name: value}
        values |= {name: x for name, x in inner.items() if _is_plain(x)}
    return values


def _closed_over(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return inspect.getclosurevars(function).nonlocals
    except (TypeError, ValueError):  # it is no Python function, or is still being defined
        return {}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return type(value) is tuple and all(map(_is_plain, value))
    return isinstance(value, _SCALARS) or _is_module(value)


def _is_module(value: Any) -> bool:
    """Whether it is a module of flax: a dataclass of what it is made of."""
    return dataclasses.is_dataclass(value) and hasattr(value, "parent")


def _module(module: Any) -> str:
    """A flax module with the fields that differ from their defaults."""
    non_default = [
        field.name
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name")
        # Functions are named where they are layers; a layer's initialisers are all but always
        # flax's own.
        and short(getattr(module, field.name)) != short(field.default)
        and not callable(getattr(module, field.name))
    ]
    return fields_of(module, *non_default) if non_default else f"{type(module).__name__}()"


def _is_empty(value: Any) -> bool:
    return isinstance(value, (tuple, Mapping)) and not value


def _array(value: Any) -> str:
    """The number of a concrete scalar; dtype and shape of other arrays."""
    is_array = isinstance(value, (np.ndarray, np.generic, jax.Array))
    if is_array and value.shape == () and _is_number(value.dtype) and not _is_lost(value):
        number = np.asarray(value).item()
        return f"{number:.4g}" if isinstance(number, float) else str(number)
    return f"{value.dtype}{list(value.shape)}"


def _is_number(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)


def _is_lost(value: Any) -> bool:
    """Whether it has no value on this host: being traced, donated, or on other hosts alone."""
    if isinstance(value, jax.core.Tracer):
        return True
    is_of_jax = isinstance(value, jax.Array)
    return is_of_jax and (value.is_deleted() or not value.is_fully_addressable)


def _container(value: Any) -> str:
    leaves = jax.tree.leaves(value)
    if len(leaves) > _LEAVES:
        if all(hasattr(x, "size") and hasattr(x, "shape") for x in leaves):
            return f"{len(leaves):,} arrays of {sum(x.size for x in leaves):,} numbers"
        return f"{len(leaves):,} values"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {short(x)}' for name, x in value.items())}}}"
    inside = ", ".join(map(short, value))
    if isinstance(value, list):
        return f"[{inside}]"
    return f"({inside},)" if len(value) == 1 else f"({inside})"
