"""What a function of the host is made of, beside its name: parts to be hashed.

It is the code, and what the code reads: what it closes over, defaults, the object of a method, what
a `functools.partial` holds, and, of functions and classes that belong to no installed library, the
globals that they name. Not told apart are

- what a library's function does beyond its own code;
- what an object keeps where Python does not show it, as an open file or a generator of random
  numbers does: of such a one there are the class and the printed form;
- what is reached by a name that is made as the code runs (`getattr`, an import in a function);
- what changes later: of a list or a counter it is what they hold now.
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

# Whose objects hold caches and addresses beside what they are: their printed form says that.
_PRINTED = frozenset(("jax", "jaxlib", *sys.stdlib_module_names))
_OURS = __name__.partition(".")[0]
_LIBRARIES = frozenset(("site-packages", "dist-packages"))


def parts(x: Any) -> tuple[Any, ...] | None:
    """What a function, a class or another object consists of; None where Python shows nothing.

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
        own = (x.__bases__, _members(x)) if _is_users(x.__module__) else ()
        return x.__module__, *own
    if isinstance(x, (staticmethod, classmethod)) or (callable(x) and hasattr(x, "__wrapped__")):
        return (x.__wrapped__,)  # what is jitted or remembers its results, too
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
    """The globals that a function names, by their names; of the user's modules what it may read."""
    codes = list(_codes(function.__code__))
    attributes = frozenset(name for code in codes for name in code.co_names)
    names = {
        step.argval
        for code in codes
        for step in dis.get_instructions(code)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    known = function.__globals__
    return {name: _within(known[name], attributes - {name}) for name in names if name in known}


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _within(x: Any, names: frozenset[str]) -> Any:
    """What has these names in a module of the user's; anything else as it is."""
    if not isinstance(x, ModuleType) or not _is_users(x.__name__):
        return x
    return {name: _within(vars(x)[name], names - {name}) for name in names if name in vars(x)}


def _members(x: type) -> dict[str, Any]:
    """What a class defines, without what Python adds to each."""
    return {
        name: member
        for name, member in vars(x).items()
        if isinstance(member, FunctionType) or not name.startswith("__")
    }


def _is_users(module: str | None) -> bool:
    """Whether it is of neither Python nor an installed library, whose versions a run compares."""
    name = module or ""
    if name.partition(".")[0] in (_OURS, *_PRINTED):
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is None or _LIBRARIES.isdisjoint(Path(file).parts)
