"""The type of an execution strategy, and user's functions as strategies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from jax.sharding import Mesh

from fedjax_sim.core.checks import check_takes
from fedjax_sim.core.tasks import STRATEGY, Executed, Options, Tasks
from fedjax_sim.core.types import PyTree
from fedjax_sim.execution.client import Engine


class Strategy:
    """How the clients of a round are executed: a function of the round's engine.

    A plain function `(engine, client_states, tasks, options) -> Executed` is a strategy, too, with
    this class's values of the attributes; a strategy with other values derives from this class. It
    sums in float32 or better, reads no slot without steps, and gives the results of the other
    strategies up to rounding.

    Attributes:
      mesh: the devices that it deals the cohort over; None if it uses only one.
      lanes: the clients that it trains side by side, if fixed; it then needs as many slots.
      queues: whether a slot without steps costs nothing, so that `sharded` may give every device
        all the slots.
    """

    mesh: Mesh | None = None
    lanes: int | None = None
    queues: ClassVar[bool] = False

    def __call__(
        self, engine: Engine, client_states: PyTree, tasks: Tasks, options: Options
    ) -> Executed:
        """One round's clients.

        Args:
          engine: data, key and message of the round, and what one client does.
          client_states: of the cohort, leaves [m, ...].
          tasks: what each slot has to do.
          options: static.
        """
        raise NotImplementedError  # every strategy defines this; there is no default

    def chosen(self, engine: Engine, client_states: PyTree, slots: int) -> "Strategy":
        """The strategy for so many slots on a device: itself, or the one that it chooses."""
        return self

    def side_by_side(self, engine: Engine, client_states: PyTree, slots: int) -> int:
        """The clients, of so many slots, that it trains at once: what memory is needed for."""
        return slots


@dataclass(frozen=True)
class _Function(Strategy):
    """A user's plain function, which has no mesh, no lanes and no queue."""

    function: Callable[..., Executed]

    def __call__(
        self, engine: Engine, client_states: PyTree, tasks: Tasks, options: Options
    ) -> Executed:
        return self.function(engine, client_states, tasks, options)


def as_strategy(strategy: Any, name: str = "execution") -> Strategy:
    """The argument `name` as a `Strategy`; a plain function is wrapped.

    Raises:
      ValueError: for a function of other arguments.

    >>> as_strategy(lambda engine, client_states, tasks, options: None).queues
    False
    """
    check_takes(name, strategy, *STRATEGY)
    return strategy if isinstance(strategy, Strategy) else _Function(strategy)
