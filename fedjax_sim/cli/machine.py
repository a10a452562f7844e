"""The cores that a command uses, its processes, and the cache of compiled programs."""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import platformdirs
from jax.sharding import Mesh

from fedjax_sim import execution
from fedjax_sim.cli.signals import first_ends_at_once
from fedjax_sim.execution.placing import AXIS, make_cores_devices

# A process that gives no sign of life for so long is gone, and JAX ends the others.
_HEARTBEAT_SECONDS = 30
_MEETING_SECONDS = 300  # that processes wait for each other before they begin
_PATIENCE_SECONDS = 5.0  # after which one says what it waits for


def use_cores(cores: int | None) -> Mesh | None:
    """Makes the cores devices, before JAX starts, and keeps compiled programs on disk.

    Returns:
      A mesh of the cores; None where there is an accelerator and no number of cores was given.
    """
    _keep_programs()
    mesh = execution.cores(cores)
    return mesh if cores is not None or jax.default_backend() == "cpu" else None


def join_processes(cores: int | None) -> Mesh:
    """Meets the other processes of a run, by JAX's own detection, before JAX starts.

    Where JAX does not know who started them, the environment says it: JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Returns:
      A mesh of the devices of all of them: accelerators where there are any and no number of cores
      is given, else so many cores of each, or all.

    Raises:
      ValueError: if nothing says who the others are, or they cannot be reached.
    """
    _keep_programs()
    numbers = [_number_in(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
    if numbers[0] is not None and numbers[1] is not None and numbers[1] >= numbers[0]:
        raise ValueError(
            f"JAX_PROCESS_ID must be below JAX_NUM_PROCESSES, {numbers[0]}; got {numbers[1]}"
        )
    _check_address(os.environ.get("JAX_COORDINATOR_ADDRESS"))
    make_cores_devices(cores)
    try:
        with _saying_that_it_waits(numbers[0]):
            jax.distributed.initialize(
                num_processes=numbers[0],
                process_id=numbers[1],
                initialization_timeout=_MEETING_SECONDS,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            )
    except Exception as error:  # whatever its detection of clusters raises
        raise ValueError(
            "distributed needs processes that JAX finds, as those of srun, mpirun or an indexed "
            "job, or JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID; JAX "
            f"says: {str(error).splitlines()[0] if str(error) else repr(error)}"
        ) from error
    devices = jax.devices() if cores is None else jax.devices("cpu")
    return Mesh(np.array(devices), (AXIS,))


@contextmanager
def _saying_that_it_waits(count: int | None) -> Iterator[None]:
    """Says after some seconds for whom this process waits; the first signal ends it then."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    others = "the other processes" if count is None else f"all {count} processes"
    where = "" if address is None else f" at {address}"
    line = f"Waits for {others} of this run{where}, for at most {_MEETING_SECONDS} s."
    say = threading.Timer(_PATIENCE_SECONDS, print, [line], {"file": sys.stderr, "flush": True})
    say.daemon = True
    say.start()
    try:
        with first_ends_at_once(
            "Interrupted while it waited for other processes; nothing is begun."
        ):
            yield
    finally:
        say.cancel()


def _check_address(address: str | None) -> None:
    """Refuses what is no address, at some of which JAX ends the process without a word.

    Raises:
      ValueError: with the address.
    """
    if address is None:
        return
    match = re.fullmatch(r"\S+:([0-9]{1,5})", address)
    if match is None or not 1 <= int(match.group(1)) <= 65535:
        raise ValueError(
            f"JAX_COORDINATOR_ADDRESS must be host:port, with a port of 1 to 65535; got {address!r}"
        )


def _number_in(name: str) -> int | None:
    """A number in the environment; None if it is not there.

    Raises:
      ValueError: if it is no number.
    """
    text = os.environ.get(name)
    if text is not None and not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(f"{name} must be a number; got {text!r}")
    return None if text is None else int(text)


def _keep_programs() -> None:
    """Keeps compiled programs on disk, unless the user said where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(programs()))


def programs() -> Path:
    """Where compiled programs are kept: in the user's cache.

    Earlier versions kept them in `.cache` on all systems; such a folder is still used if it exists.
    """
    earlier = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedjax_sim/xla"
    return earlier if earlier.is_dir() else platformdirs.user_cache_path("fedjax_sim") / "xla"
