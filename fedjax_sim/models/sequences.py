"""Models of text, a character at a time."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fedjax_sim.core.checks import check_count
from fedjax_sim.core.registry import declare
from fedjax_sim.core.types import Array
from fedjax_sim.models.model import REMAT, TEXT, Model, check_sizes, dense, of_tokens
from fedjax_sim.nn import LSTM


@declare("two LSTM layers, the next character (McMahan et al. 2017)", facts=TEXT)
def character_lstm(
    vocabulary: int = 90, embedding: int = 8, hidden: Sequence[int] = (256, 256), length: int = 80
) -> Model:
    """The Shakespeare model of McMahan et al. 2017 (arXiv 1602.05629): the next character.

    An embedding of 8, two LSTM layers of 256 units and a softmax at each position: inputs
    Int[B, T], outputs [B, T, vocabulary]. It has 796,672 + 265 vocabulary parameters: 820,522
    by default. The paper's 866,578 is the count for no vocabulary (264 would make 866,632).

    Args:
      vocabulary: the number of characters.
      length: T in the call that makes the parameters, which do not depend on it.

    Raises:
      ValueError: for a size below 1.

    >>> import jax
    >>> params = jax.eval_shape(character_lstm().init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    820522
    """
    sizes = {"vocabulary": vocabulary, "embedding": embedding, "length": length}
    for name, size in sizes.items():
        check_count(name, size)
    check_sizes("hidden", hidden)
    layers: list[Any] = [nn.Embed(vocabulary, embedding)]
    layers += [LSTM(units) for units in hidden]
    return of_tokens(nn.Sequential([*layers, dense(vocabulary)]), length, vocabulary)


@declare("a small decoder-only transformer, the next character", REMAT, facts=TEXT)
def transformer(
    vocabulary: int = 90,
    length: int = 80,
    width: int = 128,
    heads: int = 4,
    layers: int = 2,
    hidden: int | None = None,
    remat: bool = False,
) -> Model:
    """A small decoder-only transformer over characters: the next one at each position.

    Embedded characters plus learned positions, then in each layer, with layer norm before either
    (Radford et al. 2019),

        x <- x + attention(norm(x)),    x <- x + W_2 gelu(W_1 norm(x)),

    causal attention of several heads (Vaswani et al. 2017, arXiv 1706.03762); a last norm and a
    softmax. Nothing is dropped out. Inputs Int[B, T], T <= length, outputs [B, T, vocabulary]: the
    one at t depends on no character behind t. With V characters, T = length, d = width and h =
    hidden it has (2 V + T) d + V + 2 d + layers (4 d^2 + 2 d h + 9 d + h) parameters.

    Args:
      vocabulary: V.
      length: the longest input.
      width: d, a multiple of heads.
      heads: of attention, each of width / heads.
      layers: at least 1.
      hidden: units between; None for 4 d.
      remat: whether a layer's activations are computed anew for its gradient, and not kept.

    Raises:
      ValueError: for a size below 1, a width that is no multiple of heads, or (when it is traced)
        inputs longer than `length`.

    >>> import jax
    >>> params = jax.eval_shape(transformer().init, jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(params))
    430170
    """
    hidden = 4 * width if hidden is None else hidden
    sizes = {
        "vocabulary": vocabulary,
        "length": length,
        "width": width,
        "heads": heads,
        "layers": layers,
        "hidden": hidden,
    }
    for name, size in sizes.items():
        check_count(name, size)
    if width % heads:
        raise ValueError(f"width must be a multiple of heads = {heads}; got {width}")
    module = _Transformer(vocabulary, length, width, heads, layers, hidden, remat)
    return of_tokens(module, length, vocabulary)


class _Transformer(nn.Module):
    vocabulary: int
    length: int
    width: int
    heads: int
    layers: int
    hidden: int
    remat: bool = False

    @nn.compact
    def __call__(self, text: Array) -> Array:
        if text.shape[1] > self.length:
            raise ValueError(
                f"x must have at most length = {self.length} positions; got {text.shape[1]}"
            )
        positions = self.param("positions", nn.initializers.normal(0.02), (self.length, self.width))
        x = nn.Embed(self.vocabulary, self.width)(text) + positions[None, : text.shape[1]]
        layer = nn.remat(_Transformer._layer) if self.remat else _Transformer._layer
        for _ in range(self.layers):
            x = layer(self, x)
        return dense(self.vocabulary)(nn.LayerNorm()(x))

    def _layer(self, x: Array) -> Array:
        x = x + self._attend(nn.LayerNorm()(x))
        inner = nn.gelu(dense(self.hidden)(nn.LayerNorm()(x)))
        return x + dense(self.width)(inner)

    def _attend(self, x: Array) -> Array:
        """Each position to those before it and itself. [B, T, d]."""
        head_shape = (*x.shape[:2], self.heads, self.width // self.heads)
        q, k, v = (
            part.reshape(head_shape) for part in jnp.split(dense(3 * self.width)(x), 3, axis=-1)
        )
        met = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return dense(self.width)(met.reshape(x.shape))
