"""`fs.sweep`: its options are made a plan, which is run batch by batch into a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from fedjax_sim.core.checks import check_takes
from fedjax_sim.core.files import SaveError
from fedjax_sim.core.notebook import progress_bar
from fedjax_sim.core.types import Array
from fedjax_sim.grid import Grid, product
from fedjax_sim.host.driver import Interrupt
from fedjax_sim.results import Results
from fedjax_sim.sweeps.ahead import works_of
from fedjax_sim.sweeps.checks import keys_of
from fedjax_sim.sweeps.claims import Claims
from fedjax_sim.sweeps.options import Options, Plan, make_plan
from fedjax_sim.sweeps.shards import shard_of
from fedjax_sim.sweeps.shared_work import holding_complete, run_shared
from fedjax_sim.sweeps.telling import Swept, Teller
from fedjax_sim.sweeps.work import Runs, add_runs, load_batch, results_of, run_batch


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
    shard: str | tuple[int, int] | None = None,
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
        round, the second when a batch is through. A second thread may call it, to trace and compile
        the next static combination while this one's batches train.
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
      shard: "i/n" or (i, n), with 1 <= i <= n, of processes that share `out` and nothing else; each
        calls this with the same arguments. "auto" reads i and n from the array of Slurm, SGE or
        LSF, "auto/n" i from PBS or Kubernetes, too. Each computes the batches that nobody has
        claimed, its n-th part first, takes over those of a process that was killed, and ends
        when all are complete; so n may be another number later. Fewer configurations are side by
        side where that gives each process a batch; the bits are those of one process with as many
        `side_by_side`.

    Returns:
      The runs, by configuration and seed. After a SIGINT or SIGTERM those computed until then,
      the last ones perhaps with fewer rounds than asked for. Of a shard all that are complete,
      whoever computed them.

    Raises:
      ValueError: for a name that `experiment` does not take (and the nearest it does), or that
        the results have a column of; a traced axis that it cannot take (which axis, and what
        making it static would mean); a configuration that a factory refuses; a sharded
        strategy, or an evaluation with a mesh; results in `out` that are not to be resumed, or of
        another sweep (what differs), or on which shards are at work; a shard outside 1 to n.
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
        configuration=configuration,
        shard=shard_of(shard),
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


def check(
    experiment: Callable[..., Any], grid: Grid, keys: Array | Sequence[int], **options: Any
) -> None:
    """Refuses what `sweep` refuses before it opens a folder; computes nothing.

    Args:
      options: those of `sweep` but `out`, as `Options` has them.
    """
    make_plan(experiment, grid, *keys_of(keys), Options(**options))


def _swept(plan: Plan, on_progress: Callable[[Swept], None] | None) -> Results:
    """Runs a plan, and saves its tables.

    Raises:
      SaveError, InterruptedRun: as `sweep`.
    """
    runs: Runs = {}
    teller = Teller(on_progress, plan.num_runs)
    with Interrupt() as interrupt:
        if plan.shard is None:
            _run_batches(plan, runs, interrupt, teller)
        else:
            assert plan.store is not None
            claims = Claims(plan.store.folder.claims, str(plan.shard))
            run_shared(plan, plan.shard, claims, runs, interrupt, teller)
    return _saved(plan, runs)


def _run_batches(plan: Plan, runs: Runs, interrupt: Interrupt, teller: Teller) -> bool:
    """Runs all batches, and adds their runs to `runs`; returns whether no interrupt ended it.

    Raises:
      InterruptedRun: if a batch fails once some runs are complete; `partial` has these.
    """
    # Before each batch, `runs` has the runs of all batches before it, and the folder their files.
    with closing(works_of(plan)) as works:
        for work in works:
            columns = load_batch(plan, work)
            if columns is None and interrupt.received is None:
                new = len({*work.places} - {*runs})  # padding repeats runs
                tell = partial(teller.chunk, work.group, new, len(work.places))
                with holding_complete(plan, runs):
                    columns = run_batch(plan, work, interrupt, tell)
            if columns is None:
                return False
            add_runs(plan, work, columns, runs)
            teller.through(len(runs))
    return True


def _saved(plan: Plan, runs: Runs) -> Results:
    """The results, with their tables saved in the folder, if there is one and a run.

    Of several processes, only one that sees all runs writes tables, lest it replace those of
    another one that did.

    Raises:
      SaveError: if they cannot be saved; `partial` has the results.
    """
    results = results_of(runs)
    num_done = sum(run.done == run.num_rounds for run in results.runs)
    complete = num_done == plan.num_runs
    if plan.store is None or not runs or (plan.shard is not None and not complete):
        return results
    summary = {
        "kind": "sweep",
        "configuration": plan.configuration,
        "num_runs": plan.num_runs,
        "complete": complete,
    }
    try:
        results.save(plan.store.folder.path, summary)
    except SaveError as error:
        error.partial = results
        raise
    return results
