"""What private algorithms share: the clip, the noise, and whose updates can be made private."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fedjax_sim.core.algorithm import as_algorithm, first_output
from fedjax_sim.core.randomness import NOISE, stream
from fedjax_sim.core.registry import AT_LEAST_0, POSITIVE, Option
from fedjax_sim.core.trees import global_norm
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    Coefficients,
    FederatedAlgorithm,
    Params,
    PyTree,
    RoundContext,
    accumulator,
)
from fedjax_sim.transforms.sharing.shared_part import Shared

# Options that several mechanisms have.
CLIP = Option("clip", "largest norm of an update", range=POSITIVE, traced=True, metavar="C")
NOISE_MULTIPLIER = Option(
    "noise_multiplier",
    "standard deviation of the noise in clips; or give epsilon",
    range=AT_LEAST_0,
    traced=True,
    metavar="Z",
)


def clipped(update: PyTree, clip: ArrayLike) -> tuple[PyTree, Array]:
    """`update min(1, clip / |update|)`, and Bool[], whether its norm is within the clip.

    The norm is of all leaves together. One that is not finite, which no factor bounds, is 0. Where
    16 bits of a leaf would round a clipped update up, its factor is smaller by their precision.
    """
    norm = global_norm(update)
    bound = jnp.asarray(clip, norm.dtype)
    is_within = norm <= bound
    is_finite = jnp.isfinite(norm)
    factor = jnp.where(is_within, 1, bound / jnp.where(norm > 0, norm, 1))

    def shorten(x: Array) -> Array:
        wide = accumulator(x.dtype)
        margin = 1.0 if jnp.dtype(wide) == x.dtype else 1 - float(jnp.finfo(x.dtype).eps)
        scale = factor.astype(wide) * jnp.where(is_within, 1, jnp.asarray(margin, wide))
        return jnp.where(is_finite, x.astype(wide) * scale, 0).astype(x.dtype)

    return jax.tree.map(shorten, update), is_within


def with_noise(key: Array, std: Array, tree: PyTree) -> PyTree:
    """The tree with an independent Gaussian number of this standard deviation on every entry."""
    leaves, structure = jax.tree.flatten(tree)

    def noised(x: Array, place: int) -> Array:
        wide = accumulator(x.dtype)
        noise = std.astype(wide) * jax.random.normal(stream(key, NOISE, place), x.shape, wide)
        return (x.astype(wide) + noise).astype(x.dtype)

    return jax.tree.unflatten(structure, [noised(x, place) for place, x in enumerate(leaves)])


@dataclass(frozen=True)
class FixedDenominator:
    """What a private algorithm makes of the round's rule, a_k over D: no coefficient above 1 / m.

    The weights become `min(m a_k / D, 1)` and the denominator m, the expected cohort.
    """

    expected_cohort: ArrayLike

    def __call__(self, coefficients: Coefficients) -> Coefficients:
        weights, denominator = coefficients.weights, coefficients.denominator
        assert denominator is not None  # `check_rule` comes before
        expected = jnp.asarray(self.expected_cohort, weights.dtype)
        safe = jnp.where(denominator == 0, 1, denominator).astype(weights.dtype)
        return coefficients._replace(
            weights=jnp.clip(expected * weights / safe, -1, 1), denominator=expected
        )


@dataclass(frozen=True)
class Unchanged:
    """What travels where a private algorithm's server clips what it is sent.

    It is a field `wire` of its own, by which compression knows that the update is bounded already.
    """

    wire: Callable[[PyTree, PyTree], PyTree | int] | None

    def __call__(self, update: PyTree, total: PyTree) -> PyTree | int:
        return (update, total) if self.wire is None else self.wire(update, total)


def as_expected(context: RoundContext) -> RoundContext:
    """A round's context without what was counted of its cohort, which nobody has noised."""
    expected = context.denominator
    return context._replace(
        num_reporting=jnp.round(expected).astype(context.num_reporting.dtype),
        weight_sum=expected,
        reporting_share=expected / context.num_clients,
        largest_weight=jnp.ones_like(expected),
    )


def fixed_denominators(
    check: Callable[[Coefficients], None] | None,
) -> Callable[[Coefficients], None]:
    """Refuses a rule whose denominator is the weight of those that report, or that sees them all.

    Args:
      check: the algorithm's own.
    """

    def check_rule(coefficients: Coefficients) -> None:
        if check is not None:
            check(coefficients)
        if coefficients.combine is not None:
            raise ValueError(
                "aggregation must be a sum over a fixed denominator, as fs.aggregation.unbiased or "
                ".all_clients, for a private algorithm; one that combines all updates may move by "
                "more than a client's clip"
            )
        if coefficients.denominator is None or coefficients.by_weight is not None:
            raise ValueError(
                "aggregation must have a fixed denominator, as fs.aggregation.unbiased or "
                ".all_clients, for a private algorithm; this rule divides by the weight of those "
                "that report, which depends on who they are"
            )

    return check_rule


def check_private(algorithm: Any) -> FederatedAlgorithm:
    """Refuses what cannot be made private, as far as it shows without a model.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    algorithm = as_algorithm(algorithm)
    if isinstance(algorithm.aggregation, FixedDenominator):
        raise ValueError("algorithm must not be private already; got one of fs.privacy")
    if algorithm.earlier:
        raise ValueError(
            "algorithm must have one exchange in a round to be private, or each would be a release "
            f"of its own; got one of {len(algorithm.exchanges)}"
        )
    if algorithm.aggregation is not None:
        raise ValueError(
            "algorithm must take the rule as it is to be private; this one makes something else "
            "of it, as FedDF, whose server sees every model"
        )
    _check_without_model(algorithm)
    return algorithm


@dataclass(frozen=True)
class CheckedWithModel:
    """The `check` of a private algorithm: that of the algorithm before it was private, and that its
    clients send a change of the model and nothing else."""

    algorithm: FederatedAlgorithm

    def __call__(self, params: Params, examples: PyTree) -> None:
        algorithm = self.algorithm
        if algorithm.check is not None:
            algorithm.check(params, examples)
        _check_sent(
            params, jax.eval_shape(lambda w, x: first_output(algorithm, w, x), params, examples)
        )


def _check_without_model(algorithm: FederatedAlgorithm) -> None:
    """As `CheckedWithModel`, of a model of three numbers, for what shows already."""
    params = jnp.zeros(3)
    if algorithm.client.probe is not None:  # whose shapes depend on loss and data
        return
    try:
        output = jax.eval_shape(lambda w: first_output(algorithm, w, ()), params)
    except Exception:  # whatever an algorithm raises of a model that is none of its
        return
    _check_sent(params, output)


def _check_sent(params: Params, output: ClientOutput) -> None:
    if jax.tree.leaves(output.total):
        raise ValueError(
            "algorithm must send its update alone to be private; this one sends a total beside it, "
            "as SCAFFOLD its control variate, which all clients are sent in turn and nothing clips"
        )
    update: Any = output.update
    if isinstance(update, Shared):  # what `fs.partial` sends of it
        is_change = update.structure == jax.tree.structure(params)
    else:
        shapes = [[x.shape for x in jax.tree.leaves(tree)] for tree in (params, update)]
        structures: list[Any] = [jax.tree.structure(tree) for tree in (params, update)]
        is_change = structures[0] == structures[1] and shapes[0] == shapes[1]
    if not is_change:
        raise ValueError(
            "algorithm must send a change of the model and nothing else to be private; this one "
            f"sends {type(update).__name__}: a clip of all of it together would scale a share, a "
            "norm, a loss or a choice of model that is sent along, and its server's quotients of "
            "averages would no longer be what they are of"
        )
