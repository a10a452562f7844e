"""Parameters of a model by the names of their paths, and which of them are chosen."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import jax

from fedjax_sim.core.types import Array, Params, PyTree

# A pattern, several of them, or a function of a parameter's path.
Chosen: TypeAlias = str | Sequence[str] | Callable[[str], bool]
_SHOWN = 12  # paths that an error lists


def by_path(params: Params) -> dict[str, Array]:
    """The leaves by their paths, as "Dense_0/kernel", in the order of the tree.

    Raises:
      ValueError: for two leaves of one path.

    >>> list(by_path({"Dense_0": {"bias": 0.0, "kernel": 1.0}, "scales": [2.0, 3.0]}))
    ['Dense_0/bias', 'Dense_0/kernel', 'scales/0', 'scales/1']
    """
    leaves: dict[str, Array] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        path = "/".join(map(key_name, keys))
        if path in leaves:
            raise ValueError(f"params must not have two leaves of one path; got {path!r}")
        leaves[path] = leaf
    return leaves


def key_name(key: Any) -> str:
    """A step of a path in a pytree: a dict's key, a field's name, a place."""
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def put(params: Params, leaves: Mapping[str, Array]) -> Params:
    """The params, with these leaves in place of those of the same paths."""
    values = [leaves.get(path, leaf) for path, leaf in by_path(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), values)


def check_chosen(name: str, chosen: Any) -> None:
    """Refuses what is neither a pattern, nor several, nor a function of a path.

    Raises:
      ValueError: naming the argument and what was given.
    """
    if callable(chosen) or (_patterns(chosen) and all(map(_is_pattern, _patterns(chosen)))):
        return
    raise ValueError(
        f'{name} must be the path of a parameter or a pattern, as "Dense_1/*", a sequence of them, '
        f"or a function of a path that returns True or False; got {chosen!r}"
    )


def chosen_paths(
    name: str, chosen: Chosen, params: Params, may_be_all: bool = False
) -> tuple[str, ...]:
    """The paths of the parameters that are chosen, in their order: some of them, and not all.

    A pattern chooses what it matches, and all that lies below it: "Dense_1" is every parameter of
    that layer. `*` stands for any characters, `?` for one and `[ab]` for one of those, in either
    case as written. A text may hold several patterns with commas between.

    Args:
      name: of the argument, for errors.
      params: arrays or their shapes.
      may_be_all: whether all of them may be chosen.

    Raises:
      ValueError: for a pattern that chooses nothing, or a choice of nothing or of all, with the
        paths that there are; for a function that returns neither True nor False.

    >>> chosen_paths("personal", "Dense_1", {"Dense_0": {"w": 0.0}, "Dense_1": {"w": 1.0}})
    ('Dense_1/w',)
    """
    paths = tuple(by_path(params))
    if callable(chosen):
        answers = {path: chosen(path) for path in paths}
        for path, answer in answers.items():
            if answer is not True and answer is not False:
                raise ValueError(
                    f"{name} must return True or False of a path; of {path!r} it returns {answer!r}"
                )
        names = {path for path, answer in answers.items() if answer}
    else:
        names = set[str]()
        for pattern in _patterns(chosen):
            matched = {path for path in paths if _matches(pattern, path)}
            if not matched:
                raise ValueError(f"{name} {pattern!r} names no parameter; {_listed(paths)}")
            names |= matched
    if not names:
        raise ValueError(f"{name} must name some parameters, and names none; {_listed(paths)}")
    if len(names) == len(paths) and not may_be_all:
        raise ValueError(
            f"{name} must leave some of the parameters, and names all of them; {_listed(paths)}"
        )
    return tuple(path for path in paths if path in names)


def are_chosen(name: str, chosen: Chosen, params: Params) -> PyTree:
    """The structure of the params with True where a parameter is chosen; as `chosen_paths`."""
    names = chosen_paths(name, chosen, params)
    return jax.tree.unflatten(
        jax.tree.structure(params), [path in names for path in by_path(params)]
    )


def _patterns(chosen: Any) -> tuple[Any, ...]:
    if isinstance(chosen, str):
        return tuple(part.strip() for part in chosen.split(","))
    return tuple(chosen) if isinstance(chosen, Sequence) else ()


def _is_pattern(pattern: Any) -> bool:
    return isinstance(pattern, str) and bool(pattern)


def _matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches the path or what it lies below."""
    parts = path.split("/")
    return any(fnmatchcase("/".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def _listed(paths: tuple[str, ...]) -> str:
    if paths == ("",):
        return "params are one array, without a path"
    more = len(paths) - _SHOWN
    return f"there are {', '.join(paths[:_SHOWN])}{f' and {more} more' if more > 0 else ''}"


def map_models(
    function: Callable[..., PyTree], like: Params, tree: PyTree, *others: PyTree
) -> PyTree:
    """The tree with `function` of each part that has the structure and shapes of the model `like`.

    Args:
      others: trees of the same structure, whose parts at the same places it is given, too.
    """
    structure: Any = jax.tree.structure(like)
    shapes = [x.shape for x in jax.tree.leaves(like)]

    def is_model(part: PyTree) -> bool:
        part_structure: Any = jax.tree.structure(part)
        return part_structure == structure and [x.shape for x in jax.tree.leaves(part)] == shapes

    def apply(part: PyTree, *more: PyTree) -> PyTree:
        return function(part, *more) if is_model(part) else (part, *more)[-1]

    return jax.tree.map(apply, tree, *others, is_leaf=is_model)
