"""What a sampler is, and how to make one of a function.

A sampler folds the round into the key itself, so that with one base key

    cohort = sampler.sample(key, state.round, data)
    state, metrics = round_fn(key, state, data, cohort)

is the body of `fs.run`. It gives each client's inclusion probability pi_k, the
probability of being picked (with replacement: the expected number of draws), which the
`unbiased` rule divides by.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from fedjax_sim.core.checks import check_count, check_takes
from fedjax_sim.core.randomness import COHORT, check_key, stream
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.sampling_law import Law
from fedjax_sim.core.types import Array, Cohort
from fedjax_sim.data import FederatedData


class Sampler(NamedTuple):
    """How cohorts are drawn. Make your own with `custom`.

    Attributes:
      size: m, the cohort's slots; None for K.
      with_replacement: may a client occur twice in a cohort?
      sample: (key, round, data) -> Cohort; folds the round into the key.
      law: how clients come, for `fs.privacy.budget`; None if it is not known.
    """

    size: int | None
    with_replacement: bool
    sample: Callable[[Array, Array | int, FederatedData], Cohort]
    law: Law | None = None

    def __repr__(self) -> str:
        return fields_of(self, "size", "with_replacement", "sample")


def custom(
    size: int | None,
    draw: Callable[[Array, FederatedData], Cohort],
    with_replacement: bool = False,
    law: Law | None = None,
) -> Sampler:
    """A sampler from a function `draw(key, data) -> Cohort`, given a fresh key each round.

    Args:
      size: m, the slots of the cohorts it draws; None for K.
      draw: traced once, so its random numbers must come from `key`.
      with_replacement: may it draw a client twice?
      law: `fs.sampling.Poisson(q)` if each client comes with this probability on its own, which
        `fs.privacy.budget` takes your word for.

    Raises:
      ValueError: if size < 1, or draw cannot be called so; on sampling, if what it returns is no
        cohort of that size.

    Half of ten selected clients drop out:

    >>> import jax, jax.numpy as jnp
    >>> def draw(key, data):
    ...     cohort = uniform(10).sample(key, 0, data)
    ...     return cohort._replace(reports=jax.random.bernoulli(key, 0.5, (10,)))
    >>> sampler = custom(10, draw)
    """
    if size is not None:
        size = check_count("size", size, ", or None for K")
    check_takes("draw", draw, "key", "data")

    def sample(key: Array, round: Array | int, data: FederatedData) -> Cohort:
        check_key(key)
        cohort = draw(stream(key, COHORT, round), data)
        if not isinstance(cohort, Cohort):
            raise ValueError(f"draw must return an fs.Cohort; got {type(cohort).__name__}")
        slots = data.num_clients if size is None else size
        if jnp.shape(cohort.client_ids) != (slots,):
            raise ValueError(
                f"draw must return a cohort of {slots} slots; got client_ids of shape "
                f"{jnp.shape(cohort.client_ids)}"
            )
        return cohort

    # A resume that is refused because of the sampler names it by this.
    sample.__qualname__ = getattr(draw, "__qualname__", "")
    return Sampler(size, with_replacement, sample, law)
