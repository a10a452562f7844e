"""A checksum of a traced program: the same in every process for the same mathematics.

The text of a jaxpr differs between processes: it has addresses of functions and names of jitted
functions. So the checksum is of what the equations compute: primitives, parameters, types,
literals, the arrays that were closed over, and the same of nested programs. Of Python functions
that callbacks call, `host_code` says what they do; its docstring says what it cannot see.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from types import CodeType, ModuleType
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from fedjax_sim.core.plain import plainly
from fedjax_sim.core.randomness import is_key
from fedjax_sim.core.types import PyTree
from fedjax_sim.host.checkpoints import checksum
from fedjax_sim.host.host_code import parts

# Parameters that say how an equation is compiled, placed or differentiated, not what it computes.
# (A mesh is among them; the number of devices that `shard_map` runs over is hashed on its own.)
_NO_MATTER = frozenset(
    (
        "bwd",
        "compiler_options_kvs",
        "ctx_mesh",
        "debug_info",
        "donated_invars",
        "fwd_jaxpr_thunk",
        "in_layouts",
        "in_shardings",
        "inline",
        "jvp_jaxpr_fun",
        "keep_unused",
        "mesh",
        "name",
        "out_layouts",
        "out_sharding",
        "out_shardings",
        "sharding",
        "symbolic_zeros",
        "unroll",
    )
)
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


def traced(
    function: Callable[..., Mapping[str, PyTree]], *arguments: PyTree, known: PyTree = ()
) -> dict[str, str]:
    """The checksum of how each value of a dict is computed, of a function that returns the dict.

    A checksum covers only the equations that its value depends on.

    Args:
      arguments: arrays or their shapes; their values do not matter.
      known: arrays that are compared elsewhere. Where the function closes over one of them, its
        index here is hashed and not its numbers. Read after the trace, which may add to a list.

    >>> import jax.numpy as jnp
    >>> twice = traced(lambda x: {"a": jnp.sin(x), "b": 2 * x}, 1.0)
    >>> thrice = traced(lambda y: {"b": 3 * y, "a": jnp.sin(y)}, 5.0)
    >>> twice["a"] == thrice["a"], twice["b"] == thrice["b"]
    (True, False)
    """
    with plainly():
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    places = {id(x): place for place, x in enumerate(jax.tree.leaves(known))}
    outputs = iter(_Walk(places).outputs(closed.jaxpr, closed.consts))
    checksums = {}
    for name in sorted(shapes):  # as the leaves of a dict are ordered
        leaves, structure = jax.tree.flatten(shapes[name])
        digests = [next(outputs) for _ in leaves]
        checksums[name] = _digest([_ADDRESS.sub("", str(structure)), *digests])
    return checksums


def program_checksum(program: ClosedJaxpr, known: PyTree = ()) -> str:
    """The checksum of all that a traced program computes.

    Args:
      known: arrays that are compared elsewhere, as of `traced`.
    """
    places = {id(x): place for place, x in enumerate(jax.tree.leaves(known))}
    return _digest(_Walk(places).outputs(program.jaxpr, program.consts))


def _digest(tokens: Iterable[str]) -> str:
    return hashlib.blake2b("\0".join(tokens).encode(), digest_size=8).hexdigest()


class _Walk:
    """One walk over a program; nested programs that occur again are hashed once."""

    def __init__(self, places: Mapping[int, int]) -> None:
        self.places = places
        self.seen: dict[int, str] = {}
        # The objects whose ids are in `seen`: while they live, no other object gets such an id.
        self.kept: list[Any] = []

    def outputs(self, jaxpr: Jaxpr, consts: Sequence[Any] | None = None) -> list[str]:
        """A digest of each output, which covers only the equations that it depends on.

        The last outputs are the references (places in memory) that the program was given, with
        what it wrote to them.
        """
        digests: dict[Any, str] = {}

        def atom(x: Any) -> str:
            if isinstance(x, Literal):
                return f"{self.value(x.val)}:{self.value(x.aval)}"
            return digests[x]

        for place, x in enumerate(jaxpr.constvars):
            constant = f"constant {place}" if consts is None else self.value(consts[place])
            digests[x] = f"{constant}:{self.value(x.aval)}"
        for place, x in enumerate(jaxpr.invars):
            digests[x] = f"argument {place}:{self.value(x.aval)}"
        for equation in jaxpr.eqns:
            names = sorted(name for name in equation.params if name not in _NO_MATTER)
            parameters = [f"{name}={self.value(equation.params[name])}" for name in names]
            if equation.primitive.name == "shard_map":
                parameters.append(f"mesh={dict(equation.params['mesh'].shape)}")
            operands = map(atom, equation.invars)
            result = _digest([equation.primitive.name, *parameters, "of", *operands])
            for place, x in enumerate(equation.outvars):
                digests[x] = f"{result} {place}:{self.value(x.aval)}"
            if equation.primitive.name != "get":
                for place, operand in enumerate(equation.invars):
                    if _is_reference(operand):  # which the equation may have written to
                        digests[operand] = f"{result} operand {place}:{self.value(operand.aval)}"
        references = [x for x in (*jaxpr.constvars, *jaxpr.invars) if _is_reference(x)]
        return [*map(atom, (*jaxpr.outvars, *references))]

    def _program(self, jaxpr: Jaxpr, consts: Sequence[Any] = ()) -> str:
        """A nested program, as a parameter of an equation."""
        if id(jaxpr) not in self.seen:
            self.seen[id(jaxpr)] = _digest(self.outputs(jaxpr))
        return _digest([self.seen[id(jaxpr)], *map(self.value, consts)])

    def value(self, x: Any) -> str:
        """A text that is equal for equal parameters, literals or arrays, without addresses."""
        if isinstance(x, ClosedJaxpr):
            return self._program(x.jaxpr, x.consts)
        if isinstance(x, Jaxpr):
            return self._program(x)
        if id(x) in self.places:
            return f"known {self.places[id(x)]}"
        if x is None or isinstance(x, (bool, int, float, complex, str, bytes)):
            return f"{type(x).__name__} {x!r}"
        if isinstance(x, (np.ndarray, np.generic, jax.Array)):
            return _array(x)
        if isinstance(x, Enum):
            return f"{type(x).__name__}.{x.name}"
        if isinstance(x, (np.dtype, jax.core.ShapedArray)) or is_key(x):
            weak = " weak" if getattr(x, "weak_type", False) else ""
            return f"{getattr(x, 'dtype', x)}{list(getattr(x, 'shape', ()))}{weak}"
        if isinstance(x, Mapping):
            pairs = sorted((self.value(k), self.value(v)) for k, v in x.items())
            return _digest([text for pair in pairs for text in pair])
        if isinstance(x, (set, frozenset)):
            return _digest(sorted(map(self.value, x)))
        if isinstance(x, (tuple, list)):
            return f"{type(x).__name__} {_digest([self.value(part) for part in x])}"
        if isinstance(x, CodeType):
            compiled = x.co_code.hex(), x.co_exceptiontable.hex()
            return _digest([*compiled, self.value(x.co_consts), self.value(x.co_names)])
        if isinstance(x, ModuleType):
            return f"module {x.__name__}"
        return self._object(x)

    def _object(self, x: Any) -> str:
        """A digest of a Python function that a program calls, a class, or an object of theirs."""
        if id(x) not in self.seen:
            name = f"{type(x).__name__} {getattr(x, '__qualname__', '')}"
            self.kept.append(x)
            self.seen[id(x)] = name  # it may refer to itself
            held_parts = parts(x)
            text = _ADDRESS.sub("", str(x)) if held_parts is None else self.value(held_parts)
            self.seen[id(x)] = _digest([name, text])
        return self.seen[id(x)]


def _is_reference(x: Any) -> bool:
    """Whether an equation's operand is a place in memory, which it may write to."""
    return not isinstance(x, Literal) and "Ref" in type(x.aval).__name__


def _array(x: Any) -> str:
    if is_key(x):
        return f"{x.dtype} {_array(jax.random.key_data(x))}"
    return f"{x.dtype}{list(x.shape)} {checksum(x)}"
