"""What a user's names select, of all kinds of tables."""

from collections.abc import Sequence
from typing import NamedTuple

from fedjax_sim.reproduce import cells as races
from fedjax_sim.reproduce import claims, fedprox, shakespeare
from fedjax_sim.reproduce.accuracies import AccuracyCell
from fedjax_sim.reproduce.cells import Cell
from fedjax_sim.reproduce.claims import Claim
from fedjax_sim.reproduce.niid_bench import NIID_BENCH
from fedjax_sim.reproduce.personal import PERSONAL
from fedjax_sim.reproduce.swept import SweptCell

CURVES = (fedprox.NAME, shakespeare.NAME)
ACCURACIES = {table.name: table for table in (NIID_BENCH, PERSONAL)}


class Selection(NamedTuple):
    """What is to run.

    Attributes:
      races: cells whose rates race to a target.
      curves: of `CURVES`.
      accuracies: cells of accuracies after fixed rounds.
      claims: claims.
    """

    races: list[Cell]
    curves: list[str]
    accuracies: list[AccuracyCell]
    claims: list[Claim]

    @property
    def swept(self) -> list[SweptCell]:
        """The cells that are one sweep each; claims come first, because they are cheap."""
        of_claims = {claim.cell.name: claim.cell for claim in self.claims}  # two may share one
        return [*of_claims.values(), *(each.cell for each in self.accuracies)]


def selected(names: Sequence[str]) -> Selection:
    """What these tables and cells are.

    Raises:
      ValueError: for a name that is neither, with the nearest ones.
    """
    accuracy_cells = [(table, each) for table in ACCURACIES.values() for each in table.cells]
    swept = [each.cell.name for _, each in accuracy_cells]
    swept += [claim.cell.name for claim in claims.CLAIMS]
    other_tables = [*CURVES, *ACCURACIES, claims.NAME]
    return Selection(
        races.select(names, other_tables, swept),
        [name for name in CURVES if name in names],
        [each for table, each in accuracy_cells if {table.name, each.cell.name} & {*names}],
        [claim for claim in claims.CLAIMS if {claims.NAME, claim.cell.name} & {*names}],
    )
