"""What may be asked of an execution strategy, whoever wrote it."""

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

    A plain function `(engine, client_states, tasks, options) -> Executed` is a strategy, too, and
    answers as this class does; one's own that differs derives from it. It sums in float32 or
    better, reads no slot without steps, and gives the numbers of the others to rounding.

    Attributes:
      mesh: the devices that it deals the cohort over; None if it stays on the one it is run on.
      lanes: the clients it trains side by side, if that is fixed; it then needs as many slots.
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
        raise NotImplementedError  # a strategy of one's own says how; there is no default

    def chosen(self, engine: Engine, client_states: PyTree, slots: int) -> "Strategy":
        """The strategy that runs where a device is given so many slots: itself, or its choice."""
        return self


@dataclass(frozen=True)
class _Function(Strategy):
    """A user's plain function, which has no mesh, no lanes and no queue."""

    function: Callable[..., Executed]

    def __call__(
        self, engine: Engine, client_states: PyTree, tasks: Tasks, options: Options
    ) -> Executed:
        return self.function(engine, client_states, tasks, options)


def as_strategy(strategy: Any, name: str = "execution") -> Strategy:
    """A strategy that can be asked, of what was given as the argument `name`.

    Raises:
      ValueError: for a function of other arguments.

    >>> as_strategy(lambda engine, client_states, tasks, options: None).queues
    False
    """
    check_takes(name, strategy, *STRATEGY)
    return strategy if isinstance(strategy, Strategy) else _Function(strategy)
