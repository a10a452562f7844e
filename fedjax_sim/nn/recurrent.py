"""An LSTM layer that multiplies by its large matrices outside the loop over time where it can.

Differentiating a loop over time adds at every step to a gradient as large as the recurrent kernel.
The rule here gives the loop the kernel's perturbation as a term of each step's gates, so that the
kernel's gradient is one product after the loop, in both modes. Second derivatives are right, too,
but are no single product.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from fedjax_sim.core.types import Array
from fedjax_sim.core.varying import vary_alike
from fedjax_sim.nn.dense import dot_general, weigh

Carry = tuple[Array, Array]  # c [..., H], h [..., H]


def lstm(
    x: Array, kernel: Array, recurrent_kernel: Array, bias: Array, carry: Carry | None = None
) -> tuple[Array, Carry]:
    """A layer of LSTM over sequences: all of h, and the last (c, h).

    With `i, f, g, o` the four parts of `x_t W + h_{t-1} U + b`,
    `c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)` and `h_t = sigmoid(o) tanh(c_t)`
    (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    Args:
      x: the inputs, [B, T, D].
      kernel: W, [D, 4 H].
      recurrent_kernel: U, [H, 4 H].
      bias: b, [4 H].
      carry: c_0 and h_0, [B, H] each; None for zeros.

    Returns:
      h, [B, T, H], and (c_T, h_T).

    Raises:
      ValueError: if the shapes do not fit.

    >>> h, _ = lstm(jnp.ones((2, 5, 3)), jnp.ones((3, 16)), jnp.ones((4, 16)), jnp.ones(16))
    >>> h.shape
    (2, 5, 4)
    """
    units = recurrent_kernel.shape[0]
    fits = {
        "kernel": (kernel.shape, (x.shape[-1], 4 * units)),
        "recurrent_kernel": (recurrent_kernel.shape, (units, 4 * units)),
        "bias": (bias.shape, (4 * units,)),
    }
    if x.ndim != 3:
        raise ValueError(f"x must have shape [B, T, D]; got {x.shape}")
    for name, (shape, allowed) in fits.items():
        if shape != allowed:
            raise ValueError(
                f"{name} must have shape {allowed} for x {x.shape} and {units} units; got {shape}"
            )
    if carry is None:
        zeros = jnp.zeros((x.shape[0], units), jnp.result_type(x, recurrent_kernel))
        carry = zeros, zeros
    for name, part in zip("ch", carry, strict=True):
        if part.shape != (x.shape[0], units):
            raise ValueError(
                f"carry's {name} must have shape {(x.shape[0], units)}; got {part.shape}"
            )
    # Time is the first axis here, so that a step's block is contiguous.
    inputs = dot_general(jnp.swapaxes(x, 0, 1), kernel, (((2,), (0,)), ((), ())))
    inputs += bias.reshape(1, 1, -1)
    c, h = _unroll(*vary_alike(inputs, recurrent_kernel, *carry))
    return jnp.swapaxes(h, 0, 1), (c, h[-1] if x.shape[1] else carry[1])


@jax.custom_jvp
def _unroll(z: Array, u: Array, c: Array, h: Array) -> tuple[Array, Array]:
    """The last c [B, H] and every h [T, B, H]; z are the inputs' parts [T, B, 4 H]."""
    return _forward(z, u, c, h)[:2]


def _forward(z: Array, u: Array, c: Array, h: Array) -> tuple[Array, Array, tuple[Array, Array]]:
    """As `_unroll`, with the gates and every c, which the derivative needs."""

    # One pass of tanh serves all four gates, because sigmoid(x) = (1 + tanh(x / 2)) / 2.
    units = u.shape[0]
    half = np.repeat(np.array([[0.5, 0.5, 1, 0.5]], z.dtype), units, axis=1)
    shift = np.repeat(np.array([[0.5, 0.5, 0, 0.5]], z.dtype), units, axis=1)

    def step(carry: Carry, z: Array) -> tuple[Carry, tuple[Array, Array, Array]]:
        c, h = carry
        gates = jnp.tanh((z + h @ u) * half) * half + shift
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (c, h), (h, c, gates)

    (c, _), (h, cs, gates) = jax.lax.scan(step, (c, h), z)
    return c, h, (cs, gates)


@_unroll.defjvp
def _unroll_jvp(primals: Any, tangents: Any) -> Any:
    (z, u, c, h), (dz, du, dc, dh) = primals, tangents
    last, hs, (cs, gates) = _forward(z, u, c, h)
    # These terms are elementwise or one product, so that only the recursion is left to the loop.
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    before_c, before_h = (jnp.concatenate([x[None], xs[:-1]]) for x, xs in ((c, cs), (h, hs)))
    squashed = jnp.tanh(cs)
    to_c = jnp.concatenate([g * i * (1 - i), before_c * f * (1 - f), i * (1 - g * g)], axis=-1)
    to_h, through = squashed * o * (1 - o), o * (1 - squashed * squashed)
    dz = dz + weigh(before_h, du)
    # In the loop's transpose, which is what a gradient runs, this is a product of rows.
    u_transposed = u.T

    def step(carry: Carry, at: tuple[Array, ...]) -> tuple[Carry, Array]:
        dc, dh = carry
        dz, f, to_c, to_h, through = at
        pushed = jax.lax.dot_general(dh, u_transposed, (((1,), (1,)), ((), ())))
        gates, out = jnp.split(dz + pushed, [3 * f.shape[-1]], axis=-1)
        di, df, dg = jnp.split(gates * to_c, 3, axis=-1)
        dc = f * dc + (di + df + dg)
        dh = to_h * out + through * dc
        return (dc, dh), dh

    (dlast, _), dhs = jax.lax.scan(step, (dc, dh), (dz, f, to_c, to_h, through))
    return (last, hs), (dlast, dhs)


class LSTM(linen.Module):
    """`lstm` as a flax (linen) layer: [B, T, D] to [B, T, features].

    The parameters are those of `linen.RNN(linen.OptimizedLSTMCell(features))`, and so are
    their initial values: either reads what the other made.

    >>> LSTM(4).init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))[0].shape
    (2, 5, 4)
    """

    features: int

    @linen.compact
    def __call__(self, x: Array) -> Array:
        cell = linen.OptimizedLSTMCell(self.features, name="cell")
        if self.is_initializing():
            zeros = jnp.zeros((x.shape[0], self.features), x.dtype)
            cell((zeros, zeros), x[:, 0])
        params = cell.variables["params"]

        def beside(side: str, parameter: str) -> Array:
            return jnp.concatenate([params[side + gate][parameter] for gate in "ifgo"], axis=-1)

        return lstm(x, beside("i", "kernel"), beside("h", "kernel"), beside("h", "bias"))[0]
