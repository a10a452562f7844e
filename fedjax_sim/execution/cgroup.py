"""The cores and the memory that a process's control groups allow it, as Linux limits containers."""

import math
from collections.abc import Iterator
from pathlib import Path

_OWN = Path("/proc/self/cgroup")  # the groups of this process, one a line
_ROOT = Path("/sys/fs/cgroup")


def allowed_cores(groups_file: Path = _OWN, root: Path = _ROOT) -> float:
    """The number of cores whose time this process may use, by its strictest group; or infinity.

    Args:
      groups_file: the file that names the process's groups.
      root: the folder that holds all groups.
    """
    cores = math.inf
    for folder in _folders("cpu", groups_file, root):
        # Version 2 has both numbers in one file. "max" or -1 means that there is no quota.
        quota = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(quota) == 2 and all(word.isdecimal() for word in quota):
            cores = min(cores, int(quota[0]) / int(quota[1]))
    return cores


def free_bytes(groups_file: Path = _OWN, root: Path = _ROOT) -> float:
    """The bytes that this process may still allocate, by its strictest group; or infinity.

    Cached files, which the kernel can drop, count as free.
    """
    free = math.inf
    for folder in _folders("memory", groups_file, root):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        if limit and used and limit[0].isdecimal():
            words = _words(folder / "memory.stat")
            statistics = dict(zip(words[::2], words[1::2], strict=False))
            files = statistics.get("total_inactive_file", statistics.get("inactive_file", "0"))
            free = min(free, max(0, int(limit[0]) - int(used[0]) + int(files)))
    return free


def _folders(controller: str, groups_file: Path, root: Path) -> Iterator[Path]:
    """The folders of the process's group for a controller and of all groups above it."""
    try:
        lines = groups_file.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # A line of version 2 names no controller; its groups are mounted alone or in `unified`.
        tops = [root / controllers] if controllers else [root, root / "unified"]
        parts = Path(path).parts[1:]
        for top in tops:
            for depth in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:depth])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
