"""The cores that a command uses, and the cache of compiled programs."""

import os
from pathlib import Path

import jax
import platformdirs
from jax.sharding import Mesh

from fedjax_sim import execution


def use_cores(cores: int | None) -> Mesh | None:
    """Makes the cores devices, before JAX starts, and keeps compiled programs on disk.

    Returns:
      A mesh of the cores; None where there is an accelerator and no number of cores was given.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(programs()))
    mesh = execution.cores(cores)
    return mesh if cores is not None or jax.default_backend() == "cpu" else None


def programs() -> Path:
    """Where compiled programs are kept: in the user's cache.

    Earlier versions kept them in `.cache` on all systems; such a folder is still used if it exists.
    """
    earlier = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedjax_sim/xla"
    return earlier if earlier.is_dir() else platformdirs.user_cache_path("fedjax_sim") / "xla"
