"""`fs.sweep` itself."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_sim import grid as grids
from fedjax_sim.core.checks import check_count, check_takes
from fedjax_sim.core.files import SaveError
from fedjax_sim.core.interrupted import InterruptedRun
from fedjax_sim.core.notebook import progress_bar
from fedjax_sim.core.types import Array
from fedjax_sim.core.versions import versions
from fedjax_sim.execution.machine import free_memory
from fedjax_sim.grid import Grid
from fedjax_sim.host.driver import Interrupt
from fedjax_sim.host.identity import program
from fedjax_sim.results import Results, Run
from fedjax_sim.sweeps.batch import Columns, Compiled
from fedjax_sim.sweeps.checks import check_labels, check_names, keys_of, label_of, takes_key
from fedjax_sim.sweeps.models import check_keep, save_model
from fedjax_sim.sweeps.plan import Group, build, plan
from fedjax_sim.sweeps.store import Store
from fedjax_sim.sweeps.telling import Swept, Teller


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
      resume: go on with what is in `out`.
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
    grid = grid if isinstance(grid, Grid) else grids.product(**grid)
    given_keys = keys
    labels, keys = keys_of(keys)
    if progress:
        with progress_bar(len(grid) * len(labels), "runs") as tell:

            def both(now: Swept) -> None:
                tell(now.runs, now.says)
                if on_progress is not None:
                    on_progress(now)

            shown = sweep(
                experiment,
                grid,
                given_keys,
                out=out,
                resume=resume,
                static=static,
                side_by_side=side_by_side,
                memory_limit=memory_limit,
                common_random_numbers=common_random_numbers,
                mesh=mesh,
                on_progress=both,
                checkpoint_every=checkpoint_every,
                keep_models=keep_models,
                metric=metric,
                configuration=configuration,
            )
            tell(len(shown.runs), "")
            return shown
    opaque = takes_key(experiment)
    check_names(experiment, grid, static, opaque)
    check_labels(grid, opaque)
    if side_by_side is not None:
        side_by_side = check_count("side_by_side", side_by_side, ", or None")
        if side_by_side > 1 and not common_random_numbers:
            raise ValueError(
                f"side_by_side must be 1 without common random numbers; got {side_by_side}"
            )
    if checkpoint_every is not None:
        checkpoint_every = check_count("checkpoint_every", checkpoint_every, ", or None")
    if on_progress is not None:
        check_takes("on_progress", on_progress, "swept")
    if memory_limit is not None and not memory_limit > 0:
        raise ValueError(f"memory_limit must be positive; got {memory_limit}")
    check_keep(keep_models, metric, opaque, out is not None)
    if resume and out is None:
        raise ValueError("resume needs out, the folder to go on from; got None")
    mesh = Mesh(np.array(jax.local_devices()), ("runs",)) if mesh is None else mesh
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh must have one axis; got {mesh.axis_names}")

    store = None if out is None else Store(Path(out))
    widths = None if store is None or not resume else store.widths()
    limit = memory_limit if memory_limit is not None else free_memory([*mesh.devices.flat]) / 2
    groups = plan(
        experiment,
        grid,
        keys,
        mesh.size,
        static,
        opaque,
        common_random_numbers,
        side_by_side if widths is None else widths,
        limit,
        keep_models,
        metric,
    )
    if store is not None:
        identity = {
            "names": list(grid.names),
            "grid": [[label_of(value) for value in one.values()] for one in grid],
            "seeds": labels,
            "keys": np.asarray(jax.random.key_data(keys)).tolist(),
            "common_random_numbers": common_random_numbers,
            "devices": mesh.size,
            "groups": [_facts(experiment, grid, group, keys[0], opaque) for group in groups],
            "configuration": dict(configuration or {}),
            "keep_models": keep_models,
            "metric": metric,
            "versions": versions(),
        }
        store.open(identity, [group.side_by_side for group in groups], resume)

    runs: dict[tuple[int, int], Run] = {}
    teller = Teller(on_progress, len(grid) * len(labels))

    def through() -> Results:
        return Results(tuple(runs[place] for place in sorted(runs)))

    def results() -> Results:
        found = through()
        if store is not None and runs:
            asked = len(grid) * len(labels)
            complete = sum(run.done == run.num_rounds for run in found.runs) == asked
            summary = {
                "kind": "sweep",
                "configuration": dict(configuration or {}),
                "num_runs": asked,
                "complete": complete,
            }
            try:
                found.save(store.folder.path, summary)
            except SaveError as error:
                error.partial = found
                raise
        return found

    number = 0
    with Interrupt() as interrupt:
        for group in groups:
            compiled = Compiled(experiment, grid, group, keys, mesh, opaque, limit)
            for batch in group.batches:
                places = [(i, seed) for seed, indices in batch for i in indices]
                # Padding repeats a run.
                new = len({*places} - {*runs})
                models = (
                    []
                    if store is None or group.keep is None
                    else [store.folder.model(i, labels[seed]) for i, seed in dict.fromkeys(places)]
                )
                found = None if store is None else store.load(number, models)
                if found is None and interrupt.received is None:
                    try:
                        ran = compiled.run(
                            batch,
                            interrupt,
                            partial(teller.chunk, group, new, len(places)),
                            None if store is None else store.checkpoints(number),
                            checkpoint_every,
                        )
                        found = None if ran is None else ran[0]
                        if store is not None and ran is not None and interrupt.received is None:
                            # Models come first: the batch's own file says that all of it is there.
                            for (i, seed), model in zip(places, ran[1], strict=False):
                                hyper = grid.configurations[i].items()
                                label = {name: label_of(value) for name, value in hyper}
                                label = {**(configuration or {}), **label}
                                path = store.folder.model(i, labels[seed])
                                save_model(path, model, group, labels[seed], label)
                            store.save(number, ran[0])
                    except InterruptedRun as error:
                        error.partial = through()
                        raise
                    except Exception as error:  # whatever it is, it costs no run that is through
                        if not runs:
                            raise
                        batch_failed = InterruptedRun(
                            f"{len(runs)} of {len(grid) * len(labels)} runs are through; then a "
                            f"batch failed: {error!r}"
                        )
                        raise batch_failed.holding(through()) from error
                if found is None:
                    return results()
                for row, (index, seed) in enumerate(places):
                    if (index, seed) not in runs:
                        runs[index, seed] = _run(
                            grid.configurations[index], labels[seed], found, row, group
                        )
                teller.through(len(runs))
                number += 1
    return results()


def _facts(
    experiment: Callable[..., Any], grid: Grid, group: Group, key: Array, opaque: bool
) -> dict[str, Any]:
    """What a resume shall find the same of a group."""
    first = grid.configurations[group.indices[0]]

    def make(key: Array, **hyper: Array) -> Any:
        return build(experiment, {**group.static, **hyper}, key, opaque)

    hyper = {name: jnp.asarray(first[name], float) for name in group.traced}
    return {**group.facts, "program": program(make, key, hyper)}


def _run(configuration: dict[str, Any], seed: int, found: Columns, row: int, group: Group) -> Run:
    """One run's part of a batch's columns."""
    rounds = {name: x[row] for name, x in found["rounds"].items()}
    values = {name: x[row].item() for name, x in found["values"].items()}
    asked = group.num_rounds
    if asked is None:  # a function's own: all or nothing
        asked = len(next(iter(rounds.values()))) if rounds else 1
    return Run({k: label_of(v) for k, v in configuration.items()}, seed, rounds, values, asked)
