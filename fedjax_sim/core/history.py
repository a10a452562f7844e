"""The metrics of a round, the history of R rounds, and the bytes of an exchange."""

from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim.core.checks import has_values
from fedjax_sim.core.notebook import card, number, words
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.types import Array, PyTree


class RoundMetrics(NamedTuple):
    """The metrics of a round. They are never fed back into training.

    Attributes:
      train: name -> Float[], means over the examples of all local steps of those counted:
        "loss" and what else the loss names. NaN if nobody reports.
      receivers: Int[], distinct clients that were given the model; all K if it is sent `to_all`.
      senders: Int[], distinct clients that sent an update.
      reporting: Int[], updates counted in the average, repeated draws included.
      nonfinite: Int[], updates that hold a NaN or an infinity.
      client_steps: Int[], local steps of those that sent; 2^31 - 1 if there were more, as in the
        next two. `counts()` has them exactly, and so have results and their files.
      lane_steps: Int[], local steps that the strategy computed for them; what is above
        `client_steps` went into padding and idle lanes.
      examples: Int[], examples seen in those client steps, each as often as it was seen.
      update_norm: Float[], the Euclidean norm of the averaged update, and of all of it, as of
        FedNova's |a_k|_1, too; NaN if nothing was averaged.
      reporting_share: Float[], n_V / n: the weight of those counted in that of all,
        whatever the rule; repeated draws count each time.
      empty: Bool[], nothing was aggregated: the server state stayed as it was, unless the
        algorithm acts when empty.
      digits: name -> UInt32[4], the exact counts of those three that 32 bits might not hold, in
        digits of base 2^16, the lowest first; () where none can be as large.
      seconds: Float[], simulated by the round's clock: of the slowest client that reports, or with
        a deadline the time that the server waited; of an asynchronous one since the server's last
        step; () without a clock.
      staleness: "mean" and "max" -> Float[], of the updates that arrived: the server's steps since
        their clients were sent the model; () of a round that waits for its whole cohort.
    """

    train: dict[str, Array]
    receivers: Array
    senders: Array
    reporting: Array
    nonfinite: Array
    client_steps: Array
    lane_steps: Array
    examples: Array
    update_norm: Array
    reporting_share: Array
    empty: Array
    digits: dict[str, Array] | tuple[()] = ()
    seconds: Array | tuple[()] = ()
    staleness: dict[str, Array] | tuple[()] = ()

    def __repr__(self) -> str:
        return fields_of(self)

    def counts(self) -> dict[str, np.ndarray]:
        """`client_steps`, `lane_steps` and `examples` on the host, exact: Int64 where 32 bits might
        not hold them.

        >>> import jax.numpy as jnp
        >>> rounds = RoundMetrics({}, *10 * [jnp.int32(5)], {"examples": jnp.array([1, 0, 3, 0])})
        >>> {name: int(count) for name, count in rounds.counts().items()}
        {'client_steps': 5, 'lane_steps': 5, 'examples': 12884901889}
        """
        counts = {
            "client_steps": np.asarray(self.client_steps),
            "lane_steps": np.asarray(self.lane_steps),
            "examples": np.asarray(self.examples),
        }
        base = 1 << 16 * np.arange(4, dtype=np.int64)
        return counts | {
            name: np.asarray(digits, np.int64) @ base for name, digits in dict(self.digits).items()
        }


class History(NamedTuple):
    """The metrics of R rounds, each leaf `[R, ...]`.

    Attributes:
      rounds: the `RoundMetrics` of each round: the ledger of what was sent, seen and computed.
      evaluation: what `evaluate` returned after each round; NaN (or 0, where it is no floating
        number) after a round that was not evaluated; () without one.
      evaluated: Bool, whether the model was evaluated after this round.
    """

    rounds: RoundMetrics
    evaluation: PyTree
    evaluated: Array

    def __repr__(self) -> str:
        facts = self._facts()
        return f"History({number(facts.pop('rounds'))} rounds{', ' * bool(facts)}{words(facts)})"

    def _repr_html_(self) -> str:
        return card("History", self._facts())

    def _facts(self) -> dict[str, Any]:
        """The rounds, and the last value of what was measured, where there are values to show."""
        if not has_values(self.evaluated) or self.evaluated.ndim != 1:
            return {"rounds": str(list(np.shape(self.evaluated)))}
        evaluated = np.asarray(self.evaluated)
        facts: dict[str, Any] = {"rounds": len(evaluated)}
        for name, x in self.rounds.train.items():
            values = np.asarray(x)
            facts |= _last(f"train_{name}", values, ~np.isnan(values))
        for path, x in jax.tree_util.tree_flatten_with_path(self.evaluation)[0]:
            name = jax.tree_util.keystr(path, simple=True, separator="_") or "evaluation"
            facts |= _last(name, np.asarray(x), evaluated.astype(bool))
        return facts


def _last(name: str, values: np.ndarray, where: np.ndarray) -> dict[str, Any]:
    """The last value of a column of numbers; nothing of a wider one, or if there is none."""
    measured = values[where] if values.ndim == 1 else values[:0]
    return {name: measured[-1].item()} if len(measured) else {}


class Communication(NamedTuple):
    """Bytes of one exchange, exact.

    Attributes:
      down: bytes of the message, or of the algorithm's `message_wire`, for each receiver.
      up: bytes of update and total, or of the algorithm's `wire`, for each sender.
    """

    down: int
    up: int

    def facts(self) -> dict[str, Any]:
        """The entries of summary.json: the bytes, and what they count."""
        direction_text = "one message to a client (down), and one from it (up)"
        return {"bytes": self._asdict(), "bytes_of": direction_text}

    def total(self, rounds: RoundMetrics) -> tuple[int, int]:
        """Bytes down and up of a round, or of all rounds of a history, as Python integers.

        `receivers * down` and `senders * up`, summed on the host: in the graph, 32 bits
        would overflow.

        >>> import fedjax_sim as fs, jax.numpy as jnp
        >>> rounds = fs.RoundMetrics({}, jnp.array([50, 50]), jnp.array([5, 4]), *8 * [None])
        >>> Communication(down=10**8, up=10**8).total(rounds)
        (10000000000, 900000000)
        """
        receivers, senders = (np.asarray(x, np.int64) for x in (rounds.receivers, rounds.senders))
        return int(receivers.sum()) * self.down, int(senders.sum()) * self.up
