"""`fs.sweep`: its options are made a plan, which is run batch by batch into a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from fedjax_sim.core.checks import check_takes
from fedjax_sim.core.files import SaveError
from fedjax_sim.core.interrupted import InterruptedRun
from fedjax_sim.core.notebook import progress_bar
from fedjax_sim.core.types import Array
from fedjax_sim.grid import Grid, product
from fedjax_sim.host.driver import Interrupt
from fedjax_sim.results import Results, Run
from fedjax_sim.sweeps.batch import Columns, Compiled, Tell
from fedjax_sim.sweeps.checks import keys_of, label_of
from fedjax_sim.sweeps.models import save_model
from fedjax_sim.sweeps.options import Options, Plan, make_plan
from fedjax_sim.sweeps.plan import Batch, Group
from fedjax_sim.sweeps.telling import Swept, Teller


class _Work(NamedTuple):
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


# (index of the configuration, index of the seed) -> the run
_Runs = dict[tuple[int, int], Run]


def sweep(
    experiment: Callable[..., Any],
    grid: Grid | Mapping[str, Sequence[Any]],
    keys: Array | Sequence[int],
    *,
    out: str | Path | None = None,
    resume: bool = False,
    static: Sequence[str] = (),
    side_by_side: int | None = None,
    memory_limit: float | None = None,
    common_random_numbers: bool = True,
    mesh: Mesh | None = None,
    checkpoint_every: int | None = None,
    keep_models: str | None = None,
    metric: str | None = None,
    on_progress: Callable[[Swept], None] | None = None,
    progress: bool = False,
    configuration: Mapping[str, Any] | None = None,
) -> Results:
    """Runs every configuration of a grid with every key, in as few programs as can be.

    Hyper-parameters that are floating numbers are arguments of a program (traced); integers,
    booleans, strings, None and functions are part of it (static), and each combination of those
    is compiled once. Configurations of one program run side by side under `vmap`, as many as the
    cache holds, dealt over the devices with their seeds.

    All configurations of one key have the same first model, cohorts and shuffles. Their
    differences are then due to the hyper-parameters (a difference of two means of paired runs
    varies less than that of unpaired ones), and they gather each example once for all.

    A configuration that diverges is marked (`Run.diverged`) and costs no other its result.

    Args:
      experiment: `experiment(**hyper) -> fs.Experiment`, or `experiment(key, **hyper) -> pytree`
        of arrays, traceable by the hyper-parameters that are traced. The first is saved by the
        round, the second when a batch is through.
      grid: of `fs.grid`, or a dict name -> values for their product.
      keys: typed keys [S], or integers, each a seed for `jax.random.key`.
      out: a folder for results as they come; None for none.
      resume: continue the sweep in `out`.
      static: names of floating hyper-parameters to compile in all the same.
      side_by_side: configurations under one `vmap`; None chooses.
      memory_limit: bytes that a call may hold; None for half of what the machine has free.
      common_random_numbers: False folds the configuration's index into the key. Cohorts then
        differ, control flow is batched, and one configuration runs at a time.
      mesh: of one axis, over whose devices runs are dealt; None for all local devices.
      checkpoint_every: rounds between checkpoints within a batch; None as in `fs.simulate`.
      keep_models: "final" or "best", to keep that model of each run in `out`, where `fs.load(out,
        configuration, seed)` reads it; None for none. They are written batch by batch. "best" is
        by `metric`, the first of equal ones, and carries one more model a run from round to round.
      metric: a column of one number a round, as "validation_accuracy" or "train_loss"; None for the
        score: of a validation set where there is one, else of the test set. Losses and errors are
        best where they are lowest.
      on_progress: called after each chunk.
      progress: whether a bar of tqdm's is shown, in a terminal or a notebook (extra `notebook`).
      configuration: anything JSON-able that `resume` shall find the same.

    Returns:
      The runs, by configuration and seed. After a SIGINT or SIGTERM those computed until then,
      the last ones perhaps with fewer rounds than asked for.

    Raises:
      ValueError: for a name that `experiment` does not take (and the nearest it does), or that
        the results have a column of; a traced axis that it cannot take (which axis, and what
        making it static would mean); a configuration that a factory refuses; a sharded
        strategy; results in `out` that are not to be resumed, or of another sweep (what differs).
      SaveError: (an OSError) if `out` cannot be written: what was saved is as it was.
      InterruptedRun: for what `on_progress` raises, or anything once some runs are through, its
        cause. Of either error, `partial` is the `fs.Results` of the batches before; if only the
        tables are not written at the end, of all.

    >>> import fedjax_sim as fs, jax, numpy as np, optax
    >>> data = fs.FederatedData.from_clients([{"x": np.ones(3), "y": np.ones(3)}] * 4)
    >>> loss_fn = lambda w, batch, key: (batch["x"] * w - batch["y"]) ** 2
    >>> def experiment(lr):
    ...     algorithm = fs.fedavg(loss_fn, optax.sgd(lr), fs.LocalTraining())
    ...     return fs.Experiment(algorithm, 0.0, data, fs.sampling.uniform(2), num_rounds=3,
    ...                          evaluate=lambda w: {"error": abs(w - 1)})
    >>> results = fs.sweep(experiment, {"lr": [0.1, 0.4]}, keys=[0, 1])
    >>> results.best("error", lowest=True).configuration
    {'lr': 0.4}
    """
    grid = grid if isinstance(grid, Grid) else product(**grid)
    seeds, typed_keys = keys_of(keys)
    options = Options(
        out=out,
        resume=resume,
        static=static,
        side_by_side=side_by_side,
        memory_limit=memory_limit,
        common_random_numbers=common_random_numbers,
        mesh=mesh,
        checkpoint_every=checkpoint_every,
        keep_models=keep_models,
        metric=metric,
        configuration=dict(configuration or {}),
    )
    if on_progress is not None:
        check_takes("on_progress", on_progress, "swept")
    if not progress:
        return _swept(make_plan(experiment, grid, seeds, typed_keys, options), on_progress)
    with progress_bar(len(grid) * len(seeds), "runs") as show:

        def show_and_tell(swept: Swept) -> None:
            show(swept.runs, swept.says)
            if on_progress is not None:
                on_progress(swept)

        results = _swept(make_plan(experiment, grid, seeds, typed_keys, options), show_and_tell)
        show(len(results.runs), "")
        return results


def _swept(plan: Plan, on_progress: Callable[[Swept], None] | None) -> Results:
    """Runs a plan, and saves its tables.

    Raises:
      SaveError, InterruptedRun: as `sweep`.
    """
    runs: _Runs = {}
    with Interrupt() as interrupt:
        if not _run_batches(plan, runs, interrupt, Teller(on_progress, plan.num_runs)):
            return _saved(plan, runs)
    return _saved(plan, runs)


def _run_batches(plan: Plan, runs: _Runs, interrupt: Interrupt, teller: Teller) -> bool:
    """Runs all batches, and adds their runs to `runs`; returns whether no interrupt ended it.

    Raises:
      InterruptedRun: if a batch fails once some runs are complete; `partial` has these.
    """
    # Before each batch, `runs` has the runs of all batches before it, and the folder their files.
    for work in _batches(plan):
        columns = None
        if plan.store is not None:
            columns = plan.store.load(work.number, _model_files(plan, work))
        if columns is None and interrupt.received is None:
            new = len({*work.places} - {*runs})  # padding repeats runs
            tell = partial(teller.chunk, work.group, new, len(work.places))
            try:
                columns = _run_batch(plan, work, interrupt, tell)
            except InterruptedRun as error:
                error.partial = _results(runs)
                raise
            except Exception as error:  # the runs that are complete are not lost with the batch
                if not runs:
                    raise
                batch_failed = InterruptedRun(
                    f"{len(runs)} of {plan.num_runs} runs are through; then a batch failed: "
                    f"{error!r}"
                )
                raise batch_failed.holding(_results(runs)) from error
        if columns is None:
            return False
        for row, (index, seed) in enumerate(work.places):
            if (index, seed) not in runs:
                configuration = plan.grid.configurations[index]
                runs[index, seed] = _run(configuration, plan.seeds[seed], columns, row, work.group)
        teller.through(len(runs))
    return True


def _batches(plan: Plan) -> Iterator[_Work]:
    """The batches of all groups; a group's program is compiled with its first batch."""
    number = 0
    for group in plan.groups:
        compiled = Compiled(
            plan.experiment, plan.grid, group, plan.keys, plan.mesh, plan.opaque, plan.limit
        )
        for batch in group.batches:
            places = [(index, seed) for seed, indices in batch for index in indices]
            yield _Work(group, compiled, batch, number, places)
            number += 1


def _run_batch(plan: Plan, work: _Work, interrupt: Interrupt, tell: Tell) -> Columns | None:
    """Runs a batch, and saves it if it is complete; None if it was interrupted in its first chunk.

    Raises:
      SaveError: if it cannot be saved.
    """
    store = plan.store
    checkpoints = None if store is None else store.checkpoints(work.number)
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
        store.save(work.number, columns)
    return columns


def _model_files(plan: Plan, work: _Work) -> list[Path]:
    """The files of the models that are kept of a batch."""
    if plan.store is None or work.group.keep is None:
        return []
    folder = plan.store.folder
    return [folder.model(index, plan.seeds[seed]) for index, seed in dict.fromkeys(work.places)]


def _results(runs: _Runs) -> Results:
    """The runs by configuration and seed."""
    return Results(tuple(runs[place] for place in sorted(runs)))


def _saved(plan: Plan, runs: _Runs) -> Results:
    """The results, with their tables saved in the folder, if there is one and a run.

    Raises:
      SaveError: if they cannot be saved; `partial` has the results.
    """
    results = _results(runs)
    if plan.store is None or not runs:
        return results
    num_done = sum(run.done == run.num_rounds for run in results.runs)
    summary = {
        "kind": "sweep",
        "configuration": plan.configuration,
        "num_runs": plan.num_runs,
        "complete": num_done == plan.num_runs,
    }
    try:
        results.save(plan.store.folder.path, summary)
    except SaveError as error:
        error.partial = results
        raise
    return results


def _run(configuration: dict[str, Any], seed: int, columns: Columns, row: int, group: Group) -> Run:
    """The run of one row of a batch's columns."""
    rounds = {name: x[row] for name, x in columns["rounds"].items()}
    values = {name: x[row].item() for name, x in columns["values"].items()}
    num_rounds = group.num_rounds
    if num_rounds is None:  # a function of the key returns all its rounds or nothing
        num_rounds = len(next(iter(rounds.values()))) if rounds else 1
    return Run({k: label_of(v) for k, v in configuration.items()}, seed, rounds, values, num_rounds)
