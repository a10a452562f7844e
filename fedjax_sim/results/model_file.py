"""A model in a file: an `.npz` with an array for each leaf, by name, and facts about the model."""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.files import reason, replace_file
from fedjax_sim.core.randomness import is_key
from fedjax_sim.core.types import Params, PyTree

ABOUT = "about.json"  # a member of the archive beside the arrays
_ALONE = "params"  # the name of the leaf where params are a single array
_SHOWN = 4  # leaves that an error names

# The keys that lead to a leaf: a dict's own keys, names of fields, and places of a list in words.
LeafPath = tuple[str | int, ...]


class _Leaf(NamedTuple):
    """A leaf as about.json describes it."""

    name: str
    path: LeafPath
    dtype: str


def save_params(path: str | Path, params: Params) -> None:
    """Writes a model's arrays into an `.npz` file, whole or not at all.

    The arrays are named as their leaves, `Dense_0/kernel` for `params["Dense_0"]["kernel"]`, so
    `numpy.load` reads the file too. Types that NumPy has no name for (bfloat16, float8) are kept as
    their bits; `load_params` gives them back as what they were.

    Args:
      path: of the file, written as it is named.
      params: a pytree of arrays or numbers: of dicts, lists, tuples, NamedTuples, or one array. A
        part without arrays, such as an empty dict, leaves no trace.

    Raises:
      ValueError: for a leaf that is no array of numbers, by its name.
      SaveError: (an OSError) if the file cannot be written.

    >>> import fedjax_sim as fs, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model.npz"
    >>> fs.save_params(path, {"Dense_0": {"kernel": np.ones((2, 3), np.float32)}})
    >>> np.load(path)["Dense_0/kernel"].shape
    (2, 3)
    >>> fs.load_params(path)["Dense_0"]["kernel"].dtype
    dtype('float32')
    """
    write(Path(path), params, {})


def load_params(path: str | Path, like: PyTree | None = None) -> Params:
    """The model that `save_params`, a run or a sweep left in a file, with NumPy leaves.

    Args:
      path: of the file.
      like: params of the same structure, as arrays or `jax.ShapeDtypeStruct`s; the model is then
        returned in that structure. None for nested dicts, in which a list or a tuple is a dict by
        place ("0", "1", ...), and a NamedTuple one by field.

    Raises:
      ValueError: if the file is not there, is damaged, or holds other leaves, shapes or types than
        `like`: which.
    """
    return read(Path(path), like)[0]


def write(path: Path, params: Params, about: Mapping[str, Any]) -> None:
    """As `save_params`, with facts about the model, which must be JSON-able.

    Raises:
      ValueError: for a leaf that is no array of numbers, by its name.
      SaveError: if the file cannot be written.
    """
    leaves, arrays, names = [], [], set[str]()
    for keys, leaf in _leaves(params).items():
        array = _array(leaf, keys)
        name = _new_name(keys, names)
        names.add(name)
        leaves.append(_Leaf(name, keys, array.dtype.name))
        # NumPy's format knows a type of ml_dtypes by its size alone, so its bits are kept.
        has_numpy_dtype = array.dtype.kind != "V"
        arrays.append(array if has_numpy_dtype else array.view(f"u{array.dtype.itemsize}"))
    about_with_leaves = {**about, "leaves": leaves}

    def save(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for leaf, array in zip(leaves, arrays, strict=True):
                # A `ZipInfo` has no date of today: the same model makes the same bytes.
                member = zipfile.ZipInfo(f"{leaf.name}.npy")
                with archive.open(member, "w", force_zip64=True) as part:
                    np.lib.format.write_array(part, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(ABOUT), json.dumps(about_with_leaves, indent=2) + "\n")

    replace_file(path, save)


def read(path: Path, like: PyTree | None = None) -> tuple[Params, dict[str, Any]]:
    """A model, as `load_params` returns it, and the facts about it.

    Raises:
      ValueError: as `load_params`.
    """
    arrays: dict[LeafPath, np.ndarray] = {}
    with _opened(path) as archive:
        about = _about(archive)
        for name, keys, dtype in about.pop("leaves"):
            with archive.open(f"{name}.npy") as member:  # reading it to its end checks its CRC
                array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
            kept_as_bits = array.dtype.name != dtype
            arrays[tuple(keys)] = array.view(jnp.dtype(dtype)) if kept_as_bits else array
    params = _nested(arrays) if like is None else _in_structure(path, arrays, like)
    return params, about


def describe(path: Path) -> dict[str, Any]:
    """The facts about a model, without reading its arrays.

    Raises:
      ValueError: if the file is not there or damaged.
    """
    with _opened(path) as archive:
        about = _about(archive)
    del about["leaves"]
    return about


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive of a file; every error while it is read becomes a ValueError that names it."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError:
        raise ValueError(f"{path} is not there") from None
    # A damaged header can raise any error in NumPy and in json.
    except Exception as error:
        raise ValueError(f"{path} is no model, or is damaged: {reason(error)}") from error


def _about(archive: zipfile.ZipFile) -> dict[str, Any]:
    """The contents of about.json, which lists the arrays; a file without it may be incomplete."""
    if ABOUT not in archive.namelist():
        raise ValueError(f"it holds no {ABOUT}, as fs.save_params writes it")
    return json.loads(archive.read(ABOUT))


def _leaves(tree: PyTree) -> dict[LeafPath, Any]:
    """The leaves by their paths."""
    leaves: dict[LeafPath, Any] = {}
    for entries, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = tuple(map(_key, entries))
        if keys in leaves:
            raise ValueError(f"params must not have two leaves of one name; got {_name(keys)!r}")
        leaves[keys] = leaf
    return leaves


def _key(entry: Any) -> str | int:
    if isinstance(entry, jax.tree_util.DictKey):
        return entry.key if type(entry.key) in (str, int) else str(entry.key)
    for attribute in ("idx", "name", "key"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _name(keys: Sequence[str | int]) -> str:
    return "/".join(map(str, keys)) or _ALONE


def _new_name(keys: LeafPath, earlier: set[str]) -> str:
    """A name that a file can have and no earlier leaf has; keys may hold a "/" themselves."""
    # A member of an archive ends at a zero byte, and Windows takes a backslash for "/".
    name = _name(keys).replace("\0", "").replace("\\", "/")
    number = 1
    while (new := name if number == 1 else f"{name}#{number}") in earlier:
        number += 1
    return new


def _array(leaf: Any, keys: LeafPath) -> np.ndarray:
    """The leaf on the host.

    Raises:
      ValueError: for one that is no array of numbers.
    """
    refusal = f"params must be arrays of numbers; got {_name(keys)!r}, which is "
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError(f"{refusal}being traced: save what a compiled function returns")
    if is_key(leaf):
        raise ValueError(f"{refusal}a key: leave it out, or save jax.random.key_data of it")
    number = isinstance(leaf, (bool, int, float, complex))
    array = np.asarray(leaf, jnp.result_type(leaf) if number else None)  # a number as JAX takes it
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise ValueError(f"{refusal}{type(leaf).__name__} of {array.dtype}")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return np.array(native, order="C", copy=None)


def _nested(arrays: Mapping[LeafPath, np.ndarray]) -> Params:
    """The arrays as nested dicts."""
    if set(arrays) == {()}:
        return arrays[()]
    tree: dict[str | int, Any] = {}
    for keys, array in arrays.items():
        inner = tree
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = array
    return tree


def _in_structure(path: Path, arrays: Mapping[LeafPath, np.ndarray], like: PyTree) -> Params:
    """The arrays in the structure of `like`.

    Raises:
      ValueError: which leaves differ.
    """
    saved = {tuple(map(str, keys)): array for keys, array in arrays.items()}
    expected = {tuple(map(str, keys)): leaf for keys, leaf in _leaves(like).items()}
    missing = [keys for keys in expected if keys not in saved]
    unexpected = [keys for keys in saved if keys not in expected]
    differ = [
        f"{_name(keys)} is {_spec(saved[keys])} there and {_spec(leaf)} in like"
        for keys, leaf in expected.items()
        if keys in saved and not _fits(saved[keys], leaf)
    ]
    parts = [
        f"{_listed(map(_name, keys))} {where}"
        for keys, where in ((missing, "missing there"), (unexpected, "there and not in like"))
        if keys
    ]
    parts += [_listed(differ)] if differ else []
    if parts:
        raise ValueError(f"like must have the leaves of {path}: {'; '.join(parts)}")
    return jax.tree.unflatten(jax.tree.structure(like), [saved[keys] for keys in expected])


def _listed(names: Any) -> str:
    names = list(names)
    num_left_out = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {num_left_out} more" if num_left_out > 0 else "")


def _fits(array: np.ndarray, leaf: Any) -> bool:
    """Whether shape and type agree; a float64 array stands for float32 where x64 is off."""
    types = {str(jnp.result_type(leaf)), str(getattr(leaf, "dtype", ""))}
    return array.shape == np.shape(leaf) and str(array.dtype) in types


def _spec(leaf: Any) -> str:
    return f"{getattr(leaf, 'dtype', jnp.result_type(leaf))}{list(np.shape(leaf))}"
