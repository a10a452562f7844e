"""The batches of a folder that several processes work on, of which each sees only the folder."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from fedjax_sim.core.interrupted import InterruptedRun
from fedjax_sim.host.driver import Interrupt
from fedjax_sim.sweeps.batch import Columns, Tell
from fedjax_sim.sweeps.claims import Claims
from fedjax_sim.sweeps.options import Plan
from fedjax_sim.sweeps.shards import Shard
from fedjax_sim.sweeps.telling import Teller
from fedjax_sim.sweeps.work import Runs, Work, add_runs, by_group, load_batch, results_of, run_batch

_WAIT_SECONDS = 2.0  # between two looks at batches that others compute


def run_shared(
    plan: Plan, shard: Shard, claims: Claims, runs: Runs, interrupt: Interrupt, teller: Teller
) -> bool:
    """Runs the batches that nobody else runs until all are complete; adds all runs to `runs`.

    It ends when no batch is left, its own or another's, so that there is somebody to take over
    what is lost as long as one process is left.

    Returns:
      Whether no interrupt ended it.

    Raises:
      InterruptedRun: if a batch fails once some runs are complete; `partial` has these.
    """
    pending = shard.order([work for works in by_group(plan) for work in works])
    # Before each turn `runs` has the runs of every batch that is not pending, all of them saved.
    while pending:
        others: list[Work] = []
        for work in pending:
            columns = load_batch(plan, work)
            if columns is None and interrupt.received is None:
                tell = partial(teller.chunk, work.group, len({*work.places}), len(work.places))
                columns = _claimed(plan, work, claims, runs, interrupt, tell)
            if columns is None:
                others.append(work)
                continue
            add_runs(plan, work, columns, runs)
            teller.through(len(runs))
        if interrupt.received is not None:
            return False
        if len(others) == len(pending):
            _wait(lambda: interrupt.received is not None)
        pending = others
    return True


def _claimed(
    plan: Plan, work: Work, claims: Claims, runs: Runs, interrupt: Interrupt, tell: Tell
) -> Columns | None:
    """The columns of a batch, computed here; None if another process has it, or at an interrupt.

    Raises:
      SaveError, InterruptedRun: as `run_batch`, and for whatever it fails with.
    """
    claim = claims.take(work.number)
    if claim is None:
        return None
    with claim:
        columns = load_batch(plan, work)  # which another one may have saved before the claim
        if columns is not None:
            return columns
        with holding_complete(plan, runs):
            return run_batch(plan, work, interrupt, tell, claim.generation)


@contextmanager
def holding_complete(plan: Plan, runs: Runs) -> Iterator[None]:
    """The runs that are complete are not lost with a batch that fails: its error holds them.

    Raises:
      InterruptedRun: if the batch raises it or, once some runs are complete, anything else.
    """
    try:
        yield
    except InterruptedRun as error:
        error.partial = results_of(runs)
        raise
    except Exception as error:
        if not runs:
            raise
        failed = InterruptedRun(
            f"{len(runs)} of {plan.num_runs} runs are through; then a batch failed: {error!r}"
        )
        raise failed.holding(results_of(runs)) from error


def _wait(ends: Callable[[], bool]) -> None:
    """Sleeps, and wakes up for a signal."""
    until = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < until and not ends():
        time.sleep(0.1)
