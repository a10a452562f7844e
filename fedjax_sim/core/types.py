"""The core types. Everything else in the package is a function on these.

Axes in the comments: `[K]` the federation, `[m]` the cohort, `[B]` a block of
examples. A client-level function never sees `[K]` or `[m]`: it is written for one
client, and the engine decides how clients are executed together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.coefficients import Coefficients as Coefficients
from fedjax_sim.core.coefficients import Combine as Combine
from fedjax_sim.core.passes import LocalTraining as LocalTraining
from fedjax_sim.core.reprs import fields_of, one_line

if TYPE_CHECKING:  # these files import this one
    from fedjax_sim.core.asynchrony import Asynchrony, Pending

PyTree = Any
Params = PyTree
Array = jax.Array
Metrics = dict[str, tuple[Array, Array]]  # name -> (sum, count)

# loss_fn(params, batch, key) -> losses[B], or (losses[B], {name: values[B]}).
# losses[i] may depend on example i alone: the engine masks padding afterwards. A draw for a block
# has the examples' axis first, [B, ...], so that no example's numbers depend on the padding.
LossFn = Callable[[Params, PyTree, Array | None], Any]


def accumulator(dtype: Any) -> Any:
    """The dtype to sum values of `dtype` in: itself, or float32 if it has 32 bits or fewer."""
    return dtype if jnp.dtype(dtype).itemsize > 4 else jnp.dtype(jnp.float32)


@one_line
class Cohort(NamedTuple):
    """The clients of one round.

    A slot with `mask` False is padding: it costs time but changes nothing. A client
    with `mask` True and `reports` False is a dropout: it was given the model and never
    answered. A client also does not report if it completes no local step (it has no
    examples, or its share of `work` is less than one step), or if its id is not in
    `[0, K)`.

    Attributes:
      client_ids: Int[m], in [0, K).
      mask: Bool[m], was given the model; None for all.
      reports: Bool[m], sent an update back; None for all with mask.
      inclusion: Float[m], the probability of being picked (with replacement: the expected
        draws), which the `unbiased` rule divides by; None if not known.
      work: Float[m] in [0, 1], the share of its local steps a straggler completes, rounded
        down to whole steps; None for all of them.
      deadline: Float[m], positive, the simulated seconds that the server waits for a client at
        most; one that is late does not report. Needs a clock. None waits for all that report.
      partial: Bool[m], a client that would be late sends what it has done by the deadline, in
        whole steps, if it is one at least; None for no client.
    """

    client_ids: Array
    mask: Array | None = None
    reports: Array | None = None
    inclusion: Array | None = None
    work: Array | None = None
    deadline: Array | None = None
    partial: Array | None = None


@one_line
class ClientOutput(NamedTuple):
    """What one client hands over. `update` and `total` are the uplink.

    Attributes:
      update: averaged with the aggregation rule's coefficients; floating leaves.
      total: summed with the client's fixed share p_k: control variates and their kind.
      client_state: kept by the client until it is picked again.
      metrics: {name: (sum, count)}, pooled over reporters, never weighted by coefficients.
    """

    update: PyTree
    total: PyTree = ()
    client_state: PyTree = ()
    metrics: Metrics | tuple[()] = ()


@one_line
class ClientUpdate(NamedTuple):
    """One client's local training in phases, so that the engine can interleave clients.

    There is no batch axis over clients anywhere. `step` returns its metrics beside the
    carry: the engine sums them over the steps, so that whatever values a loss reports
    need no slot in the carry.

    Attributes:
      init: (message, client_state, probed, key) -> carry, before the first local step. `message`
        is what `broadcast` sent; `carry` is any pytree of arrays.
      step: (carry, message, client_state, batch, mask, key) -> (carry, metrics), one local step
        on a block: leaves of `batch` are [B, ...], `mask` is Bool[B] and False for padding,
        `metrics` are {name: (sum, count)} over the mask.
      finish: (carry, message, client_state, num_examples, num_steps, key) -> ClientOutput, after
        the last step; n_k and the steps that were done are Int[]. The new client state has the
        structure, shapes and dtypes of the old.
      probe: (message, client_state, batch, mask) -> pytree, summed over the client's blocks (one
        pass, in storage order) before `init` is given it as `probed`; None: `init` is given ().
    """

    init: Callable[[PyTree, PyTree, PyTree, Array], PyTree]
    step: Callable[[PyTree, PyTree, PyTree, PyTree, Array, Array], tuple[PyTree, Metrics]]
    finish: Callable[[PyTree, PyTree, PyTree, Array, Array, Array], ClientOutput]
    probe: Callable[[PyTree, PyTree, PyTree, Array], PyTree] | None = None


def no_probe(message: PyTree, client_state: PyTree, batch: PyTree, mask: Array) -> tuple[()]:
    """`personal_probe` of an algorithm whose `personal` reads nothing of a client's examples."""
    return ()


def unpooled(*_: Any) -> Any:
    """`pooled_gradient` of clients that send a gradient, every one of which must be seen, as by a
    codec: each client trains, and what they send is still no difference of two models."""
    raise AssertionError("each client trains; this is a mark, and is not called")


@one_line
class RoundContext(NamedTuple):
    """What the server knows of a round beside the averages.

    Attributes:
      round: Int[], t.
      num_clients: K.
      num_reporting: Int[], updates that count in the average.
      weight_sum: Float[], the sum of their aggregation weights a_k.
      reporting_share: Float[], the sum of their fixed shares p_k.
      key: for the server's own draws, as noise: it differs by run and round, and by nothing else.
      denominator: Float[], what `sum_k a_k update_k` was divided by.
      largest_weight: Float[], the largest size of an a_k that counts. One client of a bounded
        update moves the average by at most `largest_weight / denominator` times the bound; what a
        rule's `combine` makes of the updates it may move further.
    """

    round: Array
    num_clients: int
    num_reporting: Array
    weight_sum: Array
    reporting_share: Array
    key: Array
    denominator: Array
    largest_weight: Array


class Exchange(NamedTuple):
    """Down and up once: the server sends, the clients that report answer, the server takes it in.

    Attributes:
      broadcast: (server_state, round) -> message, the downlink; `round` is Int[], t.
      client: what a client does with it.
      server_update: (server_state, update, total, RoundContext) -> server_state.
      local: E, B and the order of a client's blocks.
      pooled_gradient: as in `FederatedAlgorithm`.
      aggregation: Coefficients -> Coefficients, what it makes of the round's rule; None takes it
        as it is.
    """

    broadcast: Callable[[PyTree, Array], PyTree]
    client: ClientUpdate
    server_update: Callable[[PyTree, PyTree, PyTree, RoundContext], PyTree]
    local: LocalTraining
    pooled_gradient: Callable[..., tuple[PyTree, dict[str, Array]]] | None = None
    aggregation: Callable[["Coefficients"], "Coefficients"] | None = None

    def __repr__(self) -> str:
        return fields_of(self, "client", "server_update", "local")


class FederatedAlgorithm(NamedTuple):
    """A federated algorithm: the mathematics of one client and one server.

    `fs.fedavg` and its siblings make one; `_replace` on theirs is the short way to your own.
    `broadcast`, `client`, `server_update`, `local` and `pooled_gradient` are its exchange with the
    clients, the last one of a round that has several.

    Attributes:
      init: params -> server_state, any pytree of arrays that holds the model.
      params: server_state -> params; a module-level function, so that states compare equal.
      init_client: params -> client_state, of one client before it is first picked; () if a client
        keeps nothing. The engine holds it for all K clients, leaves [K, ...].
      broadcast: (server_state, round) -> message, the downlink; `round` is Int[], t.
      client: the local training.
      server_update: (server_state, update, total, RoundContext) -> server_state. `update` is
        sum_k a_k update_k / denominator and `total` is sum_k p_k total_k over the clients that
        report, each with the structure that `finish` gave it.
      local: E, B and the order of a client's blocks.
      pooled_gradient: (message, batch, weights, keys) -> (update, {"loss": losses, ...}), all
        [B] but `update`: a shortcut to the result of `client` for full-batch methods of one
        step. `update` is the sum over examples of weight times contribution, summed by the engine
        over blocks of the cohort's examples with weight a_k / n_k, so that no client has a model of
        its own. The weights it is given are scaled to at most 1 / B, which the engine undoes in
        float32. None: each client trains; `unpooled`: likewise, and sends a gradient.
      check: (params, examples) -> None, raises ValueError for what does not fit; leaves of
        `examples` are [N, ...]. `fs.init` calls it before anything runs.
      personal: (server_state, client_state, probed) -> params, the model that a client uses itself;
        `probed` is what `personal_probe` sums over the client's training examples, () without.
        `fs.personal_params` and `fs.evaluate_clients` ask for it. None: the global model.
      acts_when_empty: the server takes its step also where nothing was aggregated, with an update
        and a total of zeros, as one that must release noise in every round. Clients' states stay.
      earlier: exchanges that come before it in every round, over the same cohort; in each, who
        reports takes at least one step. Where one of them aggregates nothing, the round is empty.
        `RoundMetrics` adds up their steps and examples; what it says of training is of the last.
      wire: (update, total) -> what travels up in their place, of the shapes of what `finish` hands
        over: a pytree of shapes, or a whole number of bits. For `fs.communication` alone; None
        where update and total travel as they are.
      personal_probe: as `client.probe`, for `personal` alone, so that training does not pay for it;
        None: `client.probe`; `no_probe`: nothing, since the states say all.
      check_rule: (Coefficients) -> None, raises ValueError for a rule that it cannot follow, by
        whether there is a denominator and a `combine`; of their numbers nothing is known. None: it
        follows any.
      aggregation: as in `Exchange`, of this one, after `check_rule`.
      message_wire: (message) -> what travels down in its place, as `wire`; None for the message.
      to_all: every client is sent the message in every round, whether it takes part or not.
      asynchrony: of an algorithm of `fs.asynchronous`; None: a round waits for its whole cohort.
    """

    init: Callable[[Params], PyTree]
    params: Callable[[PyTree], Params]
    init_client: Callable[[Params], PyTree]
    broadcast: Callable[[PyTree, Array], PyTree]
    client: ClientUpdate
    server_update: Callable[[PyTree, PyTree, PyTree, RoundContext], PyTree]
    local: LocalTraining
    pooled_gradient: Callable[..., tuple[PyTree, dict[str, Array]]] | None = None
    check: Callable[[Params, PyTree], None] | None = None
    personal: Callable[[PyTree, PyTree, PyTree], Params] | None = None
    acts_when_empty: bool = False
    earlier: tuple[Exchange, ...] = ()
    wire: Callable[[PyTree, PyTree], PyTree | int] | None = None
    personal_probe: Callable[[PyTree, PyTree, PyTree, Array], PyTree] | None = None
    check_rule: Callable[["Coefficients"], None] | None = None
    aggregation: Callable[["Coefficients"], "Coefficients"] | None = None
    message_wire: Callable[[PyTree], PyTree | int] | None = None
    to_all: bool = False
    asynchrony: "Asynchrony | None" = None

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All of a round, in their order."""
        last = Exchange(
            self.broadcast,
            self.client,
            self.server_update,
            self.local,
            None if self.pooled_gradient is unpooled else self.pooled_gradient,
            self.aggregation,
        )
        return (*self.earlier, last)

    def __repr__(self) -> str:
        return fields_of(self, "client", "server_update", "local")


# (cohort, client_weights of the cohort [m], client_weights of all [K]) -> Coefficients. The
# cohort's `reports` are the slots that complete a step.
AggregationRule = Callable[[Cohort, Array, Array], Coefficients | tuple[Array, Array | None]]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["server", "clients", "round", "pending"],
    meta_fields=["get_params"],
)
@dataclass(frozen=True, repr=False)
class FederatedState:
    """What passes from round to round; a pytree. Made by `fs.init`.

    Attributes:
      params: the global model w_t.
      server: the algorithm's server state.
      clients: leaves [K, ...], or the `HeldStates` of some clients; () where nothing is kept.
      round: Int[], rounds done so far.
      get_params: the algorithm's `params`, static.
      pending: what clients in training will send; () where a round waits for its whole cohort.
    """

    server: PyTree
    clients: PyTree
    round: Array
    get_params: Callable[[PyTree], Params]
    pending: "Pending | tuple[()]" = ()

    @property
    def params(self) -> Params:
        """The global model w_t."""
        return self.get_params(self.server)

    def __repr__(self) -> str:
        return fields_of(self, "server", "clients", "round", "pending")
