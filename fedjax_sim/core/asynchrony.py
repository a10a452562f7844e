"""Asynchronous rounds: what an algorithm says of them, and the results that are yet to arrive."""

from collections.abc import Callable
from typing import NamedTuple

from fedjax_sim.core.clock import Clock
from fedjax_sim.core.reprs import fields_of, one_line
from fedjax_sim.core.types import Array, PyTree


class Asynchrony(NamedTuple):
    """How many clients train at a time, and what the server makes of results that come late.

    Attributes:
      buffer: b, the arrivals of which the server makes one step.
      concurrency: c >= b, the clients that train at a time, at most.
      clock: how fast the K clients are.
      staleness: Float[b] -> Float[b], the factor of an update by the server's steps since its
        client was sent the model.
      mixes_models: whether what is scaled is the distance of the client's model from the server's
        of now, as of one that mixes the two; otherwise it is the update as the client made it.
    """

    buffer: int
    concurrency: int
    clock: Clock
    staleness: Callable[[Array], Array]
    mixes_models: bool = False

    def __repr__(self) -> str:
        return fields_of(self)


@one_line
class Pending(NamedTuple):
    """What the clients in training will send; a slot that `in_flight` says is free has no meaning.

    A client is in at most one slot. Its result is computed when it is sent the model, since it
    depends on nothing that happens later, and held here until it arrives.

    Attributes:
      update: leaves [c, ...], as a client hands them over; where models are mixed, its model.
      total: leaves [c, ...].
      client_state: leaves [c, ...], which the client has once its update has arrived.
      client_ids: Int[c], in [0, K).
      version: Int[c], the server's steps before the client was sent the model.
      seconds: Float[c], simulated, until the update arrives; they are counted from the server's
        last step, so that a long run loses no digits of them.
      counted: Bool[c], whether the update will count.
      finite: Bool[c], whether it holds no NaN and no infinity.
      in_flight: Bool[c].
    """

    update: PyTree
    total: PyTree
    client_state: PyTree
    client_ids: Array
    version: Array
    seconds: Array
    counted: Array
    finite: Array
    in_flight: Array
