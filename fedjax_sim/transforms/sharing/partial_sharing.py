"""An algorithm whose clients share a part of their model and keep the rest."""

from typing import Any, NamedTuple

from fedjax_sim.core.checks import check_same_spec
from fedjax_sim.core.models import model_of, with_model
from fedjax_sim.core.paths import Chosen, by_path, check_chosen, chosen_paths, map_models, put
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    ClientUpdate,
    FederatedAlgorithm,
    Metrics,
    Params,
    PyTree,
    RoundContext,
    accumulator,
    no_probe,
)
from fedjax_sim.transforms.sharing.refusals import (
    check_kept,
    check_message,
    check_models,
    check_shareable,
)
from fedjax_sim.transforms.sharing.shared_part import stripped, with_zeros


class WithPersonal(NamedTuple):
    """A client's state: the algorithm's own, and its personal parameters by their paths."""

    own: PyTree
    personal: dict[str, Array]

    def put_own(self, params: Params) -> Params:
        """The model with these parameters in their places; of all clients' states, `[K, ...]`."""
        return put(params, self.personal)

    def __repr__(self) -> str:
        return fields_of(self)


def partial(algorithm: FederatedAlgorithm, personal: Chosen) -> FederatedAlgorithm:
    """The algorithm with a part of the model that stays with each client.

    The parameters of a model are w = (u, v), and `personal` names v. Client k starts from the
    server's u_t and its own v_k, trains both by its local steps to u_k and v_k', keeps v_k', and
    sends what it would have sent had v not moved:

        u_{t+1} = server_update(u_t, sum_k a_k (u_k - u_t) / denominator),   v_k <- v_k'

    All v_k begin at the first model's values; whose update does not count keeps the v_k that it
    had. Neither the message nor what goes up has v in it, nor what has the structure of the model
    beside it, as SCAFFOLD's control variates, whose part of v is 0: no drift is to be corrected of
    what nobody averages. So with a gradient that clients measure before they train. So
    `fs.communication` counts u alone, and norms, as q-FedAvg's, are of u. FedProx holds v_k near
    the v_k with which the round began, and the model that a client of MOON keeps has its v_k'.
    A momentum that is sent, as MimeLite's, has no part of v, so that v descends at
    (1 - momentum) times `client_lr`.

    `state.params` has the whole structure: u_t, and the first values of v, which never change.
    `fs.personal_params` and `fs.evaluate_clients` see each client's (u_t, v_k). Clients' states
    are K times v, beside what the algorithm keeps itself.

    It takes algorithms of one exchange whose clients train one model. To compress what is sent,
    compress the result: `fs.compression.compressed(fs.partial(...), ...)`.

    Args:
      algorithm: from `fs.fedavg` and its siblings, or one's own: its message and its clients'
        carry must have the model as their field `params` (or the carry's `descent.params`), and so
        must their state, if they keep a model.
      personal: which parameters stay with a client: the path of one, as "Dense_1/kernel", or of all
        below it, "Dense_1"; a pattern, "Dense_*/bias"; a sequence of those; or a function of a path
        that returns True or False.

    Raises:
      ValueError: for an algorithm of several exchanges, with personal models already, compressed,
        or whose clients send one gradient, as FedSGD's; from `fs.init`, for a name or a pattern of
        no parameter, or for one of all, with the paths that there are, and for an algorithm of
        one's own whose message or carry has no model as its field `params`, or whose clients keep
        one elsewhere.

    >>> import fedjax_sim as fs, jax, numpy as np, optax
    >>> def loss_fn(params, batch, key):
    ...     return (params["body"] * batch["x"] + params["head"] - batch["y"]) ** 2
    >>> data = fs.FederatedData.from_clients(
    ...     [{"x": np.ones(4), "y": np.full(4, y)} for y in (1.0, 3.0)])
    >>> algorithm = fs.partial(fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining()), "head")
    >>> params = {"body": np.float32(0), "head": np.float32(0)}
    >>> fs.communication(algorithm, params, data)  # of the body alone, both ways
    Communication(down=4, up=4)
    >>> state = fs.init(algorithm, params, data)
    >>> state, _ = jax.jit(fs.make_round(algorithm))(
    ...     jax.random.key(0), state, data, fs.Cohort([0, 1]))
    >>> [round(float(x), 3) for x in fs.personal_params(algorithm, state)["head"]]
    [0.2, 0.6]
    """
    check_shareable(algorithm)
    check_chosen("personal", personal)
    inner = algorithm.client

    def own_leaves(params: Params) -> dict[str, Array]:
        leaves = by_path(params)
        return {path: leaves[path] for path in chosen_paths("personal", personal, params)}

    def init_client(params: Params) -> WithPersonal:
        return WithPersonal(algorithm.init_client(params), own_leaves(params))

    def broadcast(server: PyTree, round: Array) -> PyTree:
        params = algorithm.params(server)
        return stripped(algorithm.broadcast(server, round), params, own_leaves(params))

    def probe(message: PyTree, state: WithPersonal, batch: PyTree, mask: Array) -> PyTree:
        assert inner.probe is not None
        whole = _whole(message, state)
        probed = inner.probe(whole, state.own, batch, mask)
        # A control variate may be made of it, and nothing corrects the drift of a personal part.
        return with_zeros(stripped(probed, model_of(whole), state.personal))

    def init(message: PyTree, state: WithPersonal, probed: PyTree, key: Array) -> PyTree:
        return inner.init(_whole(message, state), state.own, probed, key)

    def step(
        carry: PyTree,
        message: PyTree,
        state: WithPersonal,
        batch: PyTree,
        mask: Array,
        key: Array,
    ) -> tuple[PyTree, Metrics]:
        return inner.step(carry, _whole(message, state), state.own, batch, mask, key)

    def finish(
        carry: PyTree,
        message: PyTree,
        state: WithPersonal,
        num_examples: Array,
        num_steps: Array,
        key: Array,
    ) -> ClientOutput:
        whole, params = _whole(message, state), model_of(carry)
        unmoved = with_model(carry, put(params, state.personal))
        output = inner.finish(unmoved, whole, state.own, num_examples, num_steps, key)
        trained = own_leaves(params)
        update, total = stripped((output.update, output.total), params, trained)
        own = output.client_state
        if model_of(own) is not None:  # such as the one that trained, and its own leaves have moved
            own = with_model(own, put(model_of(own), trained))
        kept = WithPersonal(own, trained)
        return output._replace(update=update, total=total, client_state=kept)

    def server_update(
        server: PyTree, update: PyTree, total: PyTree, context: RoundContext
    ) -> PyTree:
        params = algorithm.params(server)
        after = algorithm.server_update(
            server, with_zeros(update, accumulator), with_zeros(total, accumulator), context
        )
        check_same_spec("server_update", "the server state", server, after)

        def hold(before: PyTree, after: PyTree) -> PyTree:
            return put(after, own_leaves(before))

        # Also what moves without an update, as by the weight decay of a server's optimizer.
        return map_models(hold, params, server, after)

    def check(params: Params, examples: PyTree) -> None:
        own = own_leaves(params)
        if algorithm.check is not None:
            algorithm.check(params, examples)
        check_models(algorithm, params, examples)
        check_message(algorithm, params, own)
        check_kept(algorithm, params, own)

    def own_model(server: PyTree, state: WithPersonal, probed: PyTree) -> Params:
        return _checked(state).put_own(algorithm.params(server))

    return algorithm._replace(
        init_client=init_client,
        broadcast=broadcast,
        client=ClientUpdate(init, step, finish, None if inner.probe is None else probe),
        server_update=server_update,
        check=check,
        personal=own_model,
        personal_probe=no_probe,
    )


def _whole(message: PyTree, state: WithPersonal) -> PyTree:
    """The message of the algorithm itself: the client's own leaves in the model, and zeros in what
    is sent beside it."""
    personal = _checked(state).personal
    model = model_of(message).filled(lambda path, spec: personal[path])
    return with_zeros(with_model(message, model))


def _checked(state: Any) -> WithPersonal:
    if not isinstance(state, WithPersonal):
        raise ValueError(
            "state must come from fs.init with this algorithm: its clients hold no personal "
            "parameters"
        )
    return state
