"""What is shared of a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.core.paths import by_path, map_models
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import Array, Params, PyTree

STATISTICS = "batch_stats"  # what flax calls them: a model's part of this name


@partial(
    jax.tree_util.register_dataclass, data_fields=["leaves"], meta_fields=["places", "structure"]
)
@dataclass(frozen=True, repr=False)
class Shared:
    """The shared leaves of what has the structure of a model: what travels of it.

    Attributes:
      leaves: those of the model, less the personal ones, in its order.
      places: of each leaf of the model its path, and its shape and dtype if it is personal, or
        None; static, as the next.
      structure: of the model.
    """

    leaves: tuple[Array, ...]
    places: tuple[tuple[str, jax.ShapeDtypeStruct | None], ...]
    structure: Any

    def filled(self, personal: Callable[[str, jax.ShapeDtypeStruct], Array]) -> Params:
        """All of it, with `personal(path, spec)` where a leaf is personal."""
        shared = iter(self.leaves)
        leaves = [
            next(shared) if spec is None else personal(path, spec) for path, spec in self.places
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def __repr__(self) -> str:
        return fields_of(self, "leaves")


def shared_paths(model: PyTree) -> dict[str, str]:
    """Of each leaf of a model, or of what is shared of one, its path there and that in the model.

    So `stripped` can strip what is shared already: to it `Shared` is a model, too.
    """
    paths = list(by_path(model))
    if not isinstance(model, Shared):
        return dict(zip(paths, paths, strict=True))
    return dict(zip(paths, [path for path, spec in model.places if spec is None], strict=True))


def statistics_of(model: PyTree) -> dict[str, Array]:
    """The running statistics of a model, or of what is shared of one, by their paths there."""
    leaves = by_path(model)
    paths = shared_paths(model).items()
    return {place: leaves[place] for place, path in paths if path.split("/")[0] == STATISTICS}


def stripped(tree: PyTree, params: Params, personal: Mapping[str, Array]) -> PyTree:
    """A tree with the shared leaves alone of all in it that has the model's structure."""
    specs = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in personal.items()}
    places = tuple((path, specs.get(path)) for path in by_path(params))
    structure = jax.tree.structure(params)

    def strip(part: PyTree) -> Shared:
        leaves = zip(jax.tree.leaves(part), places, strict=True)
        return Shared(tuple(x for x, (_, spec) in leaves if spec is None), places, structure)

    return map_models(strip, params, tree)


def with_zeros(tree: PyTree, dtype: Callable[[Any], Any] = jnp.dtype) -> PyTree:
    """A tree with zeros at the personal leaves of all in it that is shared in part."""

    def fill(part: Any) -> Any:
        if not isinstance(part, Shared):
            return part
        return part.filled(lambda path, spec: jnp.zeros(spec.shape, dtype(spec.dtype)))

    return jax.tree.map(fill, tree, is_leaf=lambda part: isinstance(part, Shared))
