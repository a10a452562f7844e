"""What makes a result beside its settings: packages, Python, machine."""

import os
import platform
from importlib.metadata import version

import jax


def versions() -> dict[str, str]:
    """What made a result: packages, Python, machine."""
    packages = ("fedjax-sim", "jax", "jaxlib", "flax", "optax", "numpy")
    device = jax.devices()[0]
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": f"{device.platform} ({device.device_kind})",
    }
