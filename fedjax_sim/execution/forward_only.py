"""An identity that says clearly why reverse-mode differentiation cannot go on."""

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fedjax_sim.core.types import PyTree

# A loop of unknown length has no transpose. JAX says so in its own words, which do not
# name the strategy; cotangents meet this first, since it stands on the loop's outputs.
_forward_only = Primitive("forward_only")
_forward_only.def_impl(lambda x, what: x)
_forward_only.def_abstract_eval(lambda x, what: x)
mlir.register_lowering(_forward_only, lambda context, x, what: [x])
batching.defvectorized(_forward_only)


def _refuse(*args: Any, what: str, **kwargs: Any) -> None:
    raise ValueError(
        f"reverse-mode differentiation (grad, vjp) cannot go through {what}, whose loop has no "
        "fixed length; use execution.vmapped() (or forward mode: jvp, jacfwd)"
    )


ad.deflinear2(_forward_only, _refuse)


def forward_only(tree: PyTree, what: str) -> PyTree:
    """The tree itself; its transpose raises a ValueError that names `what`."""
    return jax.tree.map(lambda x: _forward_only.bind(x, what=what), tree)
