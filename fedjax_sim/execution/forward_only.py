"""An identity whose transpose raises an error that names the strategy."""

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fedjax_sim.core.types import PyTree

# A loop of unknown length cannot be transposed. JAX's own error does not name the strategy; this
# primitive is applied to the loop's outputs, so that its error comes first.
_forward_only = Primitive("forward_only")
_forward_only.def_impl(lambda x, strategy: x)
_forward_only.def_abstract_eval(lambda x, strategy: x)
mlir.register_lowering(_forward_only, lambda context, x, strategy: [x])
batching.defvectorized(_forward_only)


def _refuse(*args: Any, strategy: str, **kwargs: Any) -> None:
    raise ValueError(
        f"reverse-mode differentiation (grad, vjp) cannot go through {strategy}, whose loop has no "
        "fixed length; use execution.vmapped() (or forward mode: jvp, jacfwd)"
    )


ad.deflinear2(_forward_only, _refuse)


def forward_only(tree: PyTree, strategy: str) -> PyTree:
    """The tree itself; its transpose raises a ValueError that names the strategy."""
    return jax.tree.map(lambda x: _forward_only.bind(x, strategy=strategy), tree)
