"""A convolution whose derivatives and batches stay fast inside a loop on a CPU.

XLA's CPU compiler has a fast kernel for channels-last convolutions. What JAX derives from one
is not channels-last; a pass mends that in a program's outermost computation, but not inside
a `scan` or `while_loop`, nor for the grouped convolutions that `vmap` over kernels makes, and
those are 10 to 40 times slower.

So the three bilinear maps between images, kernels and outputs are primitives here,

    Y = convolve(X, W),    X = pull_image(Y, W),    W = pull_kernel(X, Y),

each the transpose of the others: what is derived from one is again one of them, to any
order and in either mode, and on a CPU each is lowered to the fast kernel's layout. Elsewhere
they are lowered to what XLA has of its own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fedjax_sim.base import Array

Pairs = tuple[tuple[int, int], ...]


class Geometry(NamedTuple):
    """What the three maps share. Images are [N, *image, C], kernels [*window, C / groups, O]."""

    image: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Pairs
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    precision: Any

    @property
    def dilated_image(self) -> tuple[int, ...]:
        return _dilate(self.image, self.lhs_dilation)

    @property
    def dilated_window(self) -> tuple[int, ...]:
        return _dilate(self.window, self.rhs_dilation)

    @property
    def output(self) -> tuple[int, ...]:
        sizes = zip(self.dilated_image, self.dilated_window, self.padding, self.strides)
        return tuple(max(0, (n + lo + hi - k) // s + 1) for n, k, (lo, hi), s in sizes)


def _dilate(sizes: tuple[int, ...], factors: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 + (n - 1) * d if n else 0 for n, d in zip(sizes, factors))


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Array:
    own = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )
    result = jax.eval_shape(own, lhs, rhs)  # refuses what does not fit
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    if not _is_ours(lhs, rhs, result.dtype, batch_group_count, out_sharding):
        return own(lhs, rhs)
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    (batch, features, *image), (outputs, inputs, *window) = numbers.lhs_spec, numbers.rhs_spec
    ones = (1,) * len(image)
    window_shape = tuple(rhs.shape[i] for i in window)
    image_shape = tuple(lhs.shape[i] for i in image)
    rhs_dilation = tuple(rhs_dilation or ones)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(
            image_shape, _dilate(window_shape, rhs_dilation), window_strides, padding
        )
    geometry = Geometry(
        image_shape,
        window_shape,
        tuple(window_strides),
        tuple((int(lo), int(hi)) for lo, hi in padding),
        tuple(lhs_dilation or ones),
        rhs_dilation,
        feature_group_count,
        precision,
    )
    lhs = jnp.transpose(lhs, (batch, *image, features))
    rhs = jnp.transpose(rhs, (*window, inputs, outputs))
    out = _bind(convolve, lhs, rhs, geometry=geometry, lanes=False)
    back = numbers.out_spec
    order = sorted(range(len(back)), key=[back[0], *back[2:], back[1]].__getitem__)
    return jnp.transpose(out, order)


def _is_ours(lhs: Array, rhs: Array, out: Any, batch_groups: int, out_sharding: Any) -> bool:
    floating = jnp.issubdtype(lhs.dtype, jnp.floating)
    same = lhs.dtype == rhs.dtype == out
    return floating and same and batch_groups == 1 and out_sharding is None and lhs.ndim > 2


def _varying(x: Array) -> frozenset[str]:
    """The axes of `shard_map` over which x varies; JAX renamed where it says so."""
    kind: Any = jax.typeof(x)
    return frozenset(kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying)


def _bind(primitive: Primitive, a: Array, b: Array, **params: Any) -> Array:
    """Binds; inside `shard_map`, what varies less is first marked as varying like the other."""
    axes = _varying(a) | _varying(b)
    missing = [tuple(axes - _varying(x)) for x in (a, b)]
    a, b = (lax.pcast(x, m, to="varying") if m else x for x, m in zip((a, b), missing))
    return primitive.bind(a, b, **params)


# The maps as plain functions, without an axis over lanes.


def _own(x: Array, w: Array, g: Geometry) -> Array:
    spatial = "".join(chr(ord("a") + i) for i in range(len(g.image)))
    return lax.conv_general_dilated(
        x,
        w,
        g.strides,
        g.padding,
        g.lhs_dilation,
        g.rhs_dilation,
        (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        g.groups,
        precision=g.precision,
    )


def _own_image(y: Array, w: Array, g: Geometry) -> Array:
    image = jax.ShapeDtypeStruct((y.shape[0], *g.image, w.shape[-2] * g.groups), y.dtype)
    return jax.linear_transpose(lambda x: _own(x, w, g), image)(y)[0]


def _own_kernel(x: Array, y: Array, g: Geometry) -> Array:
    shape = (*g.window, x.shape[-1] // g.groups, y.shape[-1])
    return jax.linear_transpose(lambda w: _own(x, w, g), jax.ShapeDtypeStruct(shape, x.dtype))(y)[0]


def _fast_image(y: Array, w: Array, g: Geometry) -> Array:
    """dX = Y * rot180(W), with C and O exchanged within each group."""
    n = len(g.window)
    w = w[(slice(None, None, -1),) * n]
    w = w.reshape(*w.shape[:-1], g.groups, -1)  # [*window, C / g, g, O / g]
    w = jnp.moveaxis(w, -1, n).swapaxes(-1, -2)
    w = w.reshape(*w.shape[:-2], -1)  # [*window, O / g, C]
    before = [k - 1 - lo for k, (lo, _) in zip(g.dilated_window, g.padding)]
    sizes = zip(g.dilated_image, g.dilated_window, _dilate(g.output, g.strides), before)
    padding = tuple((lo, m + k - 1 - out - lo) for m, k, out, lo in sizes)
    back = g._replace(
        strides=g.lhs_dilation, padding=padding, lhs_dilation=g.strides, image=g.output
    )
    return _own(y, w, back)


def _fast_kernel(x: Array, y: Array, g: Geometry) -> Array:
    """dW = X * Y over the pixels, where batch and channels exchange their parts."""
    x = x.reshape(*x.shape[:-1], g.groups, -1)  # [N, *image, g, C / g]
    x = jnp.moveaxis(x, (-1, 0), (0, -1))
    x = x.reshape(*x.shape[:-2], -1)  # [C / g, *image, g N]
    y = jnp.moveaxis(y, 0, -2)  # [*output, N, O]
    sizes = zip(g.dilated_image, g.dilated_window, _dilate(g.output, g.strides), g.padding)
    padding = tuple((lo, out - m + k - 1 - lo) for m, k, out, (lo, _) in sizes)
    back = g._replace(
        strides=g.rhs_dilation, padding=padding, rhs_dilation=g.strides, window=g.output
    )
    return jnp.moveaxis(_own(x, y, back), 0, -2)


def _loop(f: Callable[..., Array], a: Array, b: Array) -> Array:
    """Lanes one after another: grouped convolutions are slow on a CPU."""
    return lax.map(lambda ab: f(*ab), (a, b))


# The primitives. `lanes`: both operands and the result have a leading axis over lanes.


def _primitive(name: str) -> Primitive:
    made = Primitive(name)
    jitted = jax.jit(made.bind, static_argnames=("geometry", "lanes"))
    made.def_impl(jitted)
    return made


convolve = _primitive("convolve")
pull_image = _primitive("pull_image")
pull_kernel = _primitive("pull_kernel")


def _convolve_shape(x: Any, w: Any, *, geometry: Geometry, lanes: bool) -> Any:
    return x.update(shape=(*x.shape[: 1 + lanes], *geometry.output, w.shape[-1]))


def _image_shape(y: Any, w: Any, *, geometry: Geometry, lanes: bool) -> Any:
    channels = w.shape[-2] * geometry.groups
    return y.update(shape=(*y.shape[: 1 + lanes], *geometry.image, channels))


def _kernel_shape(x: Any, y: Any, *, geometry: Geometry, lanes: bool) -> Any:
    channels = (x.shape[-1] // geometry.groups, y.shape[-1])
    return x.update(shape=(*x.shape[:lanes], *geometry.window, *channels))


def _lower(own: Callable[..., Array], over: Callable[..., Callable[..., Array]]) -> Any:
    def lowered(a: Array, b: Array, *, geometry: Geometry, lanes: bool) -> Array:
        one = partial(own, g=geometry)
        return over(one)(a, b) if lanes else one(a, b)

    return mlir.lower_fun(lowered, multiple_results=False)


for _made, _shape, _everywhere, _cpu in (
    (convolve, _convolve_shape, _own, _own),
    (pull_image, _image_shape, _own_image, _fast_image),
    (pull_kernel, _kernel_shape, _own_kernel, _fast_kernel),
):
    _made.def_abstract_eval(_shape)
    mlir.register_lowering(_made, _lower(_everywhere, jax.vmap))
    mlir.register_lowering(_made, _lower(_cpu, lambda f: partial(_loop, f)), platform="cpu")

ad.defbilinear(
    convolve,
    lambda ct, x, w, **params: _bind(pull_image, ct, w, **params),
    lambda ct, x, w, **params: _bind(pull_kernel, x, ct, **params),
)
ad.defbilinear(
    pull_image,
    lambda ct, y, w, **params: _bind(convolve, ct, w, **params),
    lambda ct, y, w, **params: _bind(pull_kernel, ct, y, **params),
)
ad.defbilinear(
    pull_kernel,
    lambda ct, x, y, **params: _bind(pull_image, y, ct, **params),
    lambda ct, x, y, **params: _bind(convolve, x, ct, **params),
)

# Batching. Where one operand alone is batched, its batch joins an axis of its own that the
# result has too: the axis's place, counted from the end where negative, and whether its groups lie outside.
_N, _C, _I, _O = (0, False), (-1, True), (-2, False), (-1, True)


def _fold(x: Array, dim: int, place: tuple[int, bool], groups: int, lanes: bool) -> Array:
    axis, grouped = place
    x = jnp.moveaxis(x, dim, 0)
    axis = axis + 1 + lanes if axis >= 0 else x.ndim + axis
    shape = x.shape
    outer = groups if grouped else 1
    x = x.reshape(*shape[:axis], outer, shape[axis] // outer, *shape[axis + 1 :])
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*shape[1:axis], shape[0] * shape[axis], *shape[axis + 1 :])


def _unfold(x: Array, size: int, place: tuple[int, bool], groups: int, lanes: bool) -> Array:
    axis, grouped = place
    axis = axis + lanes if axis >= 0 else x.ndim + axis
    shape = x.shape
    outer = groups if grouped else 1
    x = x.reshape(*shape[:axis], outer, size, shape[axis] // (outer * size), *shape[axis + 1 :])
    x = jnp.moveaxis(x, axis + 1, 0)
    return x.reshape(size, *shape[:axis], shape[axis] // size, *shape[axis + 1 :])


def _batch(
    primitive: Primitive,
    places: tuple[Any, Any],
    args: tuple[Array, Array],
    dims: tuple[Any, Any],
    *,
    geometry: Geometry,
    lanes: bool,
) -> tuple[Array, int]:
    bind = partial(_bind, primitive, geometry=geometry)
    if all(dim is not None for dim in dims):
        a, b = (jnp.moveaxis(x, dim, 0) for x, dim in zip(args, dims))
        if not lanes:
            return bind(a, b, lanes=True), 0
        outer = a.shape[:2]
        a, b = (x.reshape(-1, *x.shape[2:]) for x in (a, b))
        out = bind(a, b, lanes=True)
        return out.reshape(*outer, *out.shape[1:]), 0
    i = 0 if dims[0] is not None else 1
    inward, outward = places[i]
    size = args[i].shape[dims[i]]
    operands = list(args)
    operands[i] = _fold(args[i], dims[i], inward, geometry.groups, lanes)
    out = bind(*operands, lanes=lanes)
    return _unfold(out, size, outward, geometry.groups, lanes), 0


for _made, _places in (
    (convolve, ((_N, _N), (_O, _O))),
    (pull_image, ((_N, _N), (_I, _C))),
    (pull_kernel, ((_C, _I), (_O, _O))),
):
    batching.primitive_batchers[_made] = partial(_batch, _made, _places)
