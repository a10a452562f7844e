"""Every client trains alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from fedjax_sim import aggregation as rules
from fedjax_sim.baselines.refusals import check_blind, check_plain
from fedjax_sim.core.randomness import SERVER, stream
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    ClientUpdate,
    Exchange,
    FederatedAlgorithm,
    FederatedState,
    Metrics,
    Params,
    PyTree,
    RoundContext,
    accumulator,
)
from fedjax_sim.training.experiment import Experiment, check_experiment


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["server", "client"],
    meta_fields=["get_params"],
)
@dataclass(frozen=True, repr=False)
class OwnModel:
    """A client's state under `local_only`: the algorithm's server and client state, for it alone.

    Attributes:
      server: the algorithm's server state, for a federation of this client alone.
      client: the algorithm's client state.
      get_params: the algorithm's `params`, static.
    """

    server: PyTree
    client: PyTree
    get_params: Callable[[PyTree], Params]

    def local_models(self) -> Params:
        """The clients' models, where this is the state of all of them: leaves `[K, ...]`."""
        return jax.vmap(self.get_params)(self.server)

    def __repr__(self) -> str:
        return fields_of(self, "server", "client")


def local_only(experiment: Experiment) -> Experiment:
    """Every client trains on its own data alone, and nothing is averaged.

    Client k is a federation of one: from its own model w_k it does the round of the algorithm,

        w_k <- server_update(w_k, d_k),   d_k its update from w_k,

    for FedAvg its E local epochs, whenever the federated run picks it. Key, sampler, cohorts,
    stragglers, local training and so the budget are those of the federated run, round by round.

    Each client keeps its model (and what else the algorithm keeps: a server optimizer's state, a
    control variate) as client state, leaves `[K, ...]`: memory is O(K) models. `local_models`
    reads them. The server's model, `state.params`, stays the first one, so the experiment has no
    `evaluate`; see `evaluate_local` for the end. Only the number of the round is sent down, and
    nothing up; `update_norm` is 0.

    Raises:
      ValueError: for what is no experiment; for a sampler that draws with replacement, since a
        client drawn twice would have two models; for an algorithm that is compressed, or has
        personal models.

    >>> import fedjax_sim as fs, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.full(3, 1.0)}, {"x": np.full(5, 2.0)}])
    >>> loss_fn = lambda w, batch, key: (batch["x"] - w) ** 2 / 2
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(1.0), fs.LocalTraining())
    >>> experiment = fs.Experiment(algorithm, 0.0, data, fs.sampling.everyone(), num_rounds=1)
    >>> state, _ = fs.baselines.local_only(experiment).run(jax.random.key(0))
    >>> fs.baselines.local_models(state).tolist()
    [1.0, 2.0]
    """
    check_experiment(experiment)
    if experiment.sampler.with_replacement:
        raise ValueError(
            "experiment.sampler must not draw with replacement, since a client drawn twice would "
            "have two models; use uniform or weighted"
        )
    check_plain(experiment.algorithm)
    check_blind(experiment.sampler)
    return experiment._replace(
        algorithm=_alone(experiment.algorithm), aggregation=rules.uniform, evaluate=None
    )


def _alone(base: FederatedAlgorithm) -> FederatedAlgorithm:
    """The algorithm in which each client is a federation of one; its message is the round."""
    *earlier, last = map(_own_exchange, base.exchanges)
    return FederatedAlgorithm(
        init=_itself,
        params=_itself,
        init_client=lambda w: OwnModel(base.init(w), base.init_client(w), base.params),
        broadcast=last.broadcast,
        client=last.client,
        server_update=last.server_update,
        local=last.local,
        check=base.check,
        earlier=tuple(earlier),
    )


def _own_exchange(base: Exchange) -> Exchange:
    """The exchange of a client with its own server, whose state is part of the client's."""
    inner = base.client

    def probe(message: Array, client_state: OwnModel, batch: PyTree, mask: Array) -> PyTree:
        assert inner.probe is not None
        return inner.probe(
            base.broadcast(client_state.server, message), client_state.client, batch, mask
        )

    def init(message: Array, client_state: OwnModel, probed: PyTree, key: Array) -> PyTree:
        return inner.init(
            base.broadcast(client_state.server, message), client_state.client, probed, key
        )

    def step(
        carry: PyTree,
        message: Array,
        client_state: OwnModel,
        batch: PyTree,
        mask: Array,
        key: Array,
    ) -> tuple[PyTree, Metrics]:
        sent = base.broadcast(client_state.server, message)
        return inner.step(carry, sent, client_state.client, batch, mask, key)

    def finish(
        carry: PyTree,
        message: Array,
        client_state: OwnModel,
        num_examples: Array,
        num_steps: Array,
        key: Array,
    ) -> ClientOutput:
        sent = base.broadcast(client_state.server, message)
        output = inner.finish(carry, sent, client_state.client, num_examples, num_steps, key)
        update, total = jax.tree.map(  # in the types that a strategy sums in
            lambda x: x.astype(accumulator(x.dtype)), (output.update, output.total)
        )
        one_array = jnp.ones((), jnp.result_type(float))
        context = RoundContext(
            round=message,
            num_clients=1,
            num_reporting=jnp.int32(1),
            weight_sum=one_array,
            reporting_share=one_array,
            key=stream(key, SERVER),
            denominator=one_array,
            largest_weight=one_array,
        )
        server = base.server_update(client_state.server, update, total, context)
        new_state = OwnModel(server, output.client_state, client_state.get_params)
        return ClientOutput(update=(), client_state=new_state, metrics=output.metrics)

    return Exchange(
        broadcast=lambda server, round: round,
        client=ClientUpdate(init, step, finish, None if inner.probe is None else probe),
        server_update=lambda server, update, total, context: server,
        local=base.local,
    )


def _itself(params: Params) -> Params:
    return params


def local_models(state: FederatedState) -> Params:
    """The clients' models after `local_only`, leaves `[K, ...]`; the first one if never picked.

    Raises:
      ValueError: for another experiment's state.
    """
    clients = getattr(state, "clients", None)
    if not isinstance(clients, OwnModel):
        raise ValueError(
            "state must come from a run of fs.baselines.local_only(experiment); got "
            f"{type(state).__name__} with clients of {type(clients).__name__}"
        )
    return clients.local_models()
