"""The tables of a sweep's folder by its complete batches alone, without the experiment."""

from pathlib import Path
from typing import Any

from fedjax_sim.host.manifest import Manifest
from fedjax_sim.results.folder import SWEEP
from fedjax_sim.sweeps.store import Store
from fedjax_sim.sweeps.work import Runs, results_of, run_of


def merge(folder: str | Path, **summary: Any) -> bool:
    """Writes the tables of what processes that share a sweep's folder have completed so far.

    Args:
      folder: of `fs.sweep(..., out=folder, shard=...)`, which may still be at work.
      summary: entries of summary.json, beside those of `fs.sweep`.

    Returns:
      Whether there was any run.

    Raises:
      ValueError: for a folder without a sweep.
      SaveError: if the tables cannot be written.
    """
    store = Store(Path(folder))
    manifest = Manifest.read(store.folder, SWEEP)
    if manifest is None:
        raise ValueError(f"folder must hold a sweep, with its {SWEEP.manifest}; got {folder}")
    facts = manifest.facts
    names, grid, seeds = facts["names"], facts["grid"], facts["seeds"]
    runs: Runs = {}
    for number in store.folder.numbers(SWEEP):
        columns, places = store.load(number), store.places(number)
        if columns is None or places is None:
            continue
        rows, num_rounds = places
        for row, (index, seed) in enumerate(rows):
            if (index, seed) not in runs:
                configuration = dict(zip(names, grid[index], strict=True))
                runs[index, seed] = run_of(configuration, seed, columns, row, num_rounds)
    if not runs:
        return False
    order = {seed: place for place, seed in enumerate(seeds)}
    by_place = {(index, order[seed]): run for (index, seed), run in runs.items()}
    num_runs = len(grid) * len(seeds)
    facts_of_all = {
        "kind": "sweep",
        "configuration": facts["configuration"],
        "seeds": seeds,
        "num_runs": num_runs,
        "complete": len(runs) == num_runs,
    }
    results_of(by_place).save(store.folder.path, facts_of_all | summary)
    return True
