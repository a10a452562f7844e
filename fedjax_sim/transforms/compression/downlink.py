"""A server that sends its model by a codec."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import check_same_spec
from fedjax_sim.core.models import model_of, with_model
from fedjax_sim.core.randomness import CODEC, stream
from fedjax_sim.core.reprs import one_line
from fedjax_sim.core.trees import difference, sent_with
from fedjax_sim.core.types import Array, FederatedAlgorithm, Params, PyTree, RoundContext
from fedjax_sim.transforms.compression.codec import Codec


@dataclass(frozen=True)
class EncodedMessage:
    """What travels down in place of the message: shapes, or bits where the codec counts them."""

    downlink: Codec

    def __call__(self, message: PyTree) -> PyTree | int:
        downlink, model = self.downlink, model_of(message)
        beside = with_model(message, ())
        if downlink.bits is not None:
            return sent_with(downlink.bits(model), beside)

        def encoded(model: Params) -> PyTree:
            return downlink.encode(model, downlink.init(model), jax.random.key(0))[0]

        return jax.eval_shape(encoded, model), beside


@one_line
class WithSent(NamedTuple):
    """The server's state: the algorithm's own, and the model that clients decode."""

    own: PyTree
    sent: Params


@dataclass(frozen=True)
class OwnParams:
    """`params` of a server whose state has the algorithm's own inside; equal where those are."""

    inner: Callable[[PyTree], Params]

    def __call__(self, server: WithSent) -> Params:
        return self.inner(server.own)


def encoding_messages(
    algorithm: FederatedAlgorithm, downlink: Codec, error_feedback: bool
) -> FederatedAlgorithm:
    """The algorithm whose clients train from a model that they decode.

    The server encodes its next message at the end of a round, whose key it has: so the codec runs
    once a round and not once a client, and a message that is evaluated twice is the same.

    Args:
      error_feedback: whether the change is encoded of what clients have, and not the model.
    """

    def model(own: PyTree, round: Array) -> Params:
        message = algorithm.broadcast(own, round)
        params = model_of(message)
        if params is None:
            raise ValueError(
                "algorithm must have the model as the field `params` of its message, to send it by "
                f"a codec; its message is {type(message).__name__}"
            )
        return params

    def decoded(params: Params, key: Array) -> Params:
        received = downlink.decode(downlink.encode(params, downlink.init(params), key)[0])
        check_same_spec("downlink.decode", "the model", params, received)
        return received

    def init(params: Params) -> WithSent:
        own = algorithm.init(params)
        first = model(own, jnp.zeros((), jnp.int32))
        if not error_feedback:  # no round has given a key yet
            first = decoded(first, stream(jax.random.key(0), CODEC))
        return WithSent(own, first)

    def broadcast(server: WithSent, round: Array) -> PyTree:
        return with_model(algorithm.broadcast(_checked(server).own, round), server.sent)

    def server_update(
        server: WithSent, update: PyTree, total: PyTree, context: RoundContext
    ) -> WithSent:
        own = algorithm.server_update(server.own, update, total, context)
        following, key = model(own, context.round + 1), stream(context.key, CODEC)
        if not error_feedback:
            return WithSent(own, decoded(following, key))
        change = decoded(difference(following, server.sent), key)
        return WithSent(own, jax.tree.map(jnp.add, server.sent, change))

    def personal(server: WithSent, state: PyTree, probed: PyTree) -> Params:
        assert algorithm.personal is not None
        return algorithm.personal(_checked(server).own, state, probed)

    return algorithm._replace(
        init=init,
        params=OwnParams(algorithm.params),
        broadcast=broadcast,
        server_update=server_update,
        personal=None if algorithm.personal is None else personal,
        message_wire=EncodedMessage(downlink),
        to_all=error_feedback,
    )


def _checked(server: Any) -> WithSent:
    if not isinstance(server, WithSent):
        raise ValueError(
            "state must come from fs.init with this algorithm: its server has sent no model"
        )
    return server
