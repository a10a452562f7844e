"""R rounds in one compiled call."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim import sampling
from fedjax_sim.core.asynchrony import Pending
from fedjax_sim.core.checks import check_count, check_not_a_name, check_takes
from fedjax_sim.core.division import remainder
from fedjax_sim.core.evaluate import Evaluate, subject_of
from fedjax_sim.core.history import History
from fedjax_sim.core.randomness import check_key
from fedjax_sim.core.registry import declared
from fedjax_sim.core.types import Array, FederatedState, PyTree
from fedjax_sim.data import FederatedData, check_data, check_whole
from fedjax_sim.sampling import Sampler
from fedjax_sim.training.round import RoundFn
from fedjax_sim.training.state import check_from_init


def run(
    round_fn: RoundFn,
    key: Array,
    state: FederatedState,
    data: FederatedData,
    sampler: Sampler,
    num_rounds: int,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 1,
    last: int | None = None,
) -> tuple[FederatedState, History]:
    """R rounds in one `lax.scan`: pure, so jit, vmap and (with `vmapped`) grad go through.

    It keeps nothing between calls: as it stands each call traces and compiles its R rounds anew,
    which takes seconds. To call it more than once, compile it once, as

        run = jax.jit(lambda key, state: fs.run(round_fn, key, state, data, sampler, 100))

    `fs.simulate` compiles an experiment once, whatever the number of rounds.

    Rounds are numbered by `state.round`, and every stream of random numbers is folded by
    it: a run of R rounds is a run of r and then one of R - r with the same key.

    Args:
      round_fn: from `fs.make_round`.
      key: the base key of the whole experiment.
      state: from `fs.init`, or what an earlier run returned.
      sampler: from `fs.sampling`.
      num_rounds: R >= 1, static.
      evaluate: params -> pytree, called in the graph; `fs.evaluator` makes one. `fs.of_state` marks
        one that is given the state.
      evaluate_every: r >= 1, static: `evaluate` after rounds r, 2 r, ..., counted from the
        experiment's first round.
      last: static: also after this round, whatever `evaluate_every`.

    Raises:
      ValueError: if num_rounds or evaluate_every < 1, m > K, the sampler draws with replacement
        and the algorithm keeps client state; for a window; and what round_fn raises.

    >>> import fedjax_sim as fs, jax, optax, numpy as np
    >>> data = fs.FederatedData.from_clients([{"x": np.ones(3), "y": np.ones(3)}] * 4)
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    >>> state, history = fs.run(
    ...     fs.make_round(algorithm), jax.random.key(0), fs.init(algorithm, 0.0, data),
    ...     data, fs.sampling.uniform(2), num_rounds=3, evaluate=lambda w: w)
    >>> [round(float(w), 3) for w in history.evaluation]
    [0.2, 0.36, 0.488]
    """
    check_run(round_fn, key, state, data, sampler, num_rounds, evaluate_every)
    check_evaluate(evaluate)
    num_rounds, evaluate_every = int(num_rounds), int(evaluate_every)

    def body(state: FederatedState, _: None) -> tuple[FederatedState, History]:
        return next_round(round_fn, key, state, data, sampler, evaluate, evaluate_every, last)

    return jax.lax.scan(body, state, None, length=num_rounds)


def next_round(
    round_fn: RoundFn,
    key: Array,
    state: FederatedState,
    data: FederatedData,
    sampler: Sampler,
    evaluate: Evaluate | None,
    evaluate_every: int,
    last: int | None = None,
) -> tuple[FederatedState, History]:
    """One round of a run, with the cohort it draws and the evaluation that is due.

    The arguments are those of `run`.
    """
    cohort = sampler.draw(key, state.round, data, state.params)
    state, metrics = round_fn(key, state, data, cohort)
    if evaluate is None:
        return state, History(metrics, (), jnp.array(False))
    subject = subject_of(evaluate, state)
    if evaluate_every == 1:
        return state, History(metrics, evaluate(subject), jnp.array(True))
    due = remainder(state.round, evaluate_every) == 0
    if last is not None:
        due |= state.round == last

    def skipped(subject: PyTree) -> PyTree:
        def missing(x: jax.ShapeDtypeStruct) -> Array:
            inexact = jnp.issubdtype(x.dtype, jnp.inexact)
            return jnp.full(x.shape, jnp.nan if inexact else 0, x.dtype)

        return jax.tree.map(missing, jax.eval_shape(evaluate, subject))

    return state, History(metrics, jax.lax.cond(due, evaluate, skipped, subject), due)


def check_evaluate(evaluate: Any) -> None:
    """Refuses a value that is no function of params.

    Raises:
      ValueError: saying what was given and what is allowed.
    """
    if evaluate is not None and not callable(evaluate):
        raise ValueError(
            "evaluate must be a function of params, as fs.evaluator makes one, or fs.of_state of "
            "one of the state, or None; got "
            f"{evaluate!r}"
        )
    if evaluate is not None:
        check_takes("evaluate", evaluate, "params")


def check_run(
    round_fn: RoundFn,
    key: Array,
    state: FederatedState,
    data: FederatedData,
    sampler: Any,
    num_rounds: int,
    evaluate_every: int,
) -> None:
    """Checks the arguments of a run, before anything compiles.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    check_key(key)
    check_data(data)
    check_whole(
        data,
        "data",
        "clients outside it would never report. Give a window to the function of fs.make_round, "
        "for a cohort that it holds",
    )
    if not callable(round_fn):
        raise ValueError(f"round_fn must come from fs.make_round; got {type(round_fn).__name__}")
    check_takes("round_fn", round_fn, "key", "state", "data", "cohort")
    check_from_init(state)
    check_count("num_rounds", num_rounds)
    check_count("evaluate_every", evaluate_every)
    names = (*declared(sampling), "available", "custom", "deadline")
    check_not_a_name("sampler", sampler, {name: f"fs.sampling.{name}(...)" for name in names})
    if not isinstance(sampler, Sampler):
        sampler_text = f"{sampler!r}"
        if callable(sampler):
            sampler_text = (
                f"the function {sampler.__name__} itself: call it, or fs.sampling.custom of it"
            )
        raise ValueError(
            f"sampler must be one of fs.sampling, as fs.sampling.uniform(m); got {sampler_text}"
        )
    check_takes("sampler.sample", sampler.sample, *sampler.arguments)
    if sampler.with_replacement and jax.tree.leaves(state.clients):
        raise ValueError(
            "sampler must not draw with replacement where the algorithm keeps client state: "
            "a client drawn twice would have two; use uniform or weighted"
        )
    if sampler.with_replacement and isinstance(state.pending, Pending):
        raise ValueError(
            "sampler must not draw with replacement for asynchronous rounds, in which a client "
            "trains once at a time; use uniform or weighted"
        )
