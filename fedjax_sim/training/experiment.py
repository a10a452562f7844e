"""One experiment, described: all that a run needs beside its key."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from fedjax_sim import aggregation as rules
from fedjax_sim.core.asynchrony import Pending
from fedjax_sim.core.checks import check_takes
from fedjax_sim.core.clock import Clock, check_clock
from fedjax_sim.core.evaluate import Evaluate, subject_of
from fedjax_sim.core.history import Communication, History
from fedjax_sim.core.randomness import INIT, check_key, stream
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.tasks import Attack, Executed
from fedjax_sim.core.types import (
    AggregationRule,
    Array,
    FederatedAlgorithm,
    FederatedState,
    Params,
    PyTree,
)
from fedjax_sim.data import FederatedData, Source, check_data
from fedjax_sim.sampling import Sampler
from fedjax_sim.training.arguments import imagined_answer
from fedjax_sim.training.communication import communication
from fedjax_sim.training.round import RoundFn, make_round
from fedjax_sim.training.run import check_evaluate, check_run, next_round, run
from fedjax_sim.training.state import init


class Experiment(NamedTuple):
    """What `fs.simulate` runs, and what a function given to `fs.sweep` may return.

    The fields are the arguments of `fs.make_round` and `fs.run`.

    Attributes:
      algorithm: from `fs.fedavg` and its siblings; its hyper-parameters may be traced.
      params: the first model, or a function key -> params that draws it.
      data: the federation; or, for `fs.simulate`, an `fs.data.Source` that reads it.
      sampler: from `fs.sampling`.
      num_rounds: R.
      aggregation: a rule of `fs.aggregation`.
      execution: a strategy of `fs.execution`; None leaves it to who runs the experiment.
      nonfinite: "keep" or "drop".
      evaluate: params -> pytree, as `fs.evaluator` makes one, or of the state, marked by
        `fs.of_state`; None for none.
      evaluate_every: r; also after the last round.
      attack: what malicious clients send, from `fs.attacks`; None for no attack.
      malicious: Bool[K], who attacks; it may be traced.
      clock: how fast the clients are, of `fs.clocks`; None keeps no time.

    >>> import fedjax_sim as fs, jax, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones(3), "y": np.ones(3)}] * 4)
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    >>> experiment = fs.Experiment(algorithm, 0.0, data, fs.sampling.uniform(2), num_rounds=3)
    >>> state, history = experiment.run(jax.random.key(0))
    >>> round(float(state.params), 3)
    0.488
    """

    algorithm: FederatedAlgorithm
    params: Params | Callable[[Array], Params]
    data: FederatedData | Source
    sampler: Sampler
    num_rounds: int
    aggregation: AggregationRule = rules.selected
    execution: Callable[..., Executed] | None = None
    nonfinite: str = "keep"
    evaluate: Evaluate | None = None
    evaluate_every: int = 1
    attack: Attack | None = None
    malicious: Array | None = None
    clock: Clock | None = None

    def __repr__(self) -> str:
        return fields_of(self)

    def with_plain_counts(self) -> "Experiment":
        """With its counts as Python's integers, which NumPy's would widen under x64."""
        return self._replace(
            num_rounds=int(self.num_rounds), evaluate_every=int(self.evaluate_every)
        )

    @property
    def federation(self) -> FederatedData:
        """The data; of a `Source` all but the examples, which have their shapes alone."""
        return self.data.without_examples if isinstance(self.data, Source) else self.data

    @property
    def round_fn(self) -> RoundFn:
        """The round of `fs.make_round`."""
        return make_round(
            self.algorithm,
            self.aggregation,
            self.execution,
            self.nonfinite,
            self.attack,
            self.malicious,
            self.clock,
        )

    def start(self, key: Array, num_states: int | None = None) -> FederatedState:
        """The state before round 0; `params`, if it draws, is given a stream of the key's own.

        Args:
          num_states: as in `fs.init`.
        """
        check_key(key)
        params: Any = self.params
        if callable(params):
            check_takes("params", params, "key")
        first = params(stream(key, INIT)) if callable(params) else params
        return init(self.algorithm, first, self.data, num_states)

    def next_round(self, key: Array, state: FederatedState) -> tuple[FederatedState, History]:
        """One round, evaluated if that is due; pure."""
        return next_round(
            self.round_fn,
            key,
            state,
            check_data(self.data),
            self.sampler,
            self.evaluate,
            self.evaluate_every,
            last=self.num_rounds,
        )

    def shapes_of_round(self, key: Array, state: FederatedState) -> History:
        """Of what is reported of a round; computes nothing."""
        if not isinstance(self.data, Source):
            return jax.eval_shape(self.next_round, key, state)[1]
        whole = self.federation

        # All that may be shapes are arguments, because what a function closes over must be arrays.
        def one_round(key: Array, state: FederatedState, examples: PyTree, at: Array) -> History:
            data = replace(whole, examples=examples, offsets=at)
            return self._replace(data=data).next_round(key, state)[1]

        return jax.eval_shape(one_round, key, state, whole.examples, whole.offsets)

    def communication(self) -> Communication:
        """The bytes of one exchange, as `fs.communication` counts them; computes nothing."""
        state = jax.eval_shape(self.start, jax.random.key(0))
        return communication(self.algorithm, state.params, self.federation)

    def begin(self, key: Array) -> PyTree:
        """What a loop over rounds carries before round 0: the state but the round's number."""
        return carry_of(self.start(key))

    def state_of(self, round: Array, carry: PyTree) -> FederatedState:
        """The state with which `round` begins, of what is carried to it."""
        server, clients, *pending = carry
        return FederatedState(server, clients, round, self.algorithm.params, *pending)

    def advance(self, key: Array, round: Array, carry: PyTree) -> tuple[PyTree, History]:
        """As `next_round`, of what `begin` returns, and what this returned for the round before."""
        state, row = self.next_round(key, self.state_of(round, carry))
        return carry_of(state), row

    def run(self, key: Array) -> tuple[FederatedState, History]:
        """All R rounds in one scan, as `fs.run`; pure, and compiled anew at each unjitted call.

        Raises:
          ValueError: for a `Source`, which `fs.simulate` reads while it trains.
        """
        return run(
            self.round_fn,
            key,
            self.start(key),
            check_data(self.data),
            self.sampler,
            self.num_rounds,
            self.evaluate,
            self.evaluate_every,
            last=self.num_rounds,
        )

    def _ask_rule(self) -> None:
        """Asks the rule of a cohort of as many slots as rounds have; computes nothing.

        Raises:
          ValueError: from the rule, as Krum of too few clients.
        """
        slots, asynchrony = self.sampler.size, self.algorithm.asynchrony
        if asynchrony is not None:
            slots = asynchrony.buffer
        num_clients = self.federation.num_clients
        slots = num_clients if slots is None else slots
        # Its weights alone, because a function, as `combine` is, has no shape.
        jax.eval_shape(lambda: imagined_answer(self.aggregation, slots, num_clients).weights)

    def check(self, key: Array) -> FederatedState:
        """Refuses what cannot run, before anything compiles; returns the state's shapes.

        Raises:
          ValueError: naming the argument, what was given and what is allowed.
        """
        state = jax.eval_shape(self.start, key)
        check_run(
            self.round_fn,
            key,
            state,
            self.federation,
            self.sampler,
            self.num_rounds,
            self.evaluate_every,
        )
        self._ask_rule()
        if self.clock is not None:
            check_clock(self.clock, self.federation.num_clients)
        check_evaluate(self.evaluate)
        if self.evaluate is not None:  # which refuses test examples that are not of the model
            jax.eval_shape(self.evaluate, subject_of(self.evaluate, state))
        return state


def check_experiment(experiment: Experiment) -> None:
    """Refuses what is no experiment.

    Raises:
      ValueError: with its type.
    """
    if not isinstance(experiment, Experiment):
        raise ValueError(f"experiment must be an fs.Experiment; got {type(experiment).__name__}")


def carry_of(state: FederatedState) -> PyTree:
    """What a loop over rounds carries: all of a state but the round's number."""
    carry = state.server, state.clients
    # Without what is pending in no synchronous run, since saved runs have a checksum of this.
    return (*carry, state.pending) if isinstance(state.pending, Pending) else carry
