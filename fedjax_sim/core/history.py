"""What is reported of R rounds, and the bytes of their exchanges."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim.core.checks import has_values
from fedjax_sim.core.notebook import card, number, words
from fedjax_sim.core.types import Array, Params, PyTree, RoundMetrics

Evaluate = Callable[[Params], PyTree]


class History(NamedTuple):
    """What is reported of R rounds, each leaf `[R, ...]`.

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
    known = values[where] if values.ndim == 1 else values[:0]
    return {name: known[-1].item()} if len(known) else {}


class Communication(NamedTuple):
    """Bytes of one exchange, exact.

    Attributes:
      down: bytes of the message, for each receiver.
      up: bytes of update and total, for each sender.
    """

    down: int
    up: int

    def facts(self) -> dict[str, Any]:
        """What summary.json says of it: the bytes, and of what they are."""
        of = "one message to a client (down), and one from it (up)"
        return {"bytes": self._asdict(), "bytes_of": of}

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
