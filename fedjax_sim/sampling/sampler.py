"""What a sampler is, and how to make one of a function.

A sampler folds the round into the key itself, so that with one base key

    cohort = sampler.sample(key, state.round, data)
    state, metrics = round_fn(key, state, data, cohort)

is the body of `fs.run`. It gives each client's inclusion probability pi_k, the
probability of being picked (with replacement: the expected number of draws), which the
`unbiased` rule divides by.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp

from fedjax_sim.core.checks import check_count, check_takes
from fedjax_sim.core.randomness import COHORT, check_key, stream
from fedjax_sim.core.reprs import fields_of
from fedjax_sim.core.sampling_law import Law
from fedjax_sim.core.types import Array, Cohort, Params
from fedjax_sim.data import FederatedData


class Sampler(NamedTuple):
    """How cohorts are drawn. Make your own with `custom`.

    Attributes:
      size: m, the cohort's slots; None for K.
      with_replacement: may a client occur twice in a cohort?
      sample: (key, round, data) -> Cohort; folds the round into the key. One that `sees_params` is
        given the model, too: (key, round, data, params) -> Cohort.
      law: how clients come, for `fs.privacy.budget`; None if it is not known.
      among: (key, round, data, is_available, probability, *params) -> Cohort, drawn among the
        clients with `is_available`, Bool[K], for `available`, which masks who is not available
        all the same. `inclusion` is over availability, too, if each client is available with
        `probability`, Float[], on its own, and None if that is None. None: `available` masks those
        drawn who are not available.
      sees_params: whether a cohort depends on the model.
    """

    size: int | None
    with_replacement: bool
    sample: Callable[..., Cohort]
    law: Law | None = None
    among: Callable[..., Cohort] | None = None
    sees_params: bool = False

    def draw(self, key: Array, round: Array | int, data: FederatedData, params: Params) -> Cohort:
        """The cohort of a round that begins with the model `params`."""
        return self.sample(key, round, data, *self._seen(params))

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of those of `sample`."""
        return ("key", "round", "data", *self._seen("params"))

    def _seen(self, params: Any) -> tuple[Any, ...]:
        return (params,) if self.sees_params else ()

    def __repr__(self) -> str:
        return fields_of(self, "size", "with_replacement", "sample")


def custom(
    size: int | None,
    draw: Callable[..., Cohort],
    with_replacement: bool = False,
    law: Law | None = None,
    among: Callable[..., Cohort] | None = None,
    sees_params: bool = False,
) -> Sampler:
    """A sampler from a function `draw(key, data) -> Cohort`, given a fresh key each round.

    Args:
      size: m, the slots of the cohorts it draws; None for K.
      draw: traced once, so its random numbers must come from `key`.
      with_replacement: may it draw a client twice?
      law: `fs.sampling.Poisson(q)` if each client comes with this probability on its own, which
        `fs.privacy.budget` takes your word for.
      among: as of `Sampler`, but (key, data, is_available, probability, *params), likewise given a
        fresh key each round.
      sees_params: whether draw is given the model, too: `draw(key, data, params)`.

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
    check_takes("draw", draw, "key", "data", *["params"] * sees_params)

    def checked(
        function: Callable[..., Cohort],
        key: Array,
        round: Array | int,
        data: FederatedData,
        *others: Any,
    ) -> Cohort:
        check_key(key)
        cohort = function(stream(key, COHORT, round), data, *others)
        if not isinstance(cohort, Cohort):
            raise ValueError(f"draw must return an fs.Cohort; got {type(cohort).__name__}")
        slots = data.num_clients if size is None else size
        if jnp.shape(cohort.client_ids) != (slots,):
            raise ValueError(
                f"draw must return a cohort of {slots} slots; got client_ids of shape "
                f"{jnp.shape(cohort.client_ids)}"
            )
        return cohort

    def sample(key: Array, round: Array | int, data: FederatedData, *params: Params) -> Cohort:
        return checked(draw, key, round, data, *params)

    # A resume that is refused because of the sampler names it by this.
    sample.__qualname__ = getattr(draw, "__qualname__", "")
    drawn_among = None if among is None else partial(checked, among)
    return Sampler(size, with_replacement, sample, law, drawn_among, sees_params)
