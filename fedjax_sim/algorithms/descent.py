"""What algorithms share: clients that descend with an optax optimizer, and a server
that takes their mean update for a (negative) gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax

from fedjax_sim.core.checks import check_same_spec, check_takes
from fedjax_sim.core.loss import check_loss, mean_gradient
from fedjax_sim.core.paths import key_name
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    ClientUpdate,
    FederatedAlgorithm,
    LocalTraining,
    LossFn,
    Metrics,
    Params,
    PyTree,
    RoundContext,
)

# An optax transformation, or a function of the round returning one.
Optimizer: TypeAlias = optax.GradientTransformation | Callable[[Array], Any]
# (gradient, w, message, client_state) -> gradient
Adjust: TypeAlias = Callable[[PyTree, Params, Any, PyTree], PyTree]


class Message(NamedTuple):
    """What the server sends: the model, and the round if the clients' optimizer needs it."""

    params: Params
    round: PyTree  # Int[], or () and not sent

    def __repr__(self) -> str:
        return fields_of(self)


class Descent(NamedTuple):
    """A client's carry: its model w_k and its optimizer's state."""

    params: Params
    optimizer: PyTree

    def __repr__(self) -> str:
        return fields_of(self)


class Server(NamedTuple):
    """The server's state: the global model w_t and its optimizer's state."""

    params: Params
    optimizer: PyTree

    def __repr__(self) -> str:
        return fields_of(self)


def server_params(server: Any) -> Params:
    """The global model of a server state that has `params`."""
    return server.params


def stateless(params: Params) -> PyTree:
    """`init_client` of an algorithm whose clients keep nothing."""
    return ()


def own_model(server: PyTree, client_state: Params, probed: PyTree) -> Params:
    """`personal` of an algorithm whose clients keep a model and nothing else."""
    return client_state


def is_schedule(optimizer: Optimizer) -> bool:
    """Whether it is a function of the round that returns an optimizer."""
    return not isinstance(optimizer, optax.GradientTransformation)


def _at(optimizer: Optimizer, round: PyTree) -> optax.GradientTransformation:
    if is_schedule(optimizer):
        return cast(Callable[[Array], Any], optimizer)(round)
    return cast(optax.GradientTransformation, optimizer)


def descend(
    loss_fn: LossFn, optimizer: Optimizer, adjust: Adjust | None = None
) -> tuple[Callable[..., Descent], Callable[..., tuple[Descent, Metrics]]]:
    """`init` and `step` of a client that descends on its loss.

    A step is `w <- w + optimizer(g)`, with g the gradient of the block's mean loss, or
    `adjust(g, w, message, client_state)`. The optimizer's state starts afresh each
    round. The message has the fields of `Message`.
    """
    gradient = mean_gradient(loss_fn)

    def init(message: Any, client_state: PyTree, probed: PyTree, key: Array) -> Descent:
        return Descent(message.params, _at(optimizer, message.round).init(message.params))

    def step(
        carry: Descent, message: Any, client_state: PyTree, batch: PyTree, mask: Array, key: Array
    ) -> tuple[Descent, Metrics]:
        grads, metrics = gradient(carry.params, batch, mask, key)
        if adjust is not None:
            grads = adjust(grads, carry.params, message, client_state)
        updates, state = _at(optimizer, message.round).update(grads, carry.optimizer, carry.params)
        return Descent(optax.apply_updates(carry.params, updates), state), metrics

    return init, step


def model_difference(
    carry: Descent,
    message: Any,
    client_state: PyTree,
    num_examples: Array,
    num_steps: Array,
    key: Array,
) -> ClientOutput:
    """`finish` of a client that sends `d_k = w_k - w_t`."""
    return ClientOutput(update=jax.tree.map(jnp.subtract, carry.params, message.params))


def server_init(optimizer: optax.GradientTransformation) -> Callable[[Params], Server]:
    """A server that starts from the given model and a fresh optimizer."""
    return lambda params: Server(params, optimizer.init(params))


def server_step(optimizer: optax.GradientTransformation) -> Callable[..., Server]:
    """`w_{t+1} = w_t + optimizer(-update)`; with `optax.sgd(1.0)`, `w_t + update`.

    The mean update as a pseudo-gradient: Reddi et al. 2021 (arXiv 2003.00295).
    """

    def update(server: Server, update: PyTree, total: PyTree, context: RoundContext) -> Server:
        grads = jax.tree.map(lambda u, w: -u.astype(w.dtype), update, server.params)
        updates, state = optimizer.update(grads, server.optimizer, server.params)
        return Server(optax.apply_updates(server.params, updates), state)

    return update


def ratio(average: PyTree, by: Array) -> PyTree:
    """Two averages of what clients send: `average / by`, leaf by leaf, and 0 where `by` is 0.

    A rule scales every average over the clients that report, as by n_V / n under `all_clients`. A
    product of two averages has the scale twice, a ratio not at all, and `all_clients` would no
    longer be `w + (n_V / n) (selected - w)`. The average of a 1 that each client sends along is the
    scale: a product is divided by it once, a ratio multiplied.
    """
    some = by != 0
    safe = jnp.where(some, by, 1)
    return jax.tree.map(lambda x: jnp.where(some, x / safe.astype(x.dtype), 0), average)


def averaged_descent(
    loss_fn: LossFn,
    client_optimizer: Optimizer,
    local: LocalTraining,
    server_optimizer: optax.GradientTransformation,
    adjust: Adjust | None = None,
) -> FederatedAlgorithm:
    """FedAvg with a place to adjust the clients' gradients."""
    check_optimizer("client_optimizer", client_optimizer, may_be_schedule=True)
    check_optimizer("server_optimizer", server_optimizer)
    scheduled = is_schedule(client_optimizer)

    def check(params: Params, examples: PyTree) -> None:
        check_loss(loss_fn, params, examples)
        check_fit("client_optimizer", client_optimizer, params)
        check_fit("server_optimizer", server_optimizer, params)

    init, step = descend(loss_fn, client_optimizer, adjust)
    return FederatedAlgorithm(
        init=server_init(server_optimizer),
        params=server_params,
        init_client=stateless,
        broadcast=lambda server, round: Message(server.params, round if scheduled else ()),
        client=ClientUpdate(init, step, model_difference),
        server_update=server_step(server_optimizer),
        local=local,
        check=check,
    )


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
        transformation = _at(optimizer, jnp.zeros((), jnp.int32))
        check_optimizer(f"what {name} returns", transformation)
        return transformation, transformation.init(params)

    def once(params: Params) -> tuple[Params, PyTree, PyTree]:
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
    new, state, new_state = shapes_of(once)
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
        typed = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        raw = x.dtype == jnp.uint32 and (
            x.shape[-1:] in [(size,) for size in _RAW_KEY_SIZES] or not _KEY_NAMES.isdisjoint(words)
        )
        if typed or raw:
            instead = _NOISE_OF_THE_SERVER if name == "server_optimizer" else _NOISE_OF_CLIENTS
            raise ValueError(
                f"{name} must not carry a key of its own, as optax.add_noise and optax.noisy_sgd "
                f"do; got one in its state at {jax.tree_util.keystr(path)}: {instead}"
            )


def step_within(step: Callable[..., tuple[PyTree, Metrics]]) -> Callable[..., Any]:
    """A client's step where `step`'s own carry is the field `descent` of a larger one.

    Args:
      step: of `ClientUpdate`.
    """

    def within(
        carry: Any,
        message: Any,
        client_state: PyTree,
        batch: PyTree,
        mask: Array,
        key: Array,
    ) -> tuple[Any, Metrics]:
        descent, metrics = step(carry.descent, message, client_state, batch, mask, key)
        return carry._replace(descent=descent), metrics

    return within
