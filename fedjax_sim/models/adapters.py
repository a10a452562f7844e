"""Training a part of a model: adapters of low rank, or some of its parameters, the rest frozen.

What is trained is a pytree of its own, which takes the place of the model's params everywhere:
clients send it alone, states and noise are of its size, and `merge` makes the whole model of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import check_count, check_number
from fedjax_sim.core.paths import Chosen, by_path, check_chosen, chosen_paths, put
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import Array, LossFn, Params, PyTree
from fedjax_sim.models.model import OfTokens, WithDropout


class Adapter(NamedTuple):
    """The trained part of a model whose other parameters are frozen.

    Attributes:
      init: key -> trained, the params that an algorithm is given in place of the model's.
      merge: trained -> the params of the whole model.
    """

    init: Callable[[Array], Params]
    merge: Callable[[Params], Params]

    def __repr__(self) -> str:
        return fields_of(self)

    def loss(self, loss_fn: LossFn) -> LossFn:
        """The loss of the whole model as one of the trained part.

        One from `cross_entropy` or `squared_error` is of the same kind, so that FedLC finds its
        logits; `mixed_precision` goes around an adapter's loss, and not inside it. A model with
        batch norm stays in inference mode, because its statistics are frozen with the rest.
        """
        if is_dataclass(loss_fn) and any(field.name == "apply" for field in fields(loss_fn)):
            own_loss: Any = loss_fn
            return replace(own_loss, apply=_merged_apply(own_loss.apply, self.merge))
        return Merged(loss_fn, self.merge)


@dataclass(frozen=True, repr=False)
class Merged:
    """A function of the whole model's params, a loss or an `apply`, as one of the trained part."""

    function: Any
    merge: Callable[[Params], Params]

    def __call__(self, trained: Params, *arguments: PyTree) -> Any:
        return self.function(self.merge(trained), *arguments)

    def check(self, trained: Params, examples: PyTree) -> None:
        """The loss's own, where it has one, as of labels beyond the model's classes."""
        own_check: Any = getattr(self.function, "check", None)
        if own_check is not None:
            own_check(jax.eval_shape(self.merge, trained), examples)

    def __repr__(self) -> str:
        return fields_of(self)


def _merged_apply(whole_apply: Any, merge: Callable[[Params], Params]) -> Any:
    if isinstance(whole_apply, (OfTokens, WithDropout)):  # which the losses look for
        return whole_apply.wrapped(lambda function: _merged_apply(function, merge))
    return Merged(whole_apply, merge)


def lora(params: Params, chosen: Chosen, rank: int, alpha: float | None = None) -> Adapter:
    """Adapters of low rank on some kernels of a model, which are frozen with all the rest.

        W' = W + (alpha / rank) A B,    A [in, rank] ~ N(0, 1 / in),    B [rank, out] = 0

    of a kernel W [..., in, out], whose leading axes (a convolution's window) count as inputs. Only
    A and B are trained and travel: rank (in + out) numbers for in out. Averaging A and B apart is
    not averaging the products A B; that is what clients of FedIT (Zhang et al. 2024, arXiv
    2305.05644) do, and what any algorithm here does of them. Hu et al. 2022 (arXiv 2106.09685).

    Args:
      params: of the whole model, as a run left them: `fs.load(folder).params`.
      chosen: which kernels: paths or patterns, as "layers_*/kernel", or a function of a path.
      rank: at least 1, a Python number, since it decides shapes.
      alpha: Float[], may be traced; None for rank, that is a factor of 1.

    Raises:
      ValueError: for a rank below 1, a negative alpha, a name of no parameter, with the paths that
        there are, or of one that is no kernel, as a bias.

    >>> import fedjax_sim as fs, optax
    >>> model = fs.models.mlp((64,), (32,), 10)
    >>> params = model.init(jax.random.key(0))
    >>> adapter = lora(params, "*/kernel", rank=2)
    >>> trained = adapter.init(jax.random.key(1))
    >>> [sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, trained)]
    [2410, 276]
    >>> algorithm = fs.fedavg(
    ...     adapter.loss(fs.models.cross_entropy(model.apply)), optax.sgd(0.1), fs.LocalTraining())
    """
    rank = check_count("rank", rank)
    check_chosen("chosen", chosen)
    if alpha is not None:
        check_number("alpha", alpha, lambda x: x >= 0, "at least 0")
    scale = 1.0 if alpha is None else alpha / rank
    leaves = by_path(params)
    # All of them, too: a model without biases may be of kernels alone.
    paths = chosen_paths("chosen", chosen, params, may_be_all=True)
    kernels = {path: leaves[path] for path in paths}
    for path, kernel in kernels.items():
        if jnp.ndim(kernel) < 2:
            raise ValueError(
                f"chosen must name kernels, of two axes or more; {path} has {jnp.ndim(kernel)}"
            )

    def init(key: Array) -> Params:
        trained = {}
        for number, (path, kernel) in enumerate(kernels.items()):
            inputs, outputs = kernel.size // kernel.shape[-1], kernel.shape[-1]
            own_key = jax.random.fold_in(key, number)
            a = jax.random.normal(own_key, (inputs, rank), kernel.dtype) / jnp.sqrt(
                jnp.asarray(inputs, kernel.dtype)
            )
            trained[path] = {"a": a, "b": jnp.zeros((rank, outputs), kernel.dtype)}
        return trained

    def merge(trained: Params) -> Params:
        _check_trained(trained, paths)

        def merged(kernel: Array, adapter: dict[str, Array]) -> Array:
            product = (adapter["a"] @ adapter["b"]).reshape(kernel.shape)
            return kernel + jnp.asarray(scale, kernel.dtype) * product

        return put(params, {path: merged(kernels[path], trained[path]) for path in kernels})

    return Adapter(init, merge)


def trained_part(params: Params, chosen: Chosen) -> Adapter:
    """Some parameters of a model are trained, and travel; all others are frozen at `params`.

    Args:
      params: of the whole model.
      chosen: which are trained: as `lora`.

    Raises:
      ValueError: for a name of no parameter, or of all, with the paths that there are.

    >>> params = {"body": jnp.ones(3), "head": jnp.zeros(2)}
    >>> adapter = trained_part(params, "head")
    >>> adapter.init(jax.random.key(0))
    {'head': Array([0., 0.], dtype=float32)}
    >>> adapter.merge({"head": jnp.ones(2)})["body"].tolist()
    [1.0, 1.0, 1.0]
    """
    check_chosen("chosen", chosen)
    leaves = by_path(params)
    first = {path: jnp.asarray(leaves[path]) for path in chosen_paths("chosen", chosen, params)}

    def merge(trained: Params) -> Params:
        _check_trained(trained, tuple(first))
        return put(params, trained)

    return Adapter(init=lambda key: first, merge=merge)


def _check_trained(trained: Any, paths: tuple[str, ...]) -> None:
    """Refuses what is not of an adapter's `init`, as the params of the whole model.

    Raises:
      ValueError: with the names that there are, and those that were given.
    """
    if not isinstance(trained, Mapping) or {*trained} != {*paths}:
        given = ", ".join(map(str, trained)) if isinstance(trained, Mapping) else type(trained)
        raise ValueError(
            f"params must be those of the adapter's init, by the names {', '.join(paths)}; got "
            f"{given} (give adapter.init where a model's init is asked for)"
        )
