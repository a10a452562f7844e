"""The cores to use, and the programs compiled before."""

import os
from pathlib import Path

import jax
from jax.sharding import Mesh

from fedjax_sim import execution


def use_cores(cores: int | None) -> Mesh | None:
    """Makes the cores devices, before JAX starts, and keeps compiled programs on disk.

    Returns:
      A mesh of the cores; None where there is an accelerator and no number of cores was given.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "fedjax_sim" / "xla"))
    mesh = execution.cores(cores)
    return mesh if cores is not None or jax.default_backend() == "cpu" else None
