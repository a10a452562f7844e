"""The arithmetic of one client's local steps: their number, and the examples that they see."""

import jax.numpy as jnp

from fedjax_sim.core.checks import INT32_MAX, check_count
from fedjax_sim.core.counts import difference, product
from fedjax_sim.core.division import num_groups, quotient
from fedjax_sim.core.types import Array, LocalTraining


def check_local(local: LocalTraining) -> LocalTraining:
    """`local` with Python's integers; refuses E < 1, B < 1 and unknown orders.

    Raises:
      ValueError: naming the argument, what was given and what is allowed.
    """
    if not isinstance(local, LocalTraining):
        raise ValueError(f"local must be an fs.LocalTraining; got {local!r}")
    epochs, size = check_count("epochs", local.epochs), local.batch_size
    if size is not None:
        size = check_count("batch_size", size, ", or None for the full batch")
    if local.order not in ("epochs", "blocks"):
        raise ValueError(f'order must be "epochs" or "blocks"; got {local.order!r}')
    return local._replace(epochs=epochs, batch_size=size)


def num_blocks(local: LocalTraining, num_examples: Array) -> Array:
    """Blocks in one pass: `ceil(n_k / B)`."""
    if local.batch_size is None:
        return jnp.minimum(num_examples, 1)
    return num_groups(num_examples, _in_32_bits(local.batch_size))


def _in_32_bits(batch_size: int) -> int:
    """B, cut to 32 bits, which changes nothing because no client has more examples."""
    return min(int(batch_size), INT32_MAX)


def num_steps(local: LocalTraining, num_examples: Array, work: Array | None = None) -> Array:
    """Local steps a client completes: `floor(work * E * ceil(n_k / B))`."""
    steps = local.epochs * num_blocks(local, num_examples)
    if work is None:
        return steps
    work = jnp.clip(jnp.asarray(work, jnp.result_type(float)), 0, 1)
    share = work * steps.astype(work.dtype)
    # The product may be just below a whole number by rounding: a work of 0.53 is 53 of 100 steps.
    # The tolerance is at most a quarter of a step, so that half a step never counts as one.
    nearest = jnp.round(share)
    rounding = jnp.minimum(4 * jnp.finfo(work.dtype).eps * share, 0.25)
    completed = jnp.where(nearest - share <= rounding, nearest, jnp.floor(share))
    # As floats the steps may be rounded up to 2^31, which exceeds 32-bit integers.
    completed = jnp.minimum(completed, jnp.asarray(2**31 - 2**7, work.dtype)).astype(jnp.int32)
    return jnp.where(work == 1, steps, jnp.minimum(completed, steps))


def num_seen(local: LocalTraining, num_examples: Array, steps: Array) -> Array:
    """Examples in a client's first `steps` local steps, each as often as it was seen.

    Only the last block of a pass may be short, so `B steps` less what the short ones lack.
    """
    size, short, lacking = _short_blocks(local, num_examples, steps)
    return steps * size - short * lacking


def digits_seen(local: LocalTraining, num_examples: Array, steps: Array) -> Array:
    """`num_seen` beyond 32 bits: UInt32[..., 4], as in `counts`."""
    size, short, lacking = _short_blocks(local, num_examples, steps)
    return difference(product(steps, size), product(short, lacking))


def _short_blocks(
    local: LocalTraining, num_examples: Array, steps: Array
) -> tuple[Array, Array, Array]:
    """B; how many of the client's first `steps` blocks are short; and the examples each lacks."""
    blocks = jnp.maximum(num_blocks(local, num_examples), 1)
    size = num_examples
    if local.batch_size is not None:
        size = jnp.minimum(size, _in_32_bits(local.batch_size))
    # This is blocks * size - n_k without the product, which may exceed 32 bits.
    lacking = size - (num_examples - (blocks - 1) * size)
    if local.order == "epochs":
        return size, quotient(steps, blocks), lacking
    # E (blocks - 1) fits in 32 bits because it is less than the client's number of steps.
    return size, jnp.maximum(steps - (blocks - 1) * local.epochs, 0), lacking


def shuffles(local: LocalTraining) -> bool:
    """Whether the order of examples is drawn; not for a full batch, where it has no effect."""
    return local.shuffle and local.batch_size is not None
