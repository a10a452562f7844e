"""The batches of a plan as work to do: each with its program, its files and its runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_sim.host.driver import Interrupt
from fedjax_sim.results import Results, Run
from fedjax_sim.sweeps.batch import Columns, Compiled, Tell
from fedjax_sim.sweeps.checks import label_of
from fedjax_sim.sweeps.models import save_model
from fedjax_sim.sweeps.options import Plan
from fedjax_sim.sweeps.plan import Batch, Group

# (index of the configuration, index of the seed) -> the run
Runs = dict[tuple[int, int], Run]


class Work(NamedTuple):
    """A batch to run.

    Attributes:
      compiled: the program of its group.
      number: by which the folder names its files, counted over all groups.
      places: of its runs in order, (index of the configuration, index of the seed).
    """

    group: Group
    compiled: Compiled
    batch: Batch
    number: int
    places: list[tuple[int, int]]


def by_group(plan: Plan) -> Iterator[list[Work]]:
    """The batches of each group; its program is compiled with the first one that is run."""
    number = 0
    for group in plan.groups:
        compiled = Compiled(
            plan.experiment, plan.grid, group, plan.keys, plan.mesh, plan.opaque, plan.limit
        )
        works = []
        for batch in group.batches:
            places = [(index, seed) for seed, indices in batch for index in indices]
            works.append(Work(group, compiled, batch, number, places))
            number += 1
        yield works


def is_saved(plan: Plan, work: Work) -> bool:
    """Whether a batch has a file; it is not read, and may be damaged or lack a model."""
    return plan.store is not None and plan.store.folder.batch(work.number).exists()


def load_batch(plan: Plan, work: Work) -> Columns | None:
    """The columns of a batch that is saved; None if there are none."""
    return None if plan.store is None else plan.store.load(work.number, _model_files(plan, work))


def run_batch(
    plan: Plan, work: Work, interrupt: Interrupt, tell: Tell, owner: int = 0
) -> Columns | None:
    """Runs a batch, and saves it if it is complete; None if it was interrupted in its first chunk.

    Args:
      owner: how many others computed it before, and did not complete it.

    Raises:
      SaveError: if it cannot be saved.
    """
    store = plan.store
    checkpoints = None if store is None else store.checkpoints(work.number, owner)
    computed = work.compiled.run(work.batch, interrupt, tell, checkpoints, plan.checkpoint_every)
    if computed is None:
        return None
    columns, models = computed
    if store is not None and interrupt.received is None:
        # Models come first, because the batch's own file says that all of the batch is there.
        for (index, seed), model in zip(work.places, models, strict=False):
            hyper = plan.grid.configurations[index].items()
            labels = plan.configuration | {name: label_of(value) for name, value in hyper}
            path = store.folder.model(index, plan.seeds[seed])
            save_model(path, model, work.group, plan.seeds[seed], labels)
        places = [(index, plan.seeds[seed]) for index, seed in work.places]
        store.save(work.number, columns, places, work.group.num_rounds, owner)
    return columns


def add_runs(plan: Plan, work: Work, columns: Columns, runs: Runs) -> None:
    """Adds a batch's runs to those before, which it repeats where it is padded."""
    for row, (index, seed) in enumerate(work.places):
        if (index, seed) not in runs:
            configuration = plan.grid.configurations[index]
            num_rounds = work.group.num_rounds
            runs[index, seed] = run_of(configuration, plan.seeds[seed], columns, row, num_rounds)


def run_of(
    configuration: dict[str, Any], seed: int, columns: Columns, row: int, num_rounds: int | None
) -> Run:
    """The run of one row of a batch's columns."""
    rounds = {name: x[row] for name, x in columns["rounds"].items()}
    values = {name: x[row].item() for name, x in columns["values"].items()}
    if num_rounds is None:  # a function of the key returns all its rounds or nothing
        num_rounds = len(next(iter(rounds.values()))) if rounds else 1
    return Run({k: label_of(v) for k, v in configuration.items()}, seed, rounds, values, num_rounds)


def results_of(runs: Runs) -> Results:
    """The runs by configuration and seed."""
    return Results(tuple(runs[place] for place in sorted(runs)))


def _model_files(plan: Plan, work: Work) -> list[Path]:
    """The files of the models that are kept of a batch."""
    if plan.store is None or work.group.keep is None:
        return []
    folder = plan.store.folder
    return [folder.model(index, plan.seeds[seed]) for index, seed in dict.fromkeys(work.places)]
