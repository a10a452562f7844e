"""By which law a sampler draws, as far as a privacy accountant asks."""

from dataclasses import dataclass

from jax.typing import ArrayLike


@dataclass(frozen=True)
class Poisson:
    """Each client comes with the same probability on its own, in every round anew.

    Attributes:
      probability: Float[], q in (0, 1]; 1 where everyone comes.
      capacity: the most clients of a round, those beyond being left out; None for no bound.
    """

    probability: ArrayLike
    capacity: int | None = None


@dataclass(frozen=True)
class Dependent:
    """Clients do not come on their own with one probability.

    Attributes:
      why: the reason that no accountant's event is of it, as the end of a sentence.
    """

    why: str


Law = Poisson | Dependent
