"""The check that the loss of an example does not depend on the other examples of its block.

A loss is any function, so the check computes a few of its values and compares them. A batch norm, a
mean over the block or negatives that are taken from it change these values; the shapes of the
computation would not show them.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from fedjax_sim.core.checks import is_concrete
from fedjax_sim.core.files import fingerprint
from fedjax_sim.core.graphs import inner_of, is_used
from fedjax_sim.core.randomness import is_key
from fedjax_sim.core.types import Array, Params, PyTree

# (params, batch, key) -> {name: values[B]}
Values = Callable[[Params, PyTree, Any], dict[str, Array]]
# block -> name -> values of its rows
Found = dict[str, dict[str, np.ndarray]]

_LOOKED_AT = 256  # three examples that differ are looked for among so many
# The allowed differences, in units in the last place of the largest value: of blocks that the same
# computation gives, where only the order in which a GPU adds may differ, and of other blocks.
_ALIKE, _ROUNDING = 64, 1000
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# loss_fn -> the shapes and the computations for which it has passed.
_PASSED: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
_INSTEAD = (
    "Padding and other clients' block sizes would change what it learns. In place of a batch norm "
    "take a norm within an example, as flax's GroupNorm or LayerNorm; a mean over the block is "
    "taken by the engine"
)


def check_independent(
    loss_fn: Any,
    values_of: Values,
    params: Params,
    examples: PyTree,
    name: str = "loss_fn",
    with_key: bool = True,
) -> None:
    """Refuses a loss in which the examples of a block change each other's values.

    Three different examples a, b, c of the data are put into blocks of two, with one key for all,
    so that the draws of a dropout are the same in each:

        [a, b], [a, c] and, as in padding, [a, a]    must agree on a
        [a, b] and [c, b]                            must agree on b

    A loss that does not use its key must not depend on order and size either: on [b, a] and, if
    any number in its computation is another for blocks of three, on [a, b, a]. The params are drawn
    at random, for a first model of zeros would hide what it multiplies. It costs one compilation
    of the loss on two examples, once for each loss and shapes; a computation that has passed with
    a key is not done again without one.

    A loss passes where there is nothing to compare: it or the examples are being traced, all
    examples are alike, its values are not finite, or it has side effects, which would be seen.

    Args:
      values_of: its values by name, "loss" among them.
      params: arrays, or their shapes.
      name: of the loss, where it is another argument.
      with_key: whether the loss is given the key, or None in its place.

    Raises:
      ValueError: naming the value, and what it changed with.
    """
    leaves, structure = jax.tree.flatten(examples)
    shapes = str([(str(x.dtype), x.shape) for x in jax.tree.leaves(params)])
    shapes += str([(str(x.dtype), x.shape[1:]) for x in leaves])
    call = f"{shapes} {with_key}"
    passed = _passed(loss_fn)
    rows = None if call in passed else _three_different(leaves)
    if rows is None:
        return

    def block(chosen: str) -> PyTree:
        places = ["abc".index(row) for row in chosen]
        return jax.tree.unflatten(structure, [x[places] for x in rows])

    def computation(chosen: str) -> tuple[ClosedJaxpr, dict[str, Any]]:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        trace = jax.make_jaxpr(lambda *arguments: values_of(*arguments), return_shape=True)
        return trace(shapes, block(chosen), jax.eval_shape(lambda: jax.random.key(0)))

    of_two, named = computation("ab")
    if of_two.effects or not all(map(is_concrete, of_two.consts)):
        return
    numbers = list(_numbers(of_two))
    computed = fingerprint([shapes, _ADDRESS.sub("", str(of_two.jaxpr)), numbers])
    if computed in passed:
        passed.add(call)
        return
    of_three, _ = computation("aba")
    blocks = ["ab", "ac", "aa", "cb", "ba"]
    if numbers != list(_numbers(of_three)):
        blocks.append("aba")

    def values_at(params: Params) -> Found:
        values_of_block: Found = {}
        programs: dict[int, Callable[..., Any]] = {}
        for chosen in blocks:
            arguments = (*jax.tree.leaves(params), *jax.tree.leaves(block(chosen)), key)
            size = len(chosen)
            if size not in programs:
                program = jaxpr_as_fun(of_two if size == 2 else of_three)
                programs[size] = jax.jit(program).lower(*arguments).compile()
            values = map(np.asarray, programs[size](*arguments))
            values_of_block[chosen] = dict(zip(sorted(named), values, strict=True))
        return values_of_block

    # This may be called within a trace, of which these computations must not become a part.
    with jax.ensure_compile_time_eval(), jax.debug_nans(False), jax.debug_infs(False):
        key = jax.random.key(0)
        values_of_blocks = values_at(_drawn(params))
        if not _is_finite(values_of_blocks) and all(map(_has_value, jax.tree.leaves(params))):
            # Random params may be impossible, as a negative variance; then the real ones are used.
            values_of_blocks = values_at(params)
    if not _is_finite(values_of_blocks):
        return
    alone = not is_used(of_two.jaxpr, of_two.jaxpr.invars[-1])
    for value in sorted(named):

        def compare(row: int, other_block: str, place: int, when: str, value: str = value) -> None:
            _compare(name, values_of_blocks, value, row, other_block, place, when)

        for row, other_block in ((0, "ac"), (0, "aa"), (1, "cb")):
            compare(row, other_block, row, "another example of its block is exchanged")
        for row in (0, 1) if alone and value == "loss" else ():
            compare(row, "ba", 1 - row, "the examples of its block change places")
            if "aba" in values_of_blocks:
                compare(row, "aba", row, "its block grows from two examples to three")
    passed |= {call, computed}


def _passed(loss_fn: Any) -> set[str]:
    """The shapes for which this loss has passed; a loss without weak references has none."""
    try:
        return _PASSED.setdefault(loss_fn, set())
    except TypeError:
        return set()


def _compare(
    argument: str,
    values_of_blocks: Found,
    name: str,
    row: int,
    other_block: str,
    place: int,
    when: str,
) -> None:
    """Refuses an example whose value differs between the block [a, b] and another block.

    Raises:
      ValueError: with both values.
    """
    first, second = values_of_blocks["ab"][name], values_of_blocks[other_block][name]
    before, after = float(first[row]), float(second[place])
    if not np.isfinite([before, after]).all():  # a value other than the loss may be infinite
        return
    dtype = first.dtype
    largest = max(float(np.abs(x.astype(np.float64)).max()) for x in (first, second))
    unit = float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else 0.0
    allowed = min(_ROUNDING * unit, unit**0.5)
    if row == place and len(second) == len(first):  # 16-bit values of sums in 32 bits
        allowed = min(_ALIKE * unit, _ALIKE * float(jnp.finfo(jnp.float32).eps) + 2 * unit)
    if abs(before - after) > allowed * largest:
        raise ValueError(
            f"{argument} must return of each example a {name} of its own, whatever else is in the "
            f"block; one went from {before:.6g} to {after:.6g} when {when}. {_INSTEAD}"
        )


def _is_finite(values_of_blocks: Found) -> bool:
    return all(
        np.isfinite(values["loss"].astype(np.float64)).all() for values in values_of_blocks.values()
    )


def _has_value(x: Any) -> bool:
    return is_concrete(x) and not isinstance(x, jax.ShapeDtypeStruct)


def _three_different(leaves: list[Any]) -> list[np.ndarray] | None:
    """Three examples that differ in as many leaves as possible, [3, ...]; None if all are equal."""
    if not all(map(_has_value, leaves)):
        return None
    if not all(x.is_fully_addressable for x in leaves if isinstance(x, jax.Array)):
        return None
    with jax.ensure_compile_time_eval():
        heads = [np.asarray(x[:_LOOKED_AT]) for x in leaves]

    def differ(row: int) -> np.ndarray:
        """Int[n], in how many leaves each example differs from this one."""
        flat = [(x != x[row]).reshape(len(x), -1).any(axis=1) for x in heads]
        return np.sum(flat, axis=0)

    from_a = differ(0)
    b = int(from_a.argmax())
    c = int(np.minimum(from_a, differ(b)).argmax())
    if not from_a[b]:
        return None
    # If there are only two different examples, c equals a, and [a, c] is a block as padding has it.
    return [x[[0, b, c]] for x in heads]


def _drawn(params: Params) -> Params:
    """Random params of these shapes, in size about 1 / sqrt(inputs), as a first model's are."""
    rng = np.random.default_rng(0)

    def draw(x: Any) -> np.ndarray:
        shape = jnp.shape(x)
        scale = (shape[-1] / max(math.prod(shape), 1)) ** 0.5 if len(shape) > 1 else 0.5
        numbers = (rng.random(shape, np.float32) * 2 - 1) * np.float32(3**0.5 * scale)
        return np.asarray(numbers).astype(x.dtype)

    return jax.tree.map(draw, params)


def _numbers(computation: ClosedJaxpr | Jaxpr) -> Iterator[str]:
    """The numbers written into a computation, in order."""
    consts = computation.consts if isinstance(computation, ClosedJaxpr) else []
    yield from (f"{np.shape(x)} {np.asarray(x).tobytes()!r}" for x in consts if _is_number(x))
    graph = computation.jaxpr if isinstance(computation, ClosedJaxpr) else computation
    for equation in graph.eqns:
        yield from (repr(x.val) for x in equation.invars if isinstance(x, Literal))
        for inner in inner_of(equation):
            yield from _numbers(inner)


def _is_number(x: Any) -> bool:
    return is_concrete(x) and not is_key(x)
