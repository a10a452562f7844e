"""One client's local training: its blocks, the order of its steps, its phases.

The functions here run for one client and one step; `execution/` repeats them, vmapped
or packed. Which examples step t sees is computed from (client key, t), so nothing is
carried and nothing depends on the padding.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim.core.batching import largest_of_batch
from fedjax_sim.core.checks import INT32_MAX, check_same_spec
from fedjax_sim.core.division import quotient, remainder
from fedjax_sim.core.local_training import num_blocks, shuffles
from fedjax_sim.core.randomness import FINISH, INIT, STEP, permutation_seeds, permute, stream
from fedjax_sim.core.sums import FEW_REPORTED, Sum, add_to, zero_sum
from fedjax_sim.core.types import (
    Array,
    ClientOutput,
    Exchange,
    LocalTraining,
    Metrics,
    PyTree,
)
from fedjax_sim.data import FederatedData

# A position stays where it was with probability 2^-20 above chance: too little to affect training.
_SHUFFLE_ROUNDS = 20
# Steps, and examples, for which a loop computes the shuffle at once. Computed within a step, it is
# fused into the gathers that use it, and computed anew for each number that they read (7 us a step
# at B = 10; in a group 0.3 us).
_GROUP, _GROUP_EXAMPLES = 16, 4096


def block_size(local: LocalTraining, data: FederatedData) -> int:
    """B, or the largest client where that is smaller or the batch full."""
    largest = data.max_num_examples
    return largest if local.batch_size is None else min(local.batch_size, largest)


def block_sizes(local: LocalTraining, data: FederatedData) -> tuple[int, ...]:
    """The sizes that a block may be padded to, static: B, or the sizes for full batches, ascending.

    With `jax_threefry_partitionable` off there is one size, because a draw's first numbers then
    depend on its size, which must not depend on other clients.
    """
    # JAX defines its configuration's names at run time, which its types do not list.
    independent = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    if local.batch_size is None and data.padded_sizes and independent:
        return data.padded_sizes
    return (block_size(local, data),)


def check_steps(local: LocalTraining, data: FederatedData) -> None:
    """Refuses more local steps of a client than an integer of 32 bits counts.

    Raises:
      ValueError: with the numbers.
    """
    blocks = max_num_blocks(local, data)
    if local.epochs * blocks > INT32_MAX:
        raise ValueError(
            f"local must ask for at most {INT32_MAX} steps of a client; got epochs = "
            f"{local.epochs} over the {blocks} blocks of the largest client, "
            f"{local.epochs * blocks} steps"
        )


def max_num_blocks(local: LocalTraining, data: FederatedData) -> int:
    """Blocks of the largest client, static."""
    return -(-data.max_num_examples // block_size(local, data))


def group_size(local: LocalTraining, data: FederatedData) -> int:
    """G, the steps for which a loop computes the shuffle at once, static."""
    max_steps = local.epochs * max_num_blocks(local, data)
    return max(1, min(_GROUP, _GROUP_EXAMPLES // block_size(local, data), max_steps))


class Client(NamedTuple):
    """One client in one round, as the engine drives it. No axis over clients."""

    key: Array
    seeds: Array  # uint32[2], of its permutations
    num_examples: Array  # Int[]
    offset: Array  # Int[]


class Engine(NamedTuple):
    """An exchange's client bound to a round: message, data and key.

    `start`, `step` and `finish` are for one client; `start` includes the probe.

    Attributes:
      exchange: whose client it is.
      data: the federation.
      key: of the clients' training in this round.
      message: what the server sent down.
      platform: of the devices that run it, where a mesh says so; None where the data's own do.
    """

    exchange: Exchange
    data: FederatedData
    key: Array
    message: PyTree
    platform: str | None = None

    def client(self, client_id: Array) -> Client:
        key = stream(self.key, client_id)
        return Client(
            key,
            permutation_seeds(key),
            self.data.num_examples[client_id],
            self.data.offsets[client_id],
        )

    def _with_block(
        self,
        function: Callable[[PyTree, Array], PyTree],
        client: Client,
        block: Array,
        shuffled: Array | None = None,
    ) -> PyTree:
        """`function` of block `block` of a pass: batch [B, ...] and mask [B].

        A full batch is padded to the first of a few sizes that holds it, or, of clients side by
        side under `vmap`, the largest of them.

        Args:
          shuffled: Int[B], which of the client's examples; None for storage order.
        """

        def padded(size: int) -> PyTree:
            positions, mask = self._positions(client, block, size)
            rows = client.offset + (positions if shuffled is None else shuffled)
            batch = jax.tree.map(lambda x: x.at[rows].get(mode="clip"), self.data.examples)
            return function(batch, mask)

        sizes = block_sizes(self.exchange.local, self.data)
        if len(sizes) == 1:
            return padded(sizes[0])
        smaller = jnp.array(sizes[:-1], jnp.int32) < client.num_examples
        size_index = largest_of_batch(jnp.sum(smaller, dtype=jnp.int32))
        return jax.lax.switch(size_index, [partial(padded, size) for size in sizes])

    def _positions(self, client: Client, block: Array, size: int) -> tuple[Array, Array]:
        """Int[B], the places of block `block` in a pass, and Bool[B], which the client has.

        Padding repeats the block's first example, so that it brings in no number the
        client has not got.
        """
        # A step after the client's last is computed but not read; it is given the last block again.
        block = jnp.clip(block, 0, jnp.maximum(self._num_blocks(client) - 1, 0))
        positions = block * size + jnp.arange(size, dtype=jnp.int32)
        mask = positions < client.num_examples
        return jnp.where(mask, positions, positions[:1]), mask

    def _num_blocks(self, client: Client) -> Array:
        return num_blocks(self.exchange.local, client.num_examples)

    def _pass(self, client: Client, step: Array) -> tuple[Array, Array]:
        """The epoch of local step `step`, and its block of the pass."""
        local = self.exchange.local
        if local.order == "epochs":
            blocks = jnp.maximum(self._num_blocks(client), 1)
            return quotient(step, blocks), remainder(step, blocks)
        return jnp.zeros_like(step), quotient(step, local.epochs)

    def shuffled(self, client: Client, steps: Array) -> Array | None:
        """Int[B, G], which of the client's examples these G local steps see.

        Computed in a loop around the one that takes the steps. The steps are the last axis because
        XLA's CPU compiler computes neighbours there side by side, and B is seldom a multiple of
        their number. None where nothing is shuffled.
        """
        if not shuffles(self.exchange.local):
            return None
        epochs, blocks = self._pass(client, steps)
        size = block_size(self.exchange.local, self.data)
        places = jax.vmap(lambda block: self._positions(client, block, size)[0], out_axes=-1)
        return permute(
            client.seeds,
            places(blocks),
            client.num_examples,
            epochs[None],
            rounds=_SHUFFLE_ROUNDS,
            chain=True,
        )

    def start(self, client: Client, client_state: PyTree, dynamic: bool = False) -> PyTree:
        """The carry before the first step, after the probe.

        Args:
          dynamic: the probe passes over this client's blocks, in a loop that cannot be
            differentiated in reverse; or over as many as the largest client has, masked.
        """
        probed = self.probed(client, client_state, dynamic)
        return self.exchange.client.init(
            self.message, client_state, probed, stream(client.key, INIT)
        )

    def probed(self, client: Client, client_state: PyTree, dynamic: bool = False) -> PyTree:
        """What the algorithm's probe sums over the client's blocks; () without a probe."""
        probe = self.exchange.client.probe
        if probe is None:
            return ()
        return self.sum_over_blocks(partial(probe, self.message, client_state), client, dynamic)

    def sum_over_blocks(
        self, function: Callable[[PyTree, Array], PyTree], client: Client, dynamic: bool
    ) -> PyTree:
        """The sum of `function(batch, mask)` over one pass, in storage order.

        Args:
          dynamic: as in `start`.
        """
        blocks = self._num_blocks(client)

        def value(block: Array) -> PyTree:
            return self._with_block(function, client, block)

        max_blocks = max_num_blocks(self.exchange.local, self.data)
        shapes = jax.eval_shape(value, jnp.int32(0))
        sums = zero_sum(shapes, terms=max_blocks, whole=True)
        if dynamic:
            sums = jax.lax.fori_loop(0, blocks, lambda i, sums: add_to(sums, value(i)), sums)
        else:

            def add_masked(sums: Sum, block: Array) -> tuple[Sum, None]:
                return add_to(sums, value(block), block < blocks), None

            sums = jax.lax.scan(add_masked, sums, jnp.arange(max_blocks, dtype=jnp.int32))[0]
        return jax.tree.map(lambda s, x: x.astype(s.dtype), shapes, sums.total)

    def step(
        self,
        client: Client,
        carry: PyTree,
        client_state: PyTree,
        step: Array,
        shuffled: Array | None,
        place: Array,
    ) -> tuple[PyTree, Metrics]:
        """Local step `step`, which is the one at `place` of those that `shuffled` was made for."""
        if shuffled is not None:
            shuffled = jax.lax.dynamic_index_in_dim(shuffled, place, axis=-1, keepdims=False)
        key = stream(client.key, STEP, step)

        def on_block(batch: PyTree, mask: Array) -> tuple[PyTree, Metrics]:
            return self.exchange.client.step(carry, self.message, client_state, batch, mask, key)

        return self._with_block(on_block, client, self._pass(client, step)[1], shuffled)

    def no_metrics(self, client: Client, carry: PyTree, client_state: PyTree) -> Sum:
        """Zeros, to which the steps' metrics are added."""
        shuffled = None
        if shuffles(self.exchange.local):
            size = block_size(self.exchange.local, self.data)
            shuffled = jax.ShapeDtypeStruct((size, 1), jnp.int32)

        def first(shuffled: Array | None) -> Metrics:
            return self.step(client, carry, client_state, jnp.int32(0), shuffled, jnp.int32(0))[1]

        max_steps = self.exchange.local.epochs * max_num_blocks(self.exchange.local, self.data)
        return zero_sum(jax.eval_shape(first, shuffled), max_steps, FEW_REPORTED)

    def finish(
        self, client: Client, carry: PyTree, client_state: PyTree, steps: Array
    ) -> ClientOutput:
        # The output of a client without a step is never read, but its derivative is
        # multiplied by zero: dividing by the steps must not make it infinite.
        steps = jnp.maximum(steps, 1)
        key = stream(client.key, FINISH)
        output = self.exchange.client.finish(
            carry, self.message, client_state, client.num_examples, steps, key
        )
        if not isinstance(output, ClientOutput):
            raise ValueError(
                "client.finish must return an fs.ClientOutput, as fs.ClientOutput(update); got "
                f"{type(output).__name__}"
            )
        check_same_spec(
            "ClientOutput.client_state",
            "the state given, which is init_client's at first",
            client_state,
            output.client_state,
        )
        return output
