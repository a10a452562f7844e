"""All clients of the cohort side by side, each padded to the federation's largest."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fedjax_sim.base import Array, Executed, FederatedAlgorithm, Metrics, PyTree, Tasks
from fedjax_sim.data import FederatedData
from fedjax_sim.execution.pooled import pooled
from fedjax_sim.local import Engine, max_num_blocks
from fedjax_sim.masking import (
    add_where,
    all_finite,
    sum_where,
    weighted_sum,
    where,
    zeros_of,
)


def vmapped() -> "Vmapped":
    """Clients side by side under `vmap`, their steps in one `lax.scan`.

    Every client takes the steps of the largest one of the federation, masked behind its
    own last: best for clients of about equal size. Memory is O(m) models. Forward- and
    reverse-mode differentiation go through.
    """
    return Vmapped()


@dataclass(frozen=True)
class Vmapped:
    """See `vmapped`."""

    def __call__(
        self,
        algorithm: FederatedAlgorithm,
        data: FederatedData,
        key: Array,
        message: PyTree,
        client_states: PyTree,
        tasks: Tasks,
        drop_nonfinite: bool,
    ) -> Executed:
        engine = Engine(algorithm, data, key, message)
        if algorithm.pooled_gradient is not None and not drop_nonfinite:
            return pooled(engine, client_states, tasks, dynamic=False)

        local = algorithm.local
        steps = jnp.arange(local.epochs * max_num_blocks(local, data), dtype=jnp.int32)

        # What an idle slot computes is never read, but its derivative is multiplied by zero,
        # and zero times infinity is NaN: it does what one that works does anyway.
        busy = tasks.num_steps > 0
        working = jnp.argmax(busy)
        done = tasks.client_ids, tasks.num_steps, client_states
        done = jax.tree.map(lambda x: where(busy, x, x[working][None]), done)

        def train(client_id: Array, num_steps: Array, client_state: PyTree) -> PyTree:
            client = engine.client(client_id)

            def body(carry: tuple[PyTree, Metrics], step: Array) -> tuple[PyTree, None]:
                old, metrics = carry
                new, seen = engine.step(client, old, client_state, step)
                active = step < num_steps
                return (where(active, new, old), add_where(active, metrics, seen)), None

            start = engine.start(client, client_state)
            metrics = zeros_of(
                jax.eval_shape(engine.step, client, start, client_state, steps[0])[1]
            )
            (carry, metrics), _ = jax.lax.scan(body, (start, metrics), steps)
            output = engine.finish(client, carry, client_state, num_steps)
            return output._replace(metrics={**metrics, **dict(output.metrics)})

        output = jax.vmap(train)(*done)
        finite = jax.vmap(all_finite)((output.update, output.total, output.client_state))
        counted = busy & finite if drop_nonfinite else busy
        return Executed(
            update=weighted_sum(tasks.weights, counted, output.update),
            total=weighted_sum(tasks.shares, counted, output.total),
            client_states=output.client_state,
            metrics=sum_where(counted, output.metrics),
            counted=counted,
            finite=finite,
            lane_steps=jnp.int32(tasks.client_ids.shape[0] * len(steps)),
        )
