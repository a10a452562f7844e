"""What cannot be shared in part."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim.core.algorithm import as_algorithm, first_start
from fedjax_sim.core.checks import check_same_spec, has_values
from fedjax_sim.core.models import model_of, with_model
from fedjax_sim.core.paths import by_path, map_models, put
from fedjax_sim.core.trees import shapes_with
from fedjax_sim.core.types import Array, FederatedAlgorithm, Params, PyTree
from fedjax_sim.transforms.compression.compressed import is_compressed


def check_shareable(algorithm: Any) -> None:
    """Refuses what has no one model to be shared in part.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    algorithm = as_algorithm(algorithm)
    if algorithm.earlier:
        raise ValueError(
            "algorithm must have one exchange in a round to share a part of its model; got one of "
            f"{len(algorithm.exchanges)}"
        )
    if algorithm.personal is not None:
        raise ValueError(
            "algorithm must not have personal models already, as its field `personal` says"
        )
    if is_compressed(algorithm):
        raise ValueError(
            "algorithm must not be compressed, since a codec would be given what is not sent; "
            "compress the result: compressed(partial(...))"
        )
    if algorithm.pooled_gradient is not None:
        raise ValueError(
            "algorithm must have clients that train a model, to keep a part of it; those of this "
            "one send one gradient (fs.fedavg of one epoch and a full batch is the same shared)"
        )


def shapes_of_models(
    algorithm: FederatedAlgorithm, params: Params, examples: PyTree
) -> dict[str, Any]:
    """The model of the message and that of the clients' carry, or None; computes nothing."""
    first = shapes_with(examples, 1)

    def models(params: Params, batch: PyTree) -> dict[str, Any]:
        start = first_start(algorithm, params, batch)
        return {"message": model_of(start.message), "clients' carry": model_of(start.carry)}

    return jax.eval_shape(models, params, first)


def check_models(algorithm: FederatedAlgorithm, params: Params, examples: PyTree) -> None:
    """Refuses an algorithm whose message or clients have no model to be found; computes nothing.

    Raises:
      ValueError: saying which, and what it must have.
    """
    shapes = shapes_of_models(algorithm, params, examples)
    for name, model in shapes.items():
        try:
            check_same_spec("", "", params, model)
        except ValueError:
            raise ValueError(
                f"algorithm must have the model as the field `params` of its {name} (or of the "
                f"carry's `descent`), for a part of it to stay with the client"
            ) from None


def check_message(algorithm: FederatedAlgorithm, params: Params, personal: Iterable[str]) -> None:
    """Refuses an algorithm that sends numbers of the personal parameters beside the model.

    Raises:
      ValueError: naming the parameter.
    """
    if not all(map(has_values, jax.tree.leaves(params))):
        return
    message = algorithm.broadcast(algorithm.init(params), jnp.zeros((), jnp.int32))
    beside = with_model(message, jax.tree.map(jnp.zeros_like, params))
    path = _first_nonzero(beside, params, personal)
    if path is not None:
        raise ValueError(
            "algorithm must send the model once to share a part of it; what it sends beside is not "
            f"0 at {path!r}, which is personal"
        )


def check_kept(
    algorithm: FederatedAlgorithm, params: Params, personal: Mapping[str, Array]
) -> None:
    """Refuses an algorithm whose clients keep a model that is not to be found.

    Raises:
      ValueError: naming a personal parameter in it.
    """
    if not all(map(has_values, jax.tree.leaves(params))):
        return
    # A model's values are seen in what is made of it, also where the first ones are 0.
    marked = put(params, {path: jnp.ones_like(x) for path, x in personal.items()})
    state = algorithm.init_client(marked)
    if model_of(state) is not None:
        state = with_model(state, jax.tree.map(jnp.zeros_like, params))
    path = _first_nonzero(state, params, personal)
    if path is not None:
        raise ValueError(
            "algorithm must have the model that its clients keep as the field `params` of their "
            f"state, for their own {path!r} to be put into it"
        )


def _first_nonzero(tree: PyTree, params: Params, personal: Iterable[str]) -> str | None:
    """The path of a personal parameter that is not 0 in a part of the model's structure."""
    paths: list[str] = []

    def look(part: PyTree) -> PyTree:
        leaves = by_path(part)
        paths.extend(
            path
            for path in personal
            if has_values(leaves[path]) and np.any(np.asarray(leaves[path]))
        )
        return part

    map_models(look, params, tree)
    return paths[0] if paths else None
