"""One federated round as one pure function."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim import aggregation as rules
from fedjax_sim.base import (
    AggregationRule,
    Array,
    Coefficients,
    Cohort,
    Executed,
    FederatedAlgorithm,
    FederatedState,
    Params,
    PyTree,
    RoundContext,
    RoundMetrics,
    Tasks,
)
from fedjax_sim.checks import check_same_spec, is_concrete
from fedjax_sim.data import FederatedData
from fedjax_sim.execution import vmapped
from fedjax_sim.local import Engine, num_steps
from fedjax_sim.masking import where
from fedjax_sim.randomness import CLIENT, check_key, stream

RoundFn = Callable[
    [Array, FederatedState, FederatedData, Cohort], tuple[FederatedState, RoundMetrics]
]


def init(algorithm: FederatedAlgorithm, params: Params, data: FederatedData) -> FederatedState:
    """The state before round 0, after checking that algorithm, params and data fit.

    Args:
      params: the initial model w_0, a pytree of floating arrays.
      data: the federation, whose K sizes the clients' states, `[K, ...]`.

    Raises:
      ValueError: if params hold anything but floating arrays, the loss does not return
        losses[B], an optimizer does not fit params, or labels do not fit the classes of
        a loss from `fs.models`.
    """
    params = jax.tree.map(jnp.asarray, params)
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                "params must be a pytree of floating arrays; got "
                f"{x.dtype} at params{jax.tree_util.keystr(path)}"
            )
    if algorithm.check is not None:
        algorithm.check(params, data.examples)
    one = algorithm.init_client(params)
    clients = jax.tree.map(lambda x: jnp.broadcast_to(x, (data.num_clients, *jnp.shape(x))), one)
    return FederatedState(
        server=algorithm.init(params),
        clients=clients,
        round=jnp.zeros((), jnp.int32),
        get_params=algorithm.params,
    )


def make_round(
    algorithm: FederatedAlgorithm,
    aggregation: AggregationRule = rules.selected,
    execution: Callable[..., Executed] | None = None,
    nonfinite: str = "keep",
) -> RoundFn:
    """A pure function `round_fn(key, state, data, cohort) -> (state, metrics)`.

    Broadcast, local training of the cohort, aggregation, server update:

        w_{t+1} = server_update(w_t, sum_{k in V} a_k d_k / denominator)

    with V the clients that report. `jax.jit` makes it one XLA call; vmap and scan go
    through. It folds `state.round` into `key`, so one base key serves a whole run. If
    nothing is aggregated (nobody reports, or all weights are zero) the whole server
    state stays, bit for bit, and only `round` advances.

    Args:
      algorithm: from `fs.fedavg` and its siblings.
      aggregation: a rule of `fs.aggregation`, or a function
        `(cohort, weights of the cohort [m], weights of all [K]) -> (a[m], denominator or None)`.
      execution: a strategy of `fs.execution`; None for `vmapped()`.
      nonfinite: "keep" averages an update that holds a NaN or an infinity like any other;
        "drop" leaves its client out as if it had dropped out. Both count them in the
        metrics.

    Raises:
      ValueError: for an unknown rule, strategy or `nonfinite`; from round_fn, for a cohort
        that cannot be (if it is concrete), the `unbiased` rule without inclusion
        probabilities, a state of another algorithm or federation, or an untyped key.

    >>> import fedjax_sim as fs, jax, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones(3), "y": np.ones(3)}] * 4)
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.5), fs.LocalTraining())
    >>> round_fn = jax.jit(fs.make_round(algorithm, aggregation=fs.aggregation.all_clients))
    >>> key, state = jax.random.key(0), fs.init(algorithm, 0.0, data)
    >>> cohort = fs.sampling.uniform(2).sample(key, state.round, data)
    >>> state, metrics = round_fn(key, state, data, cohort)
    >>> float(state.params)  # two of four clients went to 1, the others hold 0
    0.5
    """
    _check_choice("aggregation", aggregation, "fs.aggregation." + ", .".join(rules.RULES))
    execution = vmapped() if execution is None else execution
    _check_choice("execution", execution, "fs.execution.vmapped(), .packed(lanes)")
    if nonfinite not in ("keep", "drop"):
        raise ValueError(f'nonfinite must be "keep" or "drop"; got {nonfinite!r}')

    def round_fn(
        key: Array, state: FederatedState, data: FederatedData, cohort: Cohort
    ) -> tuple[FederatedState, RoundMetrics]:
        check_key(key)
        _check_state(algorithm, state, data)
        _check_cohort(cohort, data.num_clients, bool(jax.tree.leaves(state.clients)))

        ids = jnp.asarray(cohort.client_ids, jnp.int32)
        given = jnp.asarray(cohort.mask, bool) & (ids >= 0) & (ids < data.num_clients)
        ids = jnp.clip(ids, 0, data.num_clients - 1)
        asked = given if cohort.reports is None else given & jnp.asarray(cohort.reports, bool)
        steps = num_steps(algorithm.local, data.num_examples[ids], cohort.work)
        steps = jnp.where(asked, steps, 0)

        coefficients, shares = _coefficients(aggregation, cohort, data, ids)
        weights = coefficients.weights
        client_states = jax.tree.map(lambda x: x[ids], state.clients)
        executed = execution(
            algorithm,
            data,
            stream(key, CLIENT, state.round),
            algorithm.broadcast(state.server, state.round),
            client_states,
            Tasks(ids, steps, weights, shares),
            nonfinite == "drop",
        )

        counted = executed.counted
        weight_sum = jnp.sum(jnp.where(counted, weights, 0))
        share = jnp.sum(jnp.where(counted, shares, 0))
        denominator = coefficients.denominator
        denominator = weight_sum if denominator is None else denominator
        empty = ~jnp.any(counted) | (weight_sum == 0)
        safe = jnp.where(denominator == 0, 1, denominator)
        update = jax.tree.map(lambda u: u / safe.astype(u.dtype), executed.update)
        context = RoundContext(
            round=state.round,
            num_clients=data.num_clients,
            num_reporting=jnp.sum(counted, dtype=jnp.int32),
            weight_sum=weight_sum,
            reporting_share=share,
        )
        server = algorithm.server_update(state.server, update, executed.total, context)
        check_same_spec("server_update", "the server state", state.server, server)

        # Only slots that counted write back: a padding slot may carry any id.
        target = jnp.where(counted & ~empty, ids, data.num_clients)
        clients = jax.tree.map(
            lambda old, new: old.at[target].set(new, mode="drop"),
            state.clients,
            executed.client_states,
        )
        sent = steps > 0
        receivers = coefficients.num_receivers
        metrics = RoundMetrics(
            train={
                name: jnp.where(count > 0, total / jnp.where(count > 0, count, 1), jnp.nan)
                for name, (total, count) in executed.metrics.items()
            },
            receivers=_count_distinct(ids, given) if receivers is None else receivers,
            senders=_count_distinct(ids, sent),
            reporting=context.num_reporting,
            nonfinite=jnp.sum(sent & ~executed.finite, dtype=jnp.int32),
            client_steps=jnp.sum(steps, dtype=jnp.int32),
            reporting_share=share,
            empty=empty,
        )
        new_state = FederatedState(
            server=where(empty, state.server, server),
            clients=clients,
            round=state.round + 1,
            get_params=state.get_params,
        )
        return new_state, metrics

    return round_fn


class Communication(NamedTuple):
    """Bytes of one exchange, exact: multiply by `receivers` and `senders` of the metrics."""

    down: int  # bytes of the message, for each receiver
    up: int  # bytes of update and total, for each sender


def communication(
    algorithm: FederatedAlgorithm, params: Params, data: FederatedData
) -> Communication:
    """What one client is sent and sends back in a round, in bytes; computes nothing.

    `down = bytes(message)`, `up = bytes(update) + bytes(total)`. A round's bytes are
    `metrics.receivers * down` and `metrics.senders * up`: multiply in Python or int64.

    >>> import fedjax_sim as fs, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones((3, 2))}])
    >>> loss_fn = lambda w, batch, key: batch["x"] @ w
    >>> fs.communication(fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining()), jnp.ones(2), data)
    Communication(down=8, up=8)
    """

    def exchange(key: Array, params: Params, data: FederatedData) -> tuple[PyTree, PyTree]:
        message = algorithm.broadcast(algorithm.init(params), jnp.zeros((), jnp.int32))
        engine = Engine(algorithm, data, key, message)
        client, state = engine.client(jnp.zeros((), jnp.int32)), algorithm.init_client(params)
        output = engine.finish(client, engine.start(client, state), state, jnp.ones((), jnp.int32))
        return message, (output.update, output.total)

    params = jax.tree.map(jnp.asarray, params)
    down, up = jax.eval_shape(exchange, jax.random.key(0), params, data)
    return Communication(_bytes(down), _bytes(up))


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _coefficients(
    rule: AggregationRule, cohort: Cohort, data: FederatedData, ids: Array
) -> tuple[Coefficients, Array]:
    """The rule's answer, and its shares or their default."""
    weights = data.client_weights[ids]
    answer = Coefficients(*rule(cohort, weights, data.client_weights))
    for name, value in (("weights", answer.weights), ("shares", answer.shares)):
        if value is not None and jnp.shape(value) != ids.shape:
            raise ValueError(
                f"aggregation must return {name} for each of the {ids.shape[0]} slots; "
                f"got shape {jnp.shape(value)}"
            )
    if answer.shares is None:
        return answer, weights / jnp.sum(data.client_weights)
    return answer, answer.shares


def _count_distinct(ids: Array, mask: Array) -> Array:
    """How many different ids the mask leaves: a client drawn twice is one receiver."""
    last = jnp.iinfo(jnp.int32).max
    ordered = jnp.sort(jnp.where(mask, ids, last))
    first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    return jnp.sum(first & (ordered < last), dtype=jnp.int32)


def _check_choice(name: str, value: Any, allowed: str) -> None:
    if not callable(value) or isinstance(value, type):
        raise ValueError(f"{name} must be one of {allowed}, or a function; got {value!r}")


def _check_state(algorithm: FederatedAlgorithm, state: FederatedState, data: FederatedData) -> None:
    if not isinstance(state, FederatedState):
        raise ValueError(f"state must come from fs.init; got {type(state).__name__}")
    try:
        expected = jax.eval_shape(lambda s: algorithm.init(algorithm.params(s)), state.server)
        check_same_spec("", "", expected, state.server)
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            "state must come from fs.init with this algorithm: its server state has another "
            "structure (was it made with another algorithm, optimizer or model?)"
        ) from error
    for x in jax.tree.leaves(state.clients):
        if x.shape[0] != data.num_clients:
            raise ValueError(
                f"state must come from fs.init with this federation of {data.num_clients} "
                f"clients; it holds states of {x.shape[0]}"
            )


def _check_cohort(cohort: Cohort, num_clients: int, stateful: bool) -> None:
    """Shapes always; values where they are known."""
    if not isinstance(cohort, Cohort):
        raise ValueError(f"cohort must be an fs.Cohort; got {type(cohort).__name__}")
    shape = jnp.shape(cohort.client_ids)
    if len(shape) != 1 or shape[0] == 0:
        raise ValueError(f"cohort.client_ids must have shape (m,) with m >= 1; got {shape}")
    if not jnp.issubdtype(jnp.result_type(cohort.client_ids), jnp.integer):
        raise ValueError(
            f"cohort.client_ids must be integers; got {jnp.result_type(cohort.client_ids)}"
        )
    for name, value in zip(cohort._fields[1:], cohort[1:], strict=True):
        given: Any = value
        if (given is not None or name == "mask") and jnp.shape(given) != shape:
            raise ValueError(
                f"cohort.{name} must have shape {shape}, as client_ids; got {jnp.shape(given)}"
            )
    if not all(is_concrete(x) for x in cohort):
        return
    mask = np.asarray(cohort.mask, bool)
    ids = np.asarray(cohort.client_ids)[mask]
    if ids.size and not (ids.min() >= 0 and ids.max() < num_clients):
        wrong = ids[(ids < 0) | (ids >= num_clients)][0]
        raise ValueError(f"cohort.client_ids must lie in [0, {num_clients}); got {wrong}")
    if stateful and len(np.unique(ids)) != len(ids):
        values, counts = np.unique(ids, return_counts=True)
        raise ValueError(
            "cohort.client_ids must not repeat a client where the algorithm keeps client state; "
            f"got client {values[counts > 1][0]} {counts.max()} times"
        )
    if cohort.inclusion is not None:
        inclusion = np.asarray(cohort.inclusion)[mask]
        if not (np.isfinite(inclusion).all() and (inclusion > 0).all()):
            raise ValueError(f"cohort.inclusion must be positive; got {inclusion.min()}")
    if cohort.work is not None:
        work = np.asarray(cohort.work)[mask]
        if not ((work >= 0) & (work <= 1)).all():
            raise ValueError(
                f"cohort.work must lie in [0, 1]; got values from {work.min()} to {work.max()}"
            )
