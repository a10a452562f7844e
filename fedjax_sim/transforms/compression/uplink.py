"""Clients that send their updates by a codec."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.algorithm import each_seen, first_output
from fedjax_sim.core.checks import check_same_spec
from fedjax_sim.core.randomness import CODEC, stream
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.trees import sent_with
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
from fedjax_sim.transforms.compression.codec import Codec


@dataclass(frozen=True)
class Encoded:
    """What travels up in place of update and total: shapes, or bits where the codec counts them."""

    uplink: Codec

    def __call__(self, update: PyTree, total: PyTree) -> PyTree | int:
        uplink = self.uplink
        if uplink.bits is not None:
            return sent_with(uplink.bits(update), total)

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


def encoding_updates(
    algorithm: FederatedAlgorithm, uplink: Codec, error_feedback: bool
) -> FederatedAlgorithm:
    """The algorithm whose clients' updates are decoded before they are averaged.

    Args:
      error_feedback: whether a client keeps its residual, as state of its own.
    """
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
        return WithResidual(state, uplink.init(_no_update(algorithm, params)))

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

    return each_seen(algorithm)._replace(
        init_client=init_client if error_feedback else algorithm.init_client,
        client=ClientUpdate(init, step, finish, inner.probe),
        personal=None if algorithm.personal is None else personal,
        personal_probe=given_probe if given_probe in (None, no_probe) else personal_probe,
        wire=Encoded(uplink),
    )


def _no_update(algorithm: FederatedAlgorithm, params: Params) -> PyTree:
    """Zeros of the structure, shapes and dtypes of a client's update."""
    shapes = jax.eval_shape(lambda w: first_output(algorithm, w, ()).update, params)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
