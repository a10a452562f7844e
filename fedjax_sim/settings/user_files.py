"""A user's own parts: functions of Python files, and folders of data."""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from fedjax_sim import datasets
from fedjax_sim.core.registry import Declaration, Option, declaration_of, renamed, undeclared
from fedjax_sim.datasets import Dataset
from fedjax_sim.datasets.formats.by_client import TASKS

_SPLITTER = ".py:"


def is_reference(name: str) -> bool:
    """Whether a name has the form FILE.py:FUNCTION.

    >>> is_reference("mine.py:wave"), is_reference("fedavg")
    (True, False)
    """
    return _SPLITTER in name or name.endswith(".py")


def is_path(name: str) -> bool:
    """Whether a name is, or looks like, that of a folder."""
    return Path(name).expanduser().is_dir() or "/" in name or "\\" in name


def declaration(
    room: str, name: str, common: tuple[str, ...], taken: frozenset[str]
) -> Declaration:
    """The declaration of FILE.py:FUNCTION; one is made if the function has none.

    Args:
      common: parameters that are no options.
      taken: names that its options may not have. In a declaration that is made here, an option of
        such a name gets the function's name as a prefix: `wave_alpha` for the `alpha` of `wave`.

    Raises:
      ValueError: if the file is not there, fails to be imported, or has no such function; if a
        declared option's name is taken, or a parameter has neither a default nor a meaning.
    """
    path, _, function = name.rpartition(":")
    if not function or not path.endswith(".py"):
        raise ValueError(f"{room} {name} must name a function of the file, as {name}:FUNCTION")
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{room} {name}: there is no file {path}")
    module = _imported(room, name, file.resolve(), file.stat().st_mtime_ns)
    factory = getattr(module, function, None)
    if not callable(factory):
        instead = _instead(module, function)
        raise ValueError(f"{room} {name}: {path} has no function {function}{instead}")
    return _declared(room, name, factory, common, taken)


@lru_cache(maxsize=64)
def _declared(
    room: str,
    name: str,
    factory: Callable[..., Any],
    common: tuple[str, ...],
    taken: frozenset[str],
) -> Declaration:
    function = name.rpartition(":")[2]
    declaration = declaration_of(factory)
    if declaration is None:
        declaration = renamed(undeclared(name, factory, common), function, taken)
    else:
        declaration = Declaration(**{**vars(declaration), "name": name, "is_default": False})
        if clash := [option.name for option in declaration.options if option.name in taken]:
            raise ValueError(
                f"{room} {name}: its option {clash[0]} has the name of another; declare it as "
                f'Option("{function}_{clash[0]}", ..., parameter="{clash[0]}")'
            )
    options = (option.argument for option in declaration.options)
    arguments = {*declaration.symbols.values(), *options}
    for parameter in declaration.parameters.values():
        has_meaning = parameter.name in common or parameter.name in arguments
        is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not has_meaning and not is_variadic:
            raise ValueError(
                f"{room} {name}: its parameter {parameter.name} has no default, and is none of "
                f"{', '.join(common)}"
            )
    return declaration


def called(room: str, name: str, call: Callable[[], Any], result_type: type, type_text: str) -> Any:
    """Calls a factory, and turns the errors of a user's function into ValueErrors.

    Args:
      result_type: the type that it must return.
      type_text: the type's name in an error.

    Raises:
      ValueError: with the function's own error, or if it returns another type.
    """
    if not is_reference(name):
        return call()
    try:
        result = call()
    except Exception as error:  # a user's code may raise anything
        raise ValueError(f"{room} {name} failed: {_told(error)}") from error
    if not isinstance(result, result_type):
        raise ValueError(f"{room} {name} must return {type_text}; got {type(result).__name__}")
    return result


@lru_cache(maxsize=16)
def folder(name: str) -> Declaration:
    """The declaration of a folder of data, whose format is recognised by the names of its files.

    Raises:
      ValueError: if it is no folder, or has no files of a known format, which are then listed.
    """
    path = Path(name).expanduser()
    if not path.is_dir():
        raise ValueError(f"dataset {name}: there is no such folder")
    for pattern, loader in _FORMS.items():
        if any(path.glob(pattern)):
            return Declaration(name, f"of {name}", partial(loader, path), (_TASK,))
    raise ValueError(f"dataset {name} must hold one of {', '.join(_FORMS)}; it holds none of them")


_TASK = Option(
    "task",
    "what y is: labels, or targets of a regression; found from their values unless it is given",
    kind=str,
    choices=TASKS,
)


def _stored(directory: Path, *, task: str | None = None) -> Dataset:
    from fedjax_sim.settings.stores import stored  # which imports what imports this

    return stored(directory, task=task)


_FORMS: Mapping[str, Callable[[Path], Dataset]] = {
    "train/manifest.json": _stored,
    "train/*.json": datasets.leaf,
    "train/*.npz": datasets.npz,
    "train/*.csv": datasets.csv,
    "*train*.h5": datasets.hdf5,
    "*train*.sqlite": datasets.sqlite,
}


@lru_cache(maxsize=16)
def _imported(room: str, name: str, file: Path, modified: int) -> ModuleType:
    """The file as a module, imported again when it was modified."""
    # The module gets a unique name, because the file may have that of an installed package.
    key = f"_user_file_{file.stem}_{crc32(str(file).encode()):08x}_{modified}"
    spec = importlib.util.spec_from_file_location(key, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{room} {name}: {file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # A dataclass in the file looks up its module in sys.modules, and the file may import another
    # one beside it by name.
    sys.modules[key] = module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        del sys.modules[key]
        raise ValueError(f"{room} {name} cannot be imported: {_told(error)}") from error
    return module


def _told(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _instead(module: ModuleType, function: str) -> str:
    functions = [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    if near := get_close_matches(function, functions, 1):
        return f"; did you mean {near[0]}?"
    return f"; it has {', '.join(functions)}" if functions else "; it has none"
