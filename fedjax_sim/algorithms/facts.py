"""What files say of algorithms beside their own options, and an option that several share."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedjax_sim.core.registry import Option

# The option of those whose clients keep the head of a model.
PERSONAL_HEAD = Option(
    "personal",
    "paths or patterns of the head's parameters, as layers_3 of mlp; commas between several",
    kind=str,
    metavar="PATHS",
)


class Facts(NamedTuple):
    """What is told of an algorithm in `docs/which.md`, and how many models it begins with.

    The table has the paper from the first words of the file, and computes what is kept and sent.

    Attributes:
      equation: in one line, of the docstring's symbols; w is the global model, d_k = w_k - w.
      special_case: which numbers make what of it, as "`mu` = 0: FedAvg".
      fault: what popular code gets wrong, in one line; empty where nothing is known.
      several_models: the option that says how many models it begins with, leaves [C, ...], which
        must differ; None for one.
      options: values of those without a default, for the table's model, whose parameters are
        below `body`, `norm` and `head`.
    """

    equation: str
    special_case: str
    fault: str = ""
    several_models: str | None = None
    options: Mapping[str, Any] = {}
