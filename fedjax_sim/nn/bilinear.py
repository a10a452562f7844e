"""A convolution whose derivatives and batches stay fast inside a loop on a CPU.

XLA's CPU compiler has a fast kernel for channels-last convolutions. The derivatives that JAX makes
of one are not channels-last. A compiler pass corrects that in a program's outermost computation,
but not inside a `scan` or `while_loop`, nor for the grouped convolutions that `vmap` over kernels
makes; a step of the CNN is then about ten times slower.

So the three bilinear maps between images, kernels and outputs are primitives here,

    Y = convolve(X, W),    X = pull_image(Y, W),    W = pull_kernel(X, Y),

each the transpose of the others. So a derivative of one is again one of them, to any order and in
either mode, and on a CPU each is lowered to the fast kernel's layout. On other platforms they are
lowered to XLA's own convolutions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fedjax_sim.core.types import Array
from fedjax_sim.nn.primitives import bind, lower


class Geometry(NamedTuple):
    """The sizes that the three maps share. [N, *image, C], [*window, C / groups, O]."""

    image: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    precision: Any

    @property
    def dilated_image(self) -> tuple[int, ...]:
        return dilate(self.image, self.lhs_dilation)

    @property
    def dilated_window(self) -> tuple[int, ...]:
        return dilate(self.window, self.rhs_dilation)

    @property
    def output(self) -> tuple[int, ...]:
        spatial = zip(
            self.dilated_image, self.dilated_window, self.padding, self.strides, strict=True
        )
        return tuple(max(0, (n + lo + hi - k) // s + 1) for n, k, (lo, hi), s in spatial)


def dilate(sizes: tuple[int, ...], factors: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes with factor - 1 holes between neighbours."""
    return tuple(1 + (n - 1) * d if n else 0 for n, d in zip(sizes, factors, strict=True))


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


def _sizes(g: Geometry) -> tuple[tuple[int, ...], ...]:
    return g.dilated_image, g.dilated_window, dilate(g.output, g.strides)


def _fast_image(y: Array, w: Array, g: Geometry) -> Array:
    """dX = Y * rot180(W), with C and O exchanged within each group."""
    n = len(g.window)
    w = w[(slice(None, None, -1),) * n]
    inputs, outputs = w.shape[-2], w.shape[-1] // g.groups
    w = w.reshape(*w.shape[:-1], g.groups, outputs)  # [*window, C / g, g, O / g]
    w = jnp.moveaxis(w, -1, n).swapaxes(-1, -2)
    w = w.reshape(*w.shape[:-2], g.groups * inputs)  # [*window, O / g, C]
    before = [k - 1 - lo for k, (lo, _) in zip(g.dilated_window, g.padding, strict=True)]
    padding = tuple(
        (lo, m + k - 1 - out - lo) for m, k, out, lo in zip(*_sizes(g), before, strict=True)
    )
    back = g._replace(
        strides=g.lhs_dilation, padding=padding, lhs_dilation=g.strides, image=g.output
    )
    return _own(y, w, back)


def _fast_kernel(x: Array, y: Array, g: Geometry) -> Array:
    """dW = X * Y over the pixels, where batch and channels exchange their parts."""
    examples, channels = x.shape[0], x.shape[-1] // g.groups
    if 0 in g.output:  # without pixels the output would be a window of size 0, which is refused
        return jnp.zeros((*g.window, channels, y.shape[-1]), x.dtype)
    x = x.reshape(*x.shape[:-1], g.groups, channels)  # [N, *image, g, C / g]
    x = jnp.moveaxis(x, (-1, 0), (0, -1))
    x = x.reshape(*x.shape[:-2], g.groups * examples)  # [C / g, *image, g N]
    y = jnp.moveaxis(y, 0, -2)  # [*output, N, O]
    padding = tuple(
        (lo, out - m + k - 1 - lo) for m, k, out, (lo, _) in zip(*_sizes(g), g.padding, strict=True)
    )
    back = g._replace(
        strides=g.rhs_dilation, padding=padding, rhs_dilation=g.strides, window=g.output
    )
    return jnp.moveaxis(_own(x, y, back), 0, -2)


def _loop(f: Callable[..., Array], a: Array, b: Array) -> Array:
    """Lanes one after another: grouped convolutions are slow on a CPU."""
    return lax.map(lambda ab: f(*ab), (a, b))


# The primitives. `lanes`: both operands and the result have a leading axis over lanes.


convolve = Primitive("convolve")
pull_image = Primitive("pull_image")
pull_kernel = Primitive("pull_kernel")


def _convolve_shape(x: Any, w: Any, *, geometry: Geometry, lanes: bool) -> Any:
    return x.update(shape=(*x.shape[: 1 + lanes], *geometry.output, w.shape[-1]))


def _image_shape(y: Any, w: Any, *, geometry: Geometry, lanes: bool) -> Any:
    channels = w.shape[-2] * geometry.groups
    return y.update(shape=(*y.shape[: 1 + lanes], *geometry.image, channels))


def _kernel_shape(x: Any, y: Any, *, geometry: Geometry, lanes: bool) -> Any:
    channels = (x.shape[-1] // geometry.groups, y.shape[-1])
    return x.update(shape=(*x.shape[:lanes], *geometry.window, *channels))


def _of_lanes(function: Callable[..., Array], over: Callable[..., Callable[..., Array]]) -> Any:
    def of_lanes(a: Array, b: Array, *, geometry: Geometry, lanes: bool) -> Array:
        for_one_lane = partial(function, g=geometry)
        return over(for_one_lane)(a, b) if lanes else for_one_lane(a, b)

    return of_lanes


for _map, _shape, _everywhere, _cpu in (
    (convolve, _convolve_shape, _own, _own),
    (pull_image, _image_shape, _own_image, _fast_image),
    (pull_kernel, _kernel_shape, _own_kernel, _fast_kernel),
):
    _map.def_abstract_eval(_shape)
    _by_vmap = _of_lanes(_everywhere, jax.vmap)
    _by_loop = _of_lanes(_cpu, lambda f: partial(_loop, f))
    _map.def_impl(_by_vmap)  # outside of a compiled function there is no loop to be fast in
    mlir.register_lowering(_map, lower(_by_vmap))
    mlir.register_lowering(_map, lower(_by_loop), platform="cpu")

ad.defbilinear(
    convolve,
    lambda ct, x, w, **params: bind(pull_image, ct, w, **params),
    lambda ct, x, w, **params: bind(pull_kernel, x, ct, **params),
)
ad.defbilinear(
    pull_image,
    lambda ct, y, w, **params: bind(convolve, ct, w, **params),
    lambda ct, y, w, **params: bind(pull_kernel, ct, y, **params),
)
ad.defbilinear(
    pull_kernel,
    lambda ct, x, y, **params: bind(pull_image, y, ct, **params),
    lambda ct, x, y, **params: bind(convolve, x, ct, **params),
)

# Batching. Where one operand alone is batched, its batch joins an axis of its own that the
# result has too: the axis's place (from the end where negative) and whether it is grouped.
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
    make = partial(bind, primitive, geometry=geometry)
    if all(dim is not None for dim in dims):
        a, b = (jnp.moveaxis(x, dim, 0) for x, dim in zip(args, dims, strict=True))
        if not lanes:
            return make(a, b, lanes=True), 0
        outer = a.shape[:2]
        a, b = (x.reshape(outer[0] * outer[1], *x.shape[2:]) for x in (a, b))
        out = make(a, b, lanes=True)
        return out.reshape(*outer, *out.shape[1:]), 0
    i = 0 if dims[0] is not None else 1
    inward, outward = places[i]
    size = args[i].shape[dims[i]]
    operands = list(args)
    operands[i] = _fold(args[i], dims[i], inward, geometry.groups, lanes)
    out = make(*operands, lanes=lanes)
    return _unfold(out, size, outward, geometry.groups, lanes), 0


for _map, _places in (
    (convolve, ((_N, _N), (_O, _O))),
    (pull_image, ((_N, _N), (_I, _C))),
    (pull_kernel, ((_C, _I), (_O, _O))),
):
    batching.primitive_batchers[_map] = partial(_batch, _map, _places)
