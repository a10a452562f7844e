"""All clients of the cohort side by side, each padded to the federation's largest."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fedjax_sim.core.counts import constant
from fedjax_sim.core.local_training import shuffles
from fedjax_sim.core.registry import declare
from fedjax_sim.core.sums import Sum, add_to
from fedjax_sim.core.tasks import Executed, Options, Tasks
from fedjax_sim.core.trees import all_finite, sum_where, weighted_sum, where
from fedjax_sim.core.types import Array, LocalTraining, PyTree
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.client import Engine, group_size, max_num_blocks
from fedjax_sim.execution.pooled import pooled, takes_pooled
from fedjax_sim.execution.strategy import Strategy


@declare("all clients side by side, padded to the largest")
def vmapped() -> "Vmapped":
    """Clients side by side under `vmap`, their steps in one `lax.scan`.

    Every client takes the steps of the largest one of the federation, masked behind its
    own last: best for clients of about equal size. Memory is O(m) models. Forward- and
    reverse-mode differentiation go through.
    """
    return Vmapped()


@dataclass(frozen=True)
class Vmapped(Strategy):
    """See `vmapped`."""

    def __call__(
        self, engine: Engine, client_states: PyTree, tasks: Tasks, options: Options
    ) -> Executed:
        if takes_pooled(engine.exchange, options):
            return pooled(engine, client_states, tasks, dynamic=False)

        groups, group = _groups(engine.exchange.local, engine.data)
        steps = jnp.arange(groups * group, dtype=jnp.int32).reshape(groups, group)

        # The result of an idle slot is not read, but its derivative is multiplied by zero, and zero
        # times infinity is NaN. So an idle slot repeats the computation of a busy one.
        busy = tasks.num_steps > 0
        working = jnp.argmax(busy)
        padded_tasks = tasks.client_ids, tasks.num_steps, client_states
        padded_tasks = jax.tree.map(lambda x: where(busy, x, x[working][None]), padded_tasks)

        def train(client_id: Array, num_steps: Array, client_state: PyTree) -> PyTree:
            client = engine.client(client_id)

            def take_group(carry: tuple[PyTree, Sum], steps: Array) -> tuple[PyTree, None]:
                shuffled = engine.shuffled(client, steps)

                def take(carry: tuple[PyTree, Sum], place: Array) -> tuple[PyTree, None]:
                    old, metrics = carry
                    step = steps[0] + place
                    new, step_metrics = engine.step(
                        client, old, client_state, step, shuffled, place
                    )
                    active = step < num_steps
                    return (where(active, new, old), add_to(metrics, step_metrics, active)), None

                return jax.lax.scan(take, carry, jnp.arange(group, dtype=jnp.int32))

            start = engine.start(client, client_state)
            start = start, engine.no_metrics(client, start, client_state)
            (carry, sums), _ = jax.lax.scan(take_group, start, steps)
            output = engine.finish(client, carry, client_state, num_steps)
            return output._replace(metrics={**sums.total, **dict(output.metrics)})

        output = jax.vmap(train)(*padded_tasks)
        finite = jax.vmap(all_finite)((output.update, output.total, output.client_state))
        counted = busy & finite if options.drop_nonfinite else busy
        return Executed(
            update=weighted_sum(tasks.weights, counted, output.update),
            total=weighted_sum(tasks.shares, counted, output.total),
            client_states=output.client_state,
            metrics=sum_where(counted, output.metrics),
            counted=counted,
            finite=finite,
            lane_steps=_lane_steps(tasks.client_ids.shape[0] * steps.size),
            updates=output.update if options.keep_updates else (),
        )


def _groups(local: LocalTraining, data: FederatedData) -> tuple[int, int]:
    """(groups, G): the largest client's steps, in groups whose shuffle is computed at once.

    G is chosen so that the last group has the fewest steps that are not needed.
    """
    steps = local.epochs * max_num_blocks(local, data)
    if not shuffles(local):
        return 1, steps
    least = group_size(local, data)
    sizes = range(least, min(2 * least, steps) + 1)
    group = min(sizes, key=lambda size: -steps % size)
    return -(-steps // group), group


def _lane_steps(number: int) -> Array:
    """Int[], or digits if the sum over the devices of a mesh may exceed 32 bits."""
    return jnp.int32(number) if number < 2**20 else constant(number)
