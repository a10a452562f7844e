"""One federated round as one pure function."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from fedjax_sim import aggregation as rules
from fedjax_sim.core.checks import check_not_a_name, check_same_spec, check_takes
from fedjax_sim.core.local_training import check_local, num_steps
from fedjax_sim.core.randomness import CLIENT, check_key, stream
from fedjax_sim.core.trees import first_of_each, global_norm, power_of_two, where
from fedjax_sim.core.types import (
    AggregationRule,
    Array,
    Coefficients,
    Cohort,
    Executed,
    FederatedAlgorithm,
    FederatedState,
    Options,
    Params,
    PyTree,
    RoundContext,
    RoundMetrics,
    Tasks,
)
from fedjax_sim.data import FederatedData, check_data
from fedjax_sim.execution import automatic, packed, sharded, vmapped
from fedjax_sim.execution.client import Engine, check_steps
from fedjax_sim.execution.strategy import as_strategy
from fedjax_sim.sampling import as_arrays
from fedjax_sim.training.ledger import local_work

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
    algorithm = _checked(algorithm)
    check_data(data)
    check_steps(algorithm.local, data)
    # Copies, so that donating the state leaves the caller's arrays alone, and without the
    # weak type of a Python number, which would cost a second trace.
    params = jax.tree.map(lambda x: jnp.array(x, dtype=jnp.result_type(x), copy=True), params)
    for path, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                "params must be a pytree of floating arrays; got "
                f"{x.dtype} at params{jax.tree_util.keystr(path)}{_cure(params)}"
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


def _cure(params: Params) -> str:
    """What to do about the keys and counters of a flax nnx module among its params."""
    if not any(type(x).__module__.startswith("flax.nnx") for x in _nodes(params)):
        return ""
    return (
        ". nnx.split(module, nnx.Param, ...) keeps what is not trained apart: graph, params, rest; "
        "the loss merges all three, and draws dropout from its own key (docs/models.md)"
    )


def _nodes(tree: PyTree) -> list[Any]:
    """A pytree and what it holds at its first level."""
    return [tree, *jax.tree.leaves(tree, is_leaf=lambda x: x is not tree)]


def make_round(
    algorithm: FederatedAlgorithm,
    aggregation: AggregationRule = rules.selected,
    execution: Callable[..., Executed] | None = None,
    nonfinite: str = "keep",
) -> RoundFn:
    """A pure function `round_fn(key, state, data, cohort) -> (state, metrics)`.

    Broadcast, local training of the cohort, aggregation, server update:

        w_{t+1} = server_update(w_t, sum_{k in V} a_k d_k / denominator)

    with V the clients that report. `jax.jit` makes it one XLA call, and without it each call
    traces and compiles for a second or more; vmap and scan go through. It folds `state.round` into
    `key`, so one base key serves a whole run. If nothing is aggregated (nobody reports, or all
    weights are zero) the whole server state stays, bit for bit, and only `round` advances.

    Args:
      algorithm: from `fs.fedavg` and its siblings.
      aggregation: a rule of `fs.aggregation`, or a function
        `(cohort, weights of the cohort [m], weights of all [K]) -> (a[m], denominator or None)`.
      execution: a strategy of `fs.execution`; None for `automatic()`.
      nonfinite: "keep" averages an update that holds a NaN or an infinity like any other;
        "drop" leaves its client out as if it had dropped out. Both count them in the
        metrics. A dropped client's NaN is still in the gradient of a round, whose derivative
        multiplies what was dropped by zero.

    Raises:
      ValueError: for an unknown rule, strategy or `nonfinite`; from round_fn, for a cohort
        that cannot be (if it is concrete), the `unbiased` rule without inclusion
        probabilities, a state of another algorithm or federation, or an untyped key.

    >>> import fedjax_sim as fs, jax, numpy as np, optax
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
    algorithm = _checked(algorithm)
    _check_choice(
        "aggregation",
        aggregation,
        "fs.aggregation." + ", .".join(rules.RULES),
        {name: f"the function fs.aggregation.{name}" for name in rules.RULES},
    )
    check_takes("aggregation", aggregation, "cohort", "client_weights", "all_client_weights")
    execution = automatic() if execution is None else execution
    strategies = {factory.__name__: factory for factory in (automatic, vmapped, packed, sharded)}
    _check_choice(
        "execution",
        execution,
        "fs.execution.vmapped(), .packed(lanes), .sharded(mesh)",
        {name: f"fs.execution.{name}(...)" for name in strategies},
    )
    for factory in strategies.values():
        if cast(Any, execution) is factory:
            name = f"fs.execution.{factory.__name__}"
            raise ValueError(f"execution must be a strategy; got {name} itself: call it, {name}()")
    strategy = as_strategy(execution)
    if nonfinite not in ("keep", "drop"):
        raise ValueError(f'nonfinite must be "keep" or "drop"; got {nonfinite!r}')

    options = Options(drop_nonfinite=nonfinite == "drop")

    def round_fn(
        key: Array, state: FederatedState, data: FederatedData, cohort: Cohort
    ) -> tuple[FederatedState, RoundMetrics]:
        check_key(key)
        _check_state(algorithm, state, data)
        stateful = bool(jax.tree.leaves(state.clients))
        cohort, mask, reports = as_arrays(cohort, data.num_clients, stateful)

        ids = jnp.clip(cohort.client_ids, 0, data.num_clients - 1)
        given = mask & (ids == cohort.client_ids)
        if stateful:  # two slots would write one state: the second is padding
            given = first_of_each(ids, given)
        asked = given & reports
        steps = num_steps(algorithm.local, data.num_examples[ids], cohort.work)
        steps = jnp.where(asked, steps, 0)

        client_weights = data.client_weights[ids]
        total_weight = jnp.sum(data.client_weights)
        # A slot that completes no step does not report, and stands for no other of its client.
        cohort = cohort._replace(reports=steps > 0)
        coefficients = _coefficients(aggregation, cohort, client_weights, data.client_weights)
        weights, shares = coefficients.weights, coefficients.shares
        # A power of two changes no bit of the average, and keeps tiny weights' products in range.
        unit = power_of_two(jnp.where(steps > 0, weights, 0))
        weights = weights * unit
        if shares is None:
            shares = client_weights / total_weight
        client_states = jax.tree.map(lambda x: x[ids], state.clients)
        client_key = stream(key, CLIENT, state.round)
        message = algorithm.broadcast(state.server, state.round)
        executed = strategy(
            Engine(algorithm, data, client_key, message),
            client_states,
            Tasks(ids, steps, weights, shares),
            options,
        )

        counted = executed.counted
        weight_sum = jnp.sum(jnp.where(counted, weights, 0))
        share = jnp.sum(jnp.where(counted, shares, 0))
        denominator = coefficients.denominator
        denominator = weight_sum if denominator is None else denominator * unit
        empty = ~jnp.any(counted & (weights != 0)) | (denominator == 0)
        safe = jnp.where(denominator == 0, 1, denominator)
        update = jax.tree.map(lambda u: u / safe.astype(u.dtype), executed.update)
        context = RoundContext(
            round=state.round,
            num_clients=data.num_clients,
            num_reporting=jnp.sum(counted, dtype=jnp.int32),
            weight_sum=weight_sum / unit,
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
            update_norm=jnp.where(empty, jnp.nan, global_norm(update)),
            reporting_share=jnp.sum(jnp.where(counted, client_weights, 0)) / total_weight,
            empty=empty,
            **local_work(algorithm.local, data, ids, steps, executed.lane_steps),
        )
        new_state = FederatedState(
            server=where(empty, state.server, server),
            clients=clients,
            round=state.round + 1,
            get_params=state.get_params,
        )
        return new_state, metrics

    return round_fn


def _coefficients(
    rule: AggregationRule, cohort: Cohort, client_weights: Array, all_client_weights: Array
) -> Coefficients:
    """The rule's answer, as arrays of the right shapes."""
    answer: Any = rule(cohort, client_weights, all_client_weights)
    if not isinstance(answer, tuple) or not 2 <= len(answer) <= 4:
        raise ValueError(
            "aggregation must return (weights[m], denominator or None), or fs.Coefficients; got "
            f"{type(answer).__name__}"
        )
    fields: list[Any] = [None if x is None else jnp.asarray(x) for x in answer]
    coefficients = Coefficients(*fields)
    for name in ("weights", "shares"):
        value = getattr(coefficients, name)
        if (value is not None or name == "weights") and jnp.shape(value) != client_weights.shape:
            raise ValueError(
                f"aggregation must return {name} for each of the {len(client_weights)} slots; "
                f"got shape {jnp.shape(value)}"
            )
    return coefficients


def _count_distinct(ids: Array, mask: Array) -> Array:
    """How many different clients: one drawn twice is one receiver."""
    return jnp.sum(first_of_each(ids, mask), dtype=jnp.int32)


def _checked(algorithm: Any) -> FederatedAlgorithm:
    if not isinstance(algorithm, FederatedAlgorithm):
        given = f"{algorithm!r}"
        if inspect.isfunction(algorithm):
            given = f"the function {algorithm.__name__} itself: call it, as "
            given += "fs.fedavg(loss_fn, client_optimizer, local)"
        raise ValueError(f"algorithm must be made by fs.fedavg or a sibling; got {given}")
    return algorithm._replace(local=check_local(algorithm.local))


def _check_choice(name: str, value: Any, allowed: str, means: Mapping[str, str]) -> None:
    check_not_a_name(name, value, means)
    if not callable(value) or isinstance(value, type):
        raise ValueError(f"{name} must be one of {allowed}, or a function; got {value!r}")


def _check_state(algorithm: FederatedAlgorithm, state: FederatedState, data: FederatedData) -> None:
    check_data(data)
    check_steps(algorithm.local, data)
    if not isinstance(state, FederatedState):
        raise ValueError(f"state must come from fs.init; got {type(state).__name__}")
    for x in jax.tree.leaves(state.clients):
        if x.shape[0] != data.num_clients:
            raise ValueError(
                f"state must come from fs.init with this federation of {data.num_clients} "
                f"clients; it holds states of {x.shape[0]}"
            )
    another = ValueError(
        "state must come from fs.init with this algorithm: its server state has another "
        "structure (was it made with another algorithm, optimizer or model?)"
    )
    try:
        params = algorithm.params(state.server)
    except (AttributeError, TypeError, KeyError, IndexError):
        raise another from None
    try:
        expected = jax.eval_shape(algorithm.init, params)
    except Exception:  # an init that cannot be traced cannot be compared with
        return
    try:
        check_same_spec("", "", expected, state.server)
    except ValueError:
        raise another from None
