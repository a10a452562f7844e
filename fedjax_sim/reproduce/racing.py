"""A cell's race: learning rates one after the other, each up to the best one's rounds so far."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_sim.core.history import History
from fedjax_sim.core.types import Array, PyTree
from fedjax_sim.core.versions import versions
from fedjax_sim.host.checkpoints import Checkpoints, checksum
from fedjax_sim.host.driver import Interrupt, drive
from fedjax_sim.host.manifest import Manifest
from fedjax_sim.host.program import Program, compile_program, trace_step
from fedjax_sim.host.stopping import Stop, as_stop, reaches
from fedjax_sim.host.telling import progress_of
from fedjax_sim.reproduce.cells import RATIO, Cell, named
from fedjax_sim.reproduce.store import Store, best_run, chooses, first_seed, identity_of
from fedjax_sim.results.columns import columns
from fedjax_sim.results.folder import RUN, RunFolder
from fedjax_sim.results.targets import rounds_to_target
from fedjax_sim.settings import build
from fedjax_sim.settings.resolve import resolve
from fedjax_sim.settings.resolved import ResolvedSetting

MOST_RATES = 7  # rates that a race tries at most
# A cell whose run takes longer is run with one seed.
LONG_SECONDS = 600.0

# (cell, rate, seed, progress of that run)
Tell = Callable[[Cell, float, int, Any], None]


class Runner(NamedTuple):
    """The compiled program of a cell, for any rate and seed.

    Attributes:
      program: of at most `Cell.most` rounds; it stops at the target, with a validation set once
        that and the test set have reached it.
      start: (rate, seed) -> inputs and carry.
      bytes_down: a round's, of all clients together.
      bytes_up: likewise.
      devices: number of devices that a round uses.
      federation: the federation's checksum.
    """

    program: Program
    start: Callable[[float, int], tuple[PyTree, PyTree]]
    bytes_down: int
    bytes_up: int
    devices: int
    federation: int


def dealt_over(setting: ResolvedSetting, mesh: Mesh | None) -> Mesh | None:
    """The mesh, for a cohort of more than one client; a single one is not dealt."""
    return mesh if setting.slots > 1 else None


def compiled(cell: Cell, client_lr: float | None, mesh: Mesh | None) -> Runner:
    """Compiles a cell's run, with its rate and key as arguments.

    Args:
      client_lr: the client rate of a cell that tunes another one; None if it tunes this.
      mesh: the devices over which a cohort of more than one client is dealt.
    """
    resolved = replace(cell.setting, rounds=cell.most).resolved()
    if client_lr is not None:
        resolved = resolve({**resolved.values(), "client_lr": client_lr})
    mesh = dealt_over(resolved, mesh)

    def experiment_at(rate: Any) -> Any:
        return build.experiment(resolve({**resolved.values(), cell.axis: rate}), mesh)

    def step(inputs: PyTree, round: Array, carry: PyTree) -> tuple[PyTree, History]:
        rate, data = inputs
        return experiment_at(rate).advance(jax.random.wrap_key_data(data), round, carry)

    @jax.jit
    def begin(rate: Array, data: Array) -> PyTree:
        return experiment_at(rate).begin(jax.random.wrap_key_data(data))

    def start(rate: float, seed: int) -> tuple[PyTree, PyTree]:
        inputs = (jnp.float32(rate), jax.random.key_data(jax.random.key(seed)))
        carry = begin(*inputs)
        if mesh is not None:
            carry, inputs = jax.device_put((carry, inputs), NamedSharding(mesh, PartitionSpec()))
        return inputs, carry

    stop = _at_target(resolved)
    inputs, carry = start(cell.rates[0], 0)
    traced = trace_step(step, inputs, carry)
    program = compile_program(traced, inputs, carry, cell.most, stop=stop, place=mesh)
    first = experiment_at(cell.rates[0])
    exchange = first.communication()
    everyone = resolved.clients if resolved.mode == "all_clients" else resolved.slots
    return Runner(
        program,
        start,
        everyone * exchange.down,
        resolved.slots * exchange.up,
        1 if mesh is None else mesh.size,
        checksum(*jax.tree.leaves(first.data)),
    )


def _at_target(resolved: ResolvedSetting) -> Stop:
    """Ends a run when the target is reached on the test set and on the validation set."""
    assert resolved.target is not None
    criteria = [
        as_stop(reaches(name, resolved.target))
        for name in dict.fromkeys((resolved.score, resolved.test_score))
    ]
    if len(criteria) == 1:
        return criteria[0]

    # The two may be reached in different rounds, and accuracy may fall below the target between.
    def update(is_reached: Array, row: History) -> tuple[Array, Array]:
        is_met = jnp.stack([criterion.update((), row)[1] for criterion in criteria])
        is_reached = is_reached | is_met
        return is_reached, is_reached.all()

    name = " and ".join(criterion.name for criterion in criteria)
    return Stop(jnp.zeros(len(criteria), bool), update, name)


def race(
    cell: Cell, store: Store, seeds: int, mesh: Mesh | None, interrupt: Interrupt, tell: Tell
) -> bool:
    """Runs the missing runs of a cell and saves each; returns whether the cell is complete.

    The first seed tries the rates, the middle one first, and each is given up when it can no longer
    be the best: after the evaluation in which the best so far reached the target. While the best
    rate is at an end of the grid, the grid is extended there. If none reaches the target, the best
    is the one with the highest accuracy, and both rates half a step beside it are tried, too:
    McMahan et al.'s grids are of 10^(1/3) or 10^(1/6). The other seeds then run the best rate. A
    run of more than ten minutes is not repeated.

    Where the cell's setting holds back a validation set, all of this is of the accuracy on it. If
    the best rate's run ended before it reached the target on the test set, too, because another
    rate had been the best until then, it is run again without that end.

    Raises:
      ValueError: if the record is of something else, or the cell it comes after was not run.
      OSError: if a record or a checkpoint cannot be written.
    """
    if is_through(cell, store, seeds):
        return True
    client_lr = None if cell.after is None else _best_of_base(cell.after, store)
    record = store.load(cell)
    if record is None or record["client_lr"] != client_lr:
        record = {"runs": [], "complete": False, "client_lr": client_lr}
    if _next_rate(cell, record["runs"]) is not None:
        record["complete"] = False
    runner: Runner | None = None

    def run(rate: float, seed: int, limit: int) -> dict[str, Any] | None:
        nonlocal runner
        runner = runner or compiled(cell, client_lr, mesh)
        labels = {"client_lr": client_lr, "rate": rate, "seed": seed}
        finished_run = _finish_run(cell, runner, store, labels, limit, interrupt, tell)
        if finished_run is not None:
            runs = {(each["rate"], each["seed"]): each for each in record["runs"]}
            record["runs"] = [*(runs | {(rate, seed): finished_run}).values()]
            store.save(cell, record)
            store.through(cell, rate, seed)
        return finished_run

    while (rate := _next_rate(cell, record["runs"])) is not None:
        evaluate_every = cell.setting.evaluate_every
        chosen_by = [chooses(earlier)["reached"] for earlier in first_seed(record["runs"])]
        times = [time for time in chosen_by if time is not None]
        limits = [evaluate_every * math.ceil(time / evaluate_every) for time in times]
        if run(rate, 0, min([cell.most, *limits])) is None:
            return False
    best = best_run(record["runs"])
    if best["reached"] is None and best["done"] < cell.most:
        if run(best["rate"], 0, cell.most) is None:
            return False
        best = best_run(record["runs"])
    long = best["seconds"] > LONG_SECONDS
    seeds_done = {earlier["seed"] for earlier in record["runs"] if earlier["rate"] == best["rate"]}
    for seed in set(range(1, 1 if long else seeds)) - seeds_done:
        if run(best["rate"], seed, cell.most) is None:
            return False
    runs_of_best = [earlier for earlier in record["runs"] if earlier["rate"] == best["rate"]]
    record |= {"complete": True, "rate": best["rate"], "seeds": len(runs_of_best), "long": long}
    store.save(cell, record)
    return True


def is_through(cell: Cell, store: Store, seeds: int) -> bool:
    """Whether a cell has its best rate, and as many seeds as were asked for.

    A cell that uses another cell's rate is not complete if that rate has changed since.
    """
    record = store.load(cell)
    if record is None or not record["complete"] or _next_rate(cell, record["runs"]) is not None:
        return False
    if cell.after is not None:
        base = store.load(named(cell.after))
        if base is None or record["client_lr"] != base.get("rate"):
            return False
    return record["long"] or record["seeds"] >= seeds


def _next_rate(cell: Cell, runs: list[dict[str, Any]]) -> float | None:
    tried = [run["rate"] for run in first_seed(runs)]
    middle = len(cell.rates) // 2
    order = sorted(range(len(cell.rates)), key=lambda i: (abs(i - middle), i))
    for i in order:
        if cell.rates[i] not in tried:
            return cell.rates[i]
    if not cell.tuned or len(tried) >= MOST_RATES:
        return None
    whole = [run for run in first_seed(runs) if _is_whole(run["rate"] / cell.rates[0])]
    best, rates = best_run(whole), [run["rate"] for run in whole]
    if best["rate"] == max(rates):
        return best["rate"] * RATIO
    if best["rate"] == min(rates):
        return best["rate"] / RATIO
    if chooses(best)["reached"] is None:
        for rate in (best["rate"] * math.sqrt(RATIO), best["rate"] / math.sqrt(RATIO)):
            if not any(math.isclose(rate, tried_rate, rel_tol=1e-6) for tried_rate in tried):
                return rate
    return None


def _is_whole(ratio: float) -> bool:
    """Whether two rates of this ratio are a whole number of the grid's steps apart."""
    steps = math.log(ratio) / math.log(RATIO)
    return math.isclose(steps, round(steps), abs_tol=1e-6)


def _finish_run(
    cell: Cell,
    runner: Runner,
    store: Store,
    labels: dict[str, Any],
    limit: int,
    interrupt: Interrupt,
    tell: Tell,
) -> dict[str, Any] | None:
    """Runs or resumes one run; None if it was interrupted, in which case its rounds are saved."""
    program = runner.program._replace(num_rounds=limit)
    rate, seed = labels["rate"], labels["seed"]
    made_by = {**versions(), "devices": runner.devices}
    identity = {
        "what": identity_of(cell),
        "federation": runner.federation,
        **labels,
        "made_by": made_by,
    }
    folder = RunFolder(store.running(cell, rate, seed))
    Manifest.of(RUN, identity).open(folder, resume=True)
    checkpoints = Checkpoints(folder.parts(RUN))
    inputs, carry = runner.start(rate, seed)
    spent, timed = 0.0, 0

    def on_chunk(first: int, rows: History, seconds: float) -> None:
        nonlocal spent, timed
        if seconds:
            spent, timed = spent + seconds, timed + len(rows.evaluated)
            tell(cell, rate, seed, progress_of(columns(rows), first, limit, seconds))

    driven = drive(
        program, inputs, carry, interrupt=interrupt, on_chunk=on_chunk, checkpoints=checkpoints
    )
    if driven.status == "interrupted":
        return None
    evaluated = np.asarray(driven.history.evaluated)
    at = np.flatnonzero(evaluated) + 1
    resolved = cell.setting.resolved()
    target = resolved.target
    assert target is not None

    def of_set(name: str) -> dict[str, Any]:
        scores = np.asarray(driven.history.evaluation[name])[evaluated]
        finite = scores[np.isfinite(scores)]
        return {
            "reached": rounds_to_target(scores, target, at),
            "best": float(finite.max()) if finite.size else math.nan,
            "scores": [round(float(x), 4) for x in scores],
        }

    of_test = of_set(resolved.test_score)
    reached = of_test["reached"]
    record = {
        "rate": rate,
        "seed": seed,
        "made_by": made_by,
        "reached": reached,
        "done": driven.round,
        "best": of_test["best"],
        # Extrapolated from the rounds since the last resume.
        "seconds": spent / timed * driven.round if timed else math.nan,
        "bytes_down": None if reached is None else reached * runner.bytes_down,
        "bytes_up": None if reached is None else reached * runner.bytes_up,
        "rounds": at.tolist(),
        "scores": of_test["scores"],
    }
    if resolved.validation is not None:
        record["validation"] = of_set(resolved.score)
    return record


def _best_of_base(name: str, store: Store) -> float:
    record = store.load(named(name))
    if record is None or not record["complete"]:
        raise ValueError(f"cell {name} must be run before those that use its learning rate")
    return float(record["rate"])
