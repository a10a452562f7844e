"""What a setting has to know of an algorithm beside its options."""

from typing import NamedTuple


class SeveralModels(NamedTuple):
    """It begins with several models that differ, leaves [C, ...].

    Attributes:
      option: the name of the one that says how many.
    """

    option: str
