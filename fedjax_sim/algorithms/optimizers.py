"""Optimizers and learning rates of an algorithm: constant, or a function of the round."""

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_sim.core.checks import check_number, check_same_spec, check_takes
from fedjax_sim.core.paths import key_name
from fedjax_sim.core.randomness import is_key
from fedjax_sim.core.types import Array, Params, PyTree

# An optax transformation, or a function of the round returning one.
Optimizer: TypeAlias = optax.GradientTransformation | Callable[[Array], Any]
# A number, or a function of the round returning one, as a schedule of optax.
LearningRate: TypeAlias = ArrayLike | Callable[[Array], ArrayLike]


class _Mean(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # of optax's, an Any
    """`optax.sgd(1.0)`, whose own repr would fill each algorithm's signature with addresses."""

    def __repr__(self) -> str:
        return "optax.sgd(1.0)"


# The server's optimizer with which it takes the mean of its clients' models.
MEAN = _Mean(*optax.sgd(1.0))


def is_schedule(optimizer: Optimizer) -> bool:
    """Whether it is a function of the round."""
    return not isinstance(optimizer, optax.GradientTransformation)


def optimizer_at(optimizer: Optimizer, round: PyTree) -> optax.GradientTransformation:
    """The optimizer of a round, Int[]."""
    if is_schedule(optimizer):
        return cast(Callable[[Array], Any], optimizer)(round)
    return cast(optax.GradientTransformation, optimizer)


def check_optimizer(name: str, optimizer: Any, may_be_schedule: bool = False) -> None:
    """Refuses what is not an optax transformation (or a function of the round).

    Raises:
      ValueError: naming the argument and what was given.
    """
    if isinstance(optimizer, optax.GradientTransformation):
        return
    if getattr(optimizer, "__module__", "").startswith("optax"):
        name_given = f"optax.{getattr(optimizer, '__name__', '')}"
        raise ValueError(f"{name} must be an optimizer; got {name_given} itself: call it")
    if may_be_schedule and callable(optimizer):
        check_takes(name, optimizer, "round")
        return
    allowed = "an optax transformation, as optax.sgd(0.1)"
    if may_be_schedule:
        allowed += ", or a function of the round returning one"
    raise ValueError(f"{name} must be {allowed}; got {optimizer!r}")


def check_fit(name: str, optimizer: Optimizer, params: Params) -> None:
    """Refuses an optimizer that cannot step on these params; computes nothing.

    Raises:
      ValueError: if its state or its update does not keep structure, shapes and dtypes, or its
        state holds a key to draw random numbers with.
    """

    def start(params: Params) -> tuple[optax.GradientTransformation, PyTree]:
        transformation = optimizer_at(optimizer, jnp.zeros((), jnp.int32))
        check_optimizer(f"what {name} returns", transformation)
        return transformation, transformation.init(params)

    def take_step(params: Params) -> tuple[Params, PyTree, PyTree]:
        transformation, state = start(params)
        updates, new_state = transformation.update(params, state, params)
        return optax.apply_updates(params, updates), state, new_state

    def shapes_of(function: Callable[[Params], Any]) -> Any:
        try:
            return jax.eval_shape(function, params)
        except Exception as error:
            raise ValueError(f"{name} does not fit params: {error}") from error

    # Before the update, which may refuse these params for another reason.
    _check_no_key(name, shapes_of(lambda params: start(params)[1]))
    new, state, new_state = shapes_of(take_step)
    check_same_spec(name, "params", params, new)
    check_same_spec(name, "its state", state, new_state)


_KEY_NAMES = frozenset(("key", "keys", "rng", "rngs", "prng", "seed"))
_RAW_KEY_SIZES = (2, 4)  # words of an old-style key: of threefry, of rbg
_NOISE_OF_CLIENTS = (
    "an optimizer starts afresh for every client and round, so all would draw the same noise, "
    "which does not average out. loss_fn is given a key that differs by seed, round, client and "
    "step: adding jnp.vdot(std * jax.random.normal(key, w.shape), w) to every loss, for each leaf "
    "w of params, adds that noise to the gradient"
)
_NOISE_OF_THE_SERVER = (
    "every run would draw the same noise, whatever its seed. A client's finish is given a key that "
    "differs by seed, round and client, and may add noise to the update it returns: "
    "algorithm._replace(client=algorithm.client._replace(finish=...), pooled_gradient=None)"
)


def _check_no_key(name: str, state: PyTree) -> None:
    """Refuses an optimizer's state that holds a key, typed or raw, wherever in it."""
    for path, x in jax.tree_util.tree_flatten_with_path(state)[0]:
        words = {word for part in path for word in key_name(part).split("_")}
        typed = is_key(x)
        raw = x.dtype == jnp.uint32 and (
            x.shape[-1:] in [(size,) for size in _RAW_KEY_SIZES] or not _KEY_NAMES.isdisjoint(words)
        )
        if typed or raw:
            instead = _NOISE_OF_THE_SERVER if name == "server_optimizer" else _NOISE_OF_CLIENTS
            raise ValueError(
                f"{name} must not carry a key of its own, as optax.add_noise and optax.noisy_sgd "
                f"do; got one in its state at {jax.tree_util.keystr(path)}: {instead}"
            )


def rate_at(rate: LearningRate, round: PyTree) -> ArrayLike:
    """The learning rate of a round, Int[]."""
    return rate(round) if callable(rate) else rate


def check_rate(name: str, rate: LearningRate) -> None:
    """Refuses a number that is no learning rate; of a function nothing is known yet.

    Raises:
      ValueError: naming the argument and what was given.
    """
    if not callable(rate):
        check_number(name, rate, lambda x: x > 0, "positive")


def check_schedule(rate: LearningRate, name: str = "client_lr") -> Callable[..., None]:
    """A check, of `fs.init`, that a function of the round gives a learning rate; computes nothing.

    Raises:
      ValueError: saying what it gives.
    """

    def check(params: Params, examples: PyTree) -> None:
        if not callable(rate):
            return
        allowed = f"{name} must be a number, or a function of the round that returns one"
        try:
            rate_spec: Any = jax.eval_shape(rate, jax.ShapeDtypeStruct((), jnp.int32))
        except Exception as error:
            raise ValueError(f"{allowed}; of round 0 it says: {error}") from error
        if getattr(rate_spec, "shape", None) != () or not jnp.issubdtype(
            rate_spec.dtype, jnp.floating
        ):
            kind = type(rate_spec).__name__
            kind = (
                f"{rate_spec.dtype}{list(rate_spec.shape)}" if hasattr(rate_spec, "shape") else kind
            )
            raise ValueError(f"{allowed}; it returns {kind}")

    return check
