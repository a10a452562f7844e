"""An algorithm whose clients send their updates by a codec."""

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.checks import check_same_spec
from fedjax_sim.core.randomness import CODEC, stream
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.trees import num_bytes
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    ClientUpdate,
    FederatedAlgorithm,
    Metrics,
    Params,
    PyTree,
    no_probe,
)
from fedjax_sim.transforms.compression.codecs import Codec


@dataclass(frozen=True)
class Encoded:
    """What travels up in place of update and total: shapes, or bits where the codec counts them."""

    uplink: Codec

    def __call__(self, update: PyTree, total: PyTree) -> PyTree | int:
        uplink = self.uplink
        if uplink.bits is not None:
            return uplink.bits(update) + 8 * num_bytes(total)

        def encoded(update: PyTree) -> PyTree:
            return uplink.encode(update, uplink.init(update), jax.random.key(0))[0]

        return jax.eval_shape(encoded, update), total


class WithResidual(NamedTuple):
    """A client's state under error feedback: the algorithm's own, and what it has held back."""

    own: PyTree
    residual: PyTree

    def put_own(self, params: Params) -> Params:
        """The model as a run leaves it, with what the algorithm's clients keep of it."""
        put_own = getattr(self.own, "put_own", None)
        return params if put_own is None else put_own(params)

    def __repr__(self) -> str:
        return fields_of(self)


def compressed(
    algorithm: FederatedAlgorithm, uplink: Codec, error_feedback: bool = False
) -> FederatedAlgorithm:
    """The algorithm with its clients' updates sent by a codec: what is averaged is the decoded one.

        w_{t+1} = server_update(w_t, sum_{k in V} a_k decode(wire_k) / denominator)
        wire_k, residual_k = encode(d_k, residual_k)

    With error feedback a client keeps its residual until it is picked again, beside the state that
    the algorithm keeps itself: memory of K updates. Whose update does not count (a dropout, or one
    that was dropped) keeps the residual that it had. Without, each round begins at `uplink.init`,
    which is zero. Seide et al. 2014; Karimireddy et al. 2019 (arXiv 1901.09847).

    Only `ClientOutput.update` is encoded; a `total`, as SCAFFOLD's control variates, travels as it
    is. `fs.communication` counts the bytes of the wire. FedSGD's pooled gradient is not used, since
    each client's own update must be seen.

    Args:
      uplink: from `top_k`, or one's own.
      error_feedback: whether what is held back is sent later.

    Raises:
      ValueError: for what is no algorithm or no codec; for an algorithm that is compressed already
        or has several exchanges in a round; with error feedback, for one whose clients probe, as
        IFCA's, because the shapes of its update are not known without data; from the round, for a
        codec that decodes to other shapes.

    >>> import fedjax_sim as fs, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones((3, 100))}])
    >>> loss_fn = lambda w, batch, key: batch["x"] @ w
    >>> algorithm = fs.fedavg(loss_fn, optax.sgd(0.1), fs.LocalTraining())
    >>> algorithm = fs.compression.compressed(
    ...     algorithm, fs.compression.top_k(0.05), error_feedback=True)
    >>> fs.communication(algorithm, jnp.zeros(100), data)
    Communication(down=400, up=40)
    """
    _check(algorithm, uplink, error_feedback)
    inner, given_probe = algorithm.client, algorithm.personal_probe

    def own(state: PyTree) -> PyTree:
        if not error_feedback:
            return state
        if not isinstance(state, WithResidual):
            raise ValueError(
                "state must come from fs.init with this algorithm: its clients hold no residual"
            )
        return state.own

    def init_client(params: Params) -> PyTree:
        state = algorithm.init_client(params)
        return WithResidual(state, uplink.init(_no_update(algorithm, params, state)))

    def init(message: PyTree, state: PyTree, probed: PyTree, key: Array) -> PyTree:
        return inner.init(message, own(state), probed, key)

    def step(
        carry: PyTree, message: PyTree, state: PyTree, batch: PyTree, mask: Array, key: Array
    ) -> tuple[PyTree, Metrics]:
        return inner.step(carry, message, own(state), batch, mask, key)

    def finish(
        carry: PyTree,
        message: PyTree,
        state: PyTree,
        num_examples: Array,
        num_steps: Array,
        key: Array,
    ) -> ClientOutput:
        output = inner.finish(carry, message, own(state), num_examples, num_steps, key)
        residual = state.residual if error_feedback else uplink.init(output.update)
        wire, residual = uplink.encode(output.update, residual, stream(key, CODEC))
        decoded = uplink.decode(wire)
        check_same_spec("uplink.decode", "the update", output.update, decoded)
        client_state = output.client_state
        return output._replace(
            update=decoded,
            client_state=WithResidual(client_state, residual) if error_feedback else client_state,
        )

    def personal(server: PyTree, state: PyTree, probed: PyTree) -> Params:
        assert algorithm.personal is not None
        return algorithm.personal(server, own(state), probed)

    def personal_probe(message: PyTree, state: PyTree, batch: PyTree, mask: Array) -> PyTree:
        assert given_probe is not None
        return given_probe(message, own(state), batch, mask)

    return algorithm._replace(
        init_client=init_client if error_feedback else algorithm.init_client,
        client=ClientUpdate(init, step, finish, inner.probe),
        pooled_gradient=None,
        personal=None if algorithm.personal is None else personal,
        personal_probe=given_probe if given_probe in (None, no_probe) else personal_probe,
        wire=Encoded(uplink),
    )


def _check(algorithm: Any, uplink: Any, error_feedback: Any) -> None:
    """Refuses what cannot be compressed, or by what.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    if not isinstance(algorithm, FederatedAlgorithm):
        raise ValueError(f"algorithm must be made by fs.fedavg or a sibling; got {algorithm!r}")
    if not isinstance(uplink, Codec) or not all(map(callable, uplink[:3])):
        codec_text = repr(uplink)
        if inspect.isfunction(uplink):
            codec_text = f"the function {uplink.__name__} itself: call it"
        raise ValueError(
            f"uplink must be a codec, as fs.compression.top_k(0.1) makes; got {codec_text}"
        )
    if not isinstance(error_feedback, bool):
        raise ValueError(f"error_feedback must be True or False; got {error_feedback!r}")
    if algorithm.earlier:
        raise ValueError(
            "algorithm must have one exchange in a round to be compressed; got one of "
            f"{len(algorithm.exchanges)}"
        )
    if algorithm.wire is not None:
        raise ValueError(
            "algorithm must not be compressed already, nor send its update as a total, too, which "
            "no codec encodes, nor be private, whose clip a codec may undo (compress first): its "
            "field `wire` is set"
        )
    if error_feedback and algorithm.client.probe is not None:
        raise ValueError(
            "error_feedback must be False for an algorithm whose clients probe, because the "
            "shapes of its update, and so of the residual, are not known without data"
        )


def _no_update(algorithm: FederatedAlgorithm, params: Params, state: PyTree) -> PyTree:
    """Zeros of the structure, shapes and dtypes of a client's update."""

    def update(params: Params, state: PyTree) -> PyTree:
        message = algorithm.broadcast(algorithm.init(params), jnp.zeros((), jnp.int32))
        key, one_array = jax.random.key(0), jnp.ones((), jnp.int32)
        carry = algorithm.client.init(message, state, (), key)
        return algorithm.client.finish(carry, message, state, one_array, one_array, key).update

    shapes = jax.eval_shape(update, params, state)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
