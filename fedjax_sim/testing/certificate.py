"""What was checked, line by line, and how a difference is told."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from fedjax_sim.core.randomness import is_key
from fedjax_sim.core.types import PyTree


class ContractError(AssertionError):
    """The smallest case in which the contract is broken."""


@dataclass
class Certificate:
    """What was checked.

    Attributes:
      subject: of what.
      tolerance: of the largest difference of a leaf, over the larger of 1 and its largest value.
      lines: what was found to hold, in order; `repr` shows them.
      is_printed: whether each line is printed as soon as it is known.
    """

    subject: str
    is_printed: bool = True
    tolerance: float = 1e-5
    lines: list[str] = field(default_factory=list)

    def holds(self, line: str) -> None:
        """Adds what was found to hold."""
        self.lines.append(line)
        if self.is_printed:
            print(f"{self.subject}: {line}")

    def fails(self, law: str, case: str, reason: str) -> ContractError:
        """The error of a law that does not hold, in a case."""
        return ContractError(f"{self.subject}: {law} does not hold. {case}: {reason}")

    def same(self, law: str, case: str, tree: PyTree, expected: PyTree) -> float:
        """The largest difference of two trees.

        Raises:
          ContractError: if it is beyond the tolerance.
        """
        difference, leaf = largest_difference(tree, expected)
        if not difference <= self.tolerance:
            raise self.fails(law, case, f"{leaf} differs by {difference:.2g}")
        return difference

    def __repr__(self) -> str:
        return "\n".join([f"Certificate of {self.subject}", *(f"  {x}" for x in self.lines)])


def numbers_of(tree: PyTree) -> list[tuple[str, np.ndarray]]:
    """The leaves with their paths, those of numbers in float64; keys are left out."""
    leaves = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not is_key(leaf):
            name = jax.tree_util.keystr(path) or "the value"
            leaves.append((name, np.asarray(leaf).astype(np.float64)))
    return leaves


def largest_difference(tree: PyTree, expected: PyTree) -> tuple[float, str]:
    """The largest `|x - y| / max(1, max |y|)` over all leaves, and the path of its leaf.

    What is NaN in both does not differ; what is NaN in one differs infinitely.
    """
    largest, where = 0.0, "nothing"
    for (name, x), (_, y) in zip(numbers_of(tree), numbers_of(expected), strict=True):
        if not x.size:
            continue
        equal = np.isnan(x) & np.isnan(y) | (x == y)
        with np.errstate(invalid="ignore"):
            apart = np.where(equal, 0.0, np.abs(x - y))
        scale = max(1.0, float(np.max(np.abs(np.where(np.isfinite(y), y, 0)))))
        difference = float(np.max(np.where(np.isnan(apart), np.inf, apart))) / scale
        if difference > largest:
            largest, where = difference, name
    return largest, where


def same_bits(tree: PyTree, expected: PyTree) -> bool:
    """Whether all leaves are the same bits."""
    pairs = zip(
        map(_bits, jax.tree.leaves(tree)), map(_bits, jax.tree.leaves(expected)), strict=True
    )
    return all(x == y for x, y in pairs)


def _bits(leaf: Any) -> bytes:
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()
