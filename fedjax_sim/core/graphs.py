"""Traced computations, looked at equation by equation."""

from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def inner_of(equation: Any) -> Iterator[ClosedJaxpr | Jaxpr]:
    """The computations inside an equation: of a loop, a branch or a compiled function."""
    for value in equation.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, (ClosedJaxpr, Jaxpr)):
                yield part


def operations(computation: ClosedJaxpr | Jaxpr) -> Iterator[str]:
    """The names of a computation's operations, and of those inside them."""
    graph = computation.jaxpr if isinstance(computation, ClosedJaxpr) else computation
    for equation in graph.eqns:
        yield equation.primitive.name
        for inner in inner_of(equation):
            yield from operations(inner)


def is_used(graph: Jaxpr, variable: Any) -> bool:
    """Whether an operation takes this variable, also inside compiled functions."""
    for equation in graph.eqns:
        places = [i for i, x in enumerate(equation.invars) if x is variable]
        called = list(inner_of(equation)) if equation.primitive.name in ("jit", "pjit") else []
        if places and not called:
            return True
        for inner in called:
            body = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            if any(is_used(body, body.invars[i]) for i in places):
                return True
    return any(x is variable for x in graph.outvars)
