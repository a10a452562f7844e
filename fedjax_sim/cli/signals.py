"""The first signal ends a command cleanly, a second one at once."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedjax_sim.results import Results

INTERRUPTED = 130
_waits: list[str] = []  # what a process says that waits where it has begun nothing


@contextmanager
def second_ends_at_once() -> Iterator[None]:
    """The second SIGINT or SIGTERM ends the process, even in the middle of an XLA call.

    Python runs its own handlers only when such a call returns. Its C handler writes a byte for each
    signal at once, so a thread counts those bytes. Outside of training, SIGTERM raises
    KeyboardInterrupt, as SIGINT does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        count = 0
        while byte := reader.recv(1):
            count += byte[0] in (signal.SIGINT, signal.SIGTERM)
            if count and _waits:
                print(_waits[-1], file=sys.stderr, flush=True)
            if count == 2 or (count and _waits):
                os._exit(INTERRUPTED)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.set_wakeup_fd(previous_fd)
        writer.close()
        thread.join()
        reader.close()


@contextmanager
def first_ends_at_once(line: str) -> Iterator[None]:
    """Within it the first signal is enough, and ends the process with a line.

    It is for waiting in an XLA call before anything is begun that a second signal would spare.
    """
    _waits.append(line)
    try:
        yield
    finally:
        _waits.pop()


def runs_with_rounds(results: "Results", total: int) -> tuple["Results", bool]:
    """The runs that have rounds, and whether these are all rounds of all `total` of them.

    Raises:
      KeyboardInterrupt: if there are none.
    """
    runs = tuple(run for run in results.runs if run.done)
    if not runs:
        raise KeyboardInterrupt
    whole = len(runs) == total and all(run.done == run.num_rounds for run in runs)
    return replace(results, runs=runs), whole
