"""The cells of the papers' tables: the setting that each runs, and the published rounds."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from fedjax_sim.settings.setting import FULL, Setting

RATIO = 10 ** (1 / 3)  # of neighbours in McMahan et al.'s grid of learning rates
COMPARED = ("mode", "server")  # columns in which cells of the same C, E, B and clients differ
HELD_BACK = "-validation"  # and the share, behind the name of a cell that chooses by it
_POINTS = 100  # evaluations until the published rounds, or one a round if these are fewer


class Cell(NamedTuple):
    """One cell of a table: rounds until a target is reached.

    Attributes:
      table: the table's name.
      name: unique within all tables.
      setting: of the runs, without rate, rounds and seed; its `target` is the accuracy to reach.
      published: published rounds; None if there are none.
      most: the rounds after which a run is given up.
      axis: the field of `setting` that is tuned: "client_lr" or "server_lr".
      rates: the rates that are tried first; the middle one is expected to be the best.
      tuned: whether the grid is extended while the best rate lies at its end.
      after: the cell whose best client_lr this one uses; None if it needs none.
      says: the cell in the table's own words, by column.
    """

    table: str
    name: str
    setting: Setting
    published: float | None
    most: int
    axis: str
    rates: tuple[float, ...]
    tuned: bool = True
    after: str | None = None
    says: tuple[tuple[str, str], ...] = ()


class Table(NamedTuple):
    """A table: its heading, which names the publication, its cells, and a note."""

    name: str
    heading: str
    cells: tuple[Cell, ...]
    note: str = ""


def rates(middle: float, each_side: int = 1) -> tuple[float, ...]:
    """A rate and its neighbours in the grid.

    >>> [round(rate, 3) for rate in rates(0.1)]
    [0.046, 0.1, 0.215]
    """
    return tuple(middle * RATIO**i for i in range(-each_side, each_side + 1))


_MIDDLE = RATIO**-2  # 0.215

# C -> rounds of (IID B=inf, IID B=10, non-IID B=inf, non-IID B=10), McMahan et al. 2017, table 1.
_2NN: dict[float, tuple[int | None, ...]] = {
    0.0: (1455, 316, 4278, 3275),
    0.1: (1474, 87, 1796, 664),
    0.2: (1658, 77, 1528, 619),
    0.5: (None, 75, None, 443),
    1.0: (None, 70, None, 380),
}
_CNN: dict[float, tuple[int | None, ...]] = {
    0.0: (387, 50, 1181, 956),
    0.1: (339, 18, 1100, 206),
    0.2: (337, 18, 978, 200),
    0.5: (164, 18, 1067, 261),
    1.0: (246, 16, None, 97),
}
# E, B, rounds IID and non-IID of the CNN at C = 0.1, table 2; FedSGD first.
_TABLE_2 = (
    (1, None, 626, 483),
    (5, None, 179, 1000),
    (1, 50, 65, 600),
    (20, None, 234, 672),
    (1, 10, 34, 350),
    (5, 50, 29, 334),
    (20, 50, 32, 426),
    (5, 10, 20, 229),
    (20, 10, 18, 173),
)


def mnist(
    model: str, fraction: float, epochs: int, batch_size: int | None, iid: bool, target: float
) -> Setting:
    """McMahan et al.'s MNIST: K = 100 clients of 600 examples, IID or two shards of one label.

    One step on a full batch is FedSGD, and is run as that: one gradient over the cohort. C = 0 is
    one client a round.
    """
    setting = Setting(
        dataset="mnist",
        model=model,
        clients=100,
        partition="iid" if iid else "shards",
        fraction=max(fraction, 0.01),
        target=target,
    )
    if epochs == 1 and batch_size is None:
        return replace(setting, algorithm="fedsgd")
    return replace(setting, epochs=epochs, batch_size=FULL if batch_size is None else batch_size)


def _cell(table: str, setting: Setting, published: int, fraction: float) -> Cell:
    iid = setting.partition == "iid"
    fedsgd = setting.algorithm == "fedsgd"
    epochs = 1 if fedsgd else setting.epochs
    block = "inf" if setting.batch_size in (None, FULL) else str(setting.batch_size)
    spread = "IID" if iid else "non-IID"
    return Cell(
        table=table,
        name=f"{table}-{spread.lower()}-C{fraction:g}-E{epochs}-B{block}",
        setting=replace(setting, evaluate_every=max(1, published // _POINTS)),
        published=published,
        most=-(-11 * published // 10),  # 1.1 times, in integers because 1.1 * 50 > 55 in floats
        axis="server_lr" if fedsgd else "client_lr",
        rates=rates(_middle(setting)),
        says=(("C", f"{fraction:g}"), ("E", str(epochs)), ("B", block), ("clients", spread)),
    )


def _block(
    table: str,
    model: str,
    epochs: int,
    target: float,
    rows: dict[float, tuple[int | None, ...]],
) -> tuple[Cell, ...]:
    cells = []
    for place, iid, batch in ((1, True, 10), (0, True, None), (3, False, 10), (2, False, None)):
        for fraction, published in rows.items():
            rounds = published[place]
            if rounds is not None:
                setting = mnist(model, fraction, epochs, batch, iid, target)
                cells.append(_cell(table, setting, rounds, fraction))
    return tuple(cells)


def _middle(setting: Setting) -> float:
    """The middle rate of the first three; the race extends the grid if the best is at its end."""
    if setting.batch_size in (None, FULL):
        return RATIO**-1  # 0.464
    return _MIDDLE if setting.model == "2nn" else RATIO**-3  # 0.1


def _second() -> tuple[Cell, ...]:
    cells = []
    for column, iid in ((2, True), (3, False)):
        for row in _TABLE_2:
            epochs, batch, rounds = row[0], row[1], row[column]
            assert epochs is not None
            assert rounds is not None
            setting = mnist("cnn", 0.1, epochs, batch, iid, 0.99)
            cells.append(_cell("table2-cnn", setting, rounds, 0.1))
    return tuple(cells)


# C, E, B of the comparison of modes.
_COMPARED = ((0.1, 1, 10), (0.1, 5, 10), (0.5, 1, 10), (0.5, 5, 10), (0.1, 5, 50), (0.1, 1, 50))


def _modes() -> tuple[Cell, ...]:
    """Each combination: selected and all_clients, with server rate 1 and with it tuned."""
    cells: list[Cell] = []
    for fraction, epochs, batch in _COMPARED:
        for iid in (True, False):
            base = replace(
                mnist("2nn", fraction, epochs, batch, iid, 0.97),
                evaluate_every=1 if iid else 5,
            )
            spread = "IID" if iid else "non-IID"
            name = f"modes-{spread.lower()}-C{fraction:g}-E{epochs}-B{batch}"
            says = (
                ("C", f"{fraction:g}"),
                ("E", str(epochs)),
                ("B", str(batch)),
                ("clients", spread),
            )
            limit = 150 if iid else 800
            first = Cell(
                "modes",
                f"{name}-selected",
                replace(base, mode="selected"),
                None,
                limit,
                "client_lr",
                rates(_MIDDLE),
                says=(*says, ("mode", "selected"), ("server", "1")),
            )
            cells.append(first)
            share = fraction  # n_V / n of equal clients
            for mode, rate, tuned in (
                ("selected", 1.0, True),
                ("all_clients", 1.0, False),
                ("all_clients", 1 / share, True),
            ):
                cells.append(
                    Cell(
                        table="modes",
                        name=f"{name}-{mode}{'-tuned' if tuned else ''}",
                        setting=replace(base, mode=mode),
                        published=None,
                        most=limit if tuned else math.ceil(limit / share),
                        axis="server_lr",
                        rates=rates(rate) if tuned else (rate,),
                        tuned=tuned,
                        after=first.name,
                        says=(*says, ("mode", mode), ("server", "tuned" if tuned else "1")),
                    )
                )
    return tuple(cells)


TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "table1-2nn",
            "McMahan et al. 2017 (arXiv 1602.05629), table 1: the 2NN on MNIST to 97 %, E = 1",
            _block("table1-2nn", "2nn", 1, 0.97, _2NN),
        ),
        Table(
            "table1-cnn",
            "McMahan et al. 2017 (arXiv 1602.05629), table 1: the CNN on MNIST to 99 %, E = 5",
            _block("table1-cnn", "cnn", 5, 0.99, _CNN),
        ),
        Table(
            "table2-cnn",
            "McMahan et al. 2017 (arXiv 1602.05629), table 2: the CNN on MNIST to 99 %, C = 0.1",
            _second(),
        ),
        Table(
            "modes",
            "The aggregation modes: the 2NN on MNIST to 97 %, by mode and server learning rate",
            _modes(),
            note="Nobody has published these. The client rate is tuned for `selected` with server "
            "rate 1, and is the same in each line; *tuned* is the best server rate of the grid "
            "around 1 (`selected`) or K/m (`all_clients`), and 1 is one rate, not tuned. Runs "
            "end at 150 rounds (IID) and 800 (non-IID), untuned `all_clients` at K/m times those; "
            "non-IID ones are evaluated every 5 rounds. In the cells: rounds (range of the "
            "seeds); 10^6 bytes down and up until then, all clients together, of which "
            "`all_clients` sends the model down to all K. With equal clients `all_clients` at K/m "
            "is `selected` at 1 in exact arithmetic; training amplifies rounding, so curves part. "
            "Ratios are of the seeds that all four have.",
        ),
    )
}


def named(name: str) -> Cell:
    """The cell of that name, which may be one that `held_back` made."""
    name, _, share = name.partition(HELD_BACK)
    cell = next(cell for table in TABLES.values() for cell in table.cells if cell.name == name)
    return held_back(cell, float(share)) if share else cell


def held_back(cell: Cell, share: float) -> Cell:
    """The same cell with its rate chosen on a share of each client's examples, held back.

    Nobody trains on them. It is a cell of its own, by name and by record.

    Args:
      share: in (0, 1).

    >>> held_back(TABLES["table1-2nn"].cells[0], 0.1).name
    'table1-2nn-iid-C0-E1-B10-validation0.1'
    """
    return cell._replace(
        name=f"{cell.name}{HELD_BACK}{share}",
        setting=replace(cell.setting, validation=share),
        after=None if cell.after is None else f"{cell.after}{HELD_BACK}{share}",
    )


def select(
    names: Sequence[str], other_tables: Sequence[str] = (), other_cells: Sequence[str] = ()
) -> list[Cell]:
    """The cells of these tables, and single cells by name, in the tables' order.

    Args:
      other_tables, other_cells: names that are known, too, and are no race; they are passed over.

    Raises:
      ValueError: for a name that is none of these, with the nearest ones.
    """
    by_name = {cell.name: cell for table in TABLES.values() for cell in table.cells}
    selected: set[str] = set()
    for name in names:
        if name in TABLES:
            selected |= {cell.name for cell in TABLES[name].cells}
        elif name in by_name:
            selected.add(name)
        elif name not in other_tables and name not in other_cells:
            all_tables = [*TABLES, *other_tables]
            near = difflib.get_close_matches(name, [*all_tables, *by_name, *other_cells], 3, 0.4)
            raise ValueError(
                f"TABLE must be one of {', '.join(all_tables)}, or a cell; got {name!r}"
                + (f" (nearest: {', '.join(near)})" if near else "")
            )
    needed = {by_name[name].after for name in selected} - {None}
    return [cell for name, cell in by_name.items() if name in selected | needed]
