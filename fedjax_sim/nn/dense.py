"""A matrix product for flax's dense layers whose gradient by the kernel is fast on a CPU."""

from collections.abc import Callable
from functools import partial, reduce
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fedjax_sim.core.types import Array
from fedjax_sim.nn.primitives import bind, lower, precision_of

# XLA's CPU compiler computes x^T d element by element if the result has few columns, and rewrites
# (d^T x)^T as x^T d unless a barrier is between.
_NARROW = 16
# It hands other products to a library. Of so few rows x^T d is faster as a sum of outer products,
# which is one loop over the kernel's elements that the optimizer's step joins; in more columns
# the rows of d displace each other in the cache (`python -m benchmarks.layers`).
_FEW_ROWS, _MOST_COLUMNS = 16, 512
# The library is faster if x^T is laid out first, except for sizes where the copy costs more than
# it gains.
_FEW_COLUMNS, _WIDE = 128, 2

# The transpose of the last two axes; on a CPU with a barrier before or after it, so that no
# product on that side can swallow it.
_flip = Primitive("flip")
_TRANSPOSED = {"none": "before", "before": "none", "after": "before"}


def _swap(x: Array, *, barrier: str) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _swap_behind(x: Array, *, barrier: str) -> Array:
    x = lax.optimization_barrier(x) if barrier == "before" else x
    x = jnp.swapaxes(x, -1, -2)
    return lax.optimization_barrier(x) if barrier == "after" else x


def _abstract(x: Any, *, barrier: str) -> Any:
    return x.update(shape=(*x.shape[:-2], x.shape[-1], x.shape[-2]))


def _batch(args: Any, dims: Any, *, barrier: str) -> tuple[Array, int]:
    return _flip.bind(jnp.moveaxis(args[0], dims[0], 0), barrier=barrier), 0


_flip.def_impl(_swap)
_flip.def_abstract_eval(_abstract)
mlir.register_lowering(_flip, lower(_swap))
mlir.register_lowering(_flip, lower(_swap_behind), platform="cpu")
ad.deflinear2(_flip, lambda ct, x, *, barrier: [_flip.bind(ct, barrier=_TRANSPOSED[barrier])])
batching.primitive_batchers[_flip] = _batch


# The product of few rows and its kernel's gradient are primitives, each the transpose of the other:
#
#     y = multiply(x, W),    W = pull_kernel(x, y),    [..., B, K], [..., K, N], [..., B, N].


def _product_of_rows(x: Array, w: Array, *, precision: Any) -> Array:
    return jnp.matmul(x, w, precision=precision)


def _kernel_of_rows(x: Array, y: Array, *, precision: Any) -> Array:
    return jnp.matmul(jnp.swapaxes(x, -1, -2), y, precision=precision)


def _sum_of_outer_products(x: Array, y: Array, *, precision: Any) -> Array:
    # The loop would make each of y's elements anew for each of the K rows: XLA takes all that is
    # cheap into a loop, and its barriers are gone by then. A gather is not cheap to it.
    rows = lax.optimization_barrier(jnp.arange(x.shape[-2], dtype=jnp.int32))
    x, y = (z.at[..., rows, :].get(mode="promise_in_bounds") for z in (x, y))
    terms = (x[..., b, :, None] * y[..., b, None, :] for b in range(x.shape[-2]))
    return reduce(jnp.add, terms)


def _primitive(name: str, function: Callable[..., Array]) -> Primitive:
    """A bilinear primitive that is `function`, and so is its batch where one operand has none."""
    primitive = Primitive(name)

    def shape(a: Any, b: Any, **params: Any) -> Any:
        like = jax.eval_shape(partial(function, **params), *(_plain(x) for x in (a, b)))
        return a.update(shape=like.shape, weak_type=a.weak_type and b.weak_type)

    def batch(args: Any, dims: Any, **params: Any) -> tuple[Array, int]:
        if None in dims:  # one product over all lanes
            return jax.vmap(partial(function, **params), in_axes=tuple(dims))(*args), 0
        leading = (jnp.moveaxis(x, dim, 0) for x, dim in zip(args, dims, strict=True))
        return bind(primitive, *leading, **params), 0

    primitive.def_impl(function)
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, lower(function))
    batching.primitive_batchers[primitive] = batch
    return primitive


def _plain(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


_multiply = _primitive("multiply_rows", _product_of_rows)
_pull_kernel = _primitive("pull_kernel_of_rows", _kernel_of_rows)
_summed = lower(_sum_of_outer_products)
mlir.register_lowering(_pull_kernel, _summed, platform="cpu")

ad.defbilinear(
    _multiply,
    lambda ct, x, w, **params: _product_of_rows(ct, jnp.swapaxes(w, -1, -2), **params),
    lambda ct, x, w, **params: bind(_pull_kernel, x, ct, **params),
)
ad.defbilinear(
    _pull_kernel,
    lambda ct, x, y, **params: _product_of_rows(y, jnp.swapaxes(ct, -1, -2), **params),
    lambda ct, x, y, **params: bind(_multiply, x, ct, **params),
)


def weigh(x: Array, w: Array, **options: Any) -> Array:
    """x w, whose transpose by w lays x^T out before it multiplies. [..., K], [K, N]."""
    rows = x.reshape(-1, x.shape[-1])
    product = lax.dot_general(
        _flip.bind(rows, barrier="after"), w, (((0,), (0,)), ((), ())), **options
    )
    return product.reshape(*x.shape[:-1], w.shape[1])


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _product(x: Array, w: Array, options: tuple[tuple[str, Any], ...]) -> Array:
    return lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), **dict(options))


@partial(_product.defjvp, symbolic_zeros=True)
def _product_jvp(options: Any, primals: Any, tangents: Any) -> Any:
    (x, w), (dx, dw) = primals, tangents
    out = _product(x, w, options)
    terms = [] if isinstance(dx, SymbolicZero) else [_product(dx, w, options)]
    if not isinstance(dw, SymbolicZero):
        terms.append(weigh(x, dw, **dict(options)))
    return out, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(out)


def dot_general(
    lhs: Array,
    rhs: Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    **kwargs: Any,
) -> Array:
    """A product, as `jax.lax.dot_general`, for dense layers on a CPU.

    `y = x W`. For flax's layers: `linen.Dense(..., dot_general=dot_general)`, and so in
    nnx. Values, arguments and derivatives (either mode, any order) are those of `jax.lax`.
    Where W is a matrix, its gradient `x^T d` is computed in the form that XLA's CPU
    compiler has a fast kernel for: as `(d^T x)^T` if W has at most 16 columns; as a sum of outer
    products if x has at most 16 rows, W at most 512 columns and both 32 bits or more; else with
    x^T laid out first if x has fewer than 16 rows, or W at most 128 columns or more than twice as
    many as rows.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> layer = nn.Dense(10, dot_general=dot_general)
    >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 784)))[0].shape
    (2, 10)
    """
    options = {"precision": precision, "preferred_element_type": preferred_element_type}
    (contracted, rhs_contracted), batch = dimension_numbers
    is_by_matrix = tuple(rhs_contracted) == (0,) and not any(map(len, batch)) and rhs.ndim == 2
    if is_by_matrix and _has_plain_shape(lhs) and _has_plain_shape(rhs):
        height, width = rhs.shape
        if width <= _NARROW:
            rhs = _flip.bind(rhs, barrier="none")
            dimension_numbers = (contracted, (1,)), batch
        elif tuple(contracted) == (lhs.ndim - 1,) and not kwargs and _is_real(lhs, rhs):
            rows = prod(lhs.shape[:-1])
            if 0 < rows <= _FEW_ROWS and width <= _MOST_COLUMNS and _is_summed(lhs, options):
                flat = lhs.reshape(rows, height)
                product = bind(_multiply, flat, rhs, precision=precision_of(precision))
                return product.reshape(*lhs.shape[:-1], width)
            if rows < _FEW_ROWS or width <= _FEW_COLUMNS or width > _WIDE * height:
                return _product(lhs, rhs, tuple(options.items()))
    return lax.dot_general(lhs, rhs, dimension_numbers, **options, **kwargs)


def _has_plain_shape(x: Array) -> bool:
    """Whether no size is a symbol of an export, nor an axis dealt over an explicit mesh."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    is_dealt = sharding is not None and any(axis is not None for axis in sharding.spec)
    return not is_dealt and all(isinstance(size, int) for size in x.shape)


def _is_summed(lhs: Array, options: dict[str, Any]) -> bool:
    """Whether sums of this type are those of a product: 16 bits would be rounded at each term."""
    of_kind = options["preferred_element_type"] in (None, lhs.dtype)
    return of_kind and jnp.finfo(lhs.dtype).bits >= 32


def _is_real(lhs: Array, rhs: Array) -> bool:
    return lhs.dtype == rhs.dtype and jnp.issubdtype(lhs.dtype, jnp.floating)
