"""The parts of a Python function that are hashed to identify it, beside its name.

These are its code and the values that the code reads: closures, defaults, the object of a method,
the contents of a `functools.partial` and, for functions and classes that belong to no installed
library, the globals that they name. Differences that are not seen are

- in a library's function, beyond its own code;
- in the state of an object that Python does not show, as of an open file or a generator of random
  numbers, of which the class and the printed form are hashed;
- in values that are looked up while the code runs (by `getattr`, or an import in a function);
- in values that change later: a list or a counter is hashed with its current contents.
"""

import dis
import functools
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

# Modules whose objects are hashed by their printed form, because they hold caches and addresses.
_PRINTED = frozenset(("jax", "jaxlib", *sys.stdlib_module_names))
_OURS = __name__.partition(".")[0]
_LIBRARIES = frozenset(("site-packages", "dist-packages"))


def parts(x: Any) -> tuple[Any, ...] | None:
    """The parts of a function, a class or another object; None if Python does not show any.

    >>> parts(functools.partial(max, 3))
    (<built-in function max>, (3,), {})
    """
    if isinstance(x, functools.partial):
        return x.func, x.args, x.keywords
    if isinstance(x, MethodType):
        return x.__func__, x.__self__
    if isinstance(x, (BuiltinFunctionType, MethodWrapperType)):
        return x.__name__, x.__self__  # of a function, its module
    if isinstance(x, FunctionType):
        cells = [_cell(cell) for cell in x.__closure__ or ()]
        read = _globals(x) if _is_users(x.__globals__.get("__name__")) else {}
        return x.__code__, cells, x.__defaults__, x.__kwdefaults__, read
    if isinstance(x, type):
        definition = (x.__bases__, _members(x)) if _is_users(x.__module__) else ()
        return x.__module__, *definition
    if isinstance(x, (staticmethod, classmethod)) or (callable(x) and hasattr(x, "__wrapped__")):
        return (x.__wrapped__,)  # also of functions that are jitted or cached
    if isinstance(x, property):
        return x.fget, x.fset
    if is_dataclass(x):
        return type(x), [getattr(x, field.name) for field in fields(x)]
    if isinstance(x, SimpleNamespace):
        return (vars(x),)
    if type(x).__module__.partition(".")[0] in _PRINTED:
        return None
    state = object.__getstate__(x)
    return None if state is None and not _is_users(type(x).__module__) else (type(x), state)


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # its variable has no value yet, or no longer
        return "an empty cell"


def _globals(function: FunctionType) -> dict[str, Any]:
    """The globals that a function names; of a user's module those attributes that it may read."""
    codes = list(_codes(function.__code__))
    attributes = frozenset(name for code in codes for name in code.co_names)
    names = {
        step.argval
        for code in codes
        for step in dis.get_instructions(code)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    all_globals = function.__globals__
    return {
        name: _within(all_globals[name], attributes - {name})
        for name in names
        if name in all_globals
    }


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _within(x: Any, names: frozenset[str]) -> Any:
    """The attributes of these names of a user's module; any other value unchanged."""
    if not isinstance(x, ModuleType) or not _is_users(x.__name__):
        return x
    return {name: _within(vars(x)[name], names - {name}) for name in names if name in vars(x)}


def _members(x: type) -> dict[str, Any]:
    """The attributes that a class defines, without those that Python adds to every class."""
    return {
        name: member
        for name, member in vars(x).items()
        if isinstance(member, FunctionType) or not name.startswith("__")
    }


def _is_users(module: str | None) -> bool:
    """Whether a module is the user's: of neither Python nor a library, which have versions."""
    name = module or ""
    if name.partition(".")[0] in (_OURS, *_PRINTED):
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is None or _LIBRARIES.isdisjoint(Path(file).parts)
