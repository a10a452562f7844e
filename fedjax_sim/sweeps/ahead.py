"""Compilation beside training: a thread prepares the next group's program."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Any

import jax

from fedjax_sim.sweeps.options import Plan
from fedjax_sim.sweeps.work import Work, by_group, is_saved

# Of the memory that a call may hold. Two programs at once each hold a copy of the data.
_SHARE_OF_CONSTANTS = 0.1


def works_of(plan: Plan) -> Generator[Work, None, None]:
    """The batches of all groups; while those of one run, the next one's program is prepared.

    The thread calls the user's factory, as the batches themselves would later. It prepares nothing
    if JAX's settings differ in it, because a context such as `jax.enable_x64` sets them for one
    thread alone. Of an error the thread says nothing: the group's first batch prepares once more,
    and raises what it meets.
    """
    settings = _settings()
    groups = by_group(plan)

    def prepare(works: list[Work]) -> None:
        if _settings() != settings:
            return
        for work in works:
            if not is_saved(plan, work):  # read in its turn, and told of once if it is damaged
                work.compiled.prepare(work.batch, _SHARE_OF_CONSTANTS * plan.limit)
                return

    thread = ThreadPoolExecutor(1, "fedjax_sim")
    try:
        works = next(groups, None)
        while works is not None:
            following = next(groups, None)
            if following is not None:
                # While Python ends it takes no more work; then nothing is prepared ahead.
                with suppress(RuntimeError):
                    in_context = copy_context().run
                    following[0].compiled.ahead = thread.submit(in_context, prepare, following)
            yield from works
            works = following
    finally:
        # A compilation cannot be stopped, and after an interrupt nobody needs it.
        thread.shutdown(wait=False, cancel_futures=True)


def _settings() -> dict[str, Any]:
    """JAX's settings as this thread has them."""
    settings = {name: getattr(jax.config, name, None) for name in jax.config.values}
    return settings | {"mesh": jax.sharding.get_abstract_mesh()}
