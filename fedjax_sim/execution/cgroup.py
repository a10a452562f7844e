"""What a process's control groups leave it of a machine: how Linux limits a container."""

import math
from collections.abc import Iterator
from pathlib import Path

_OWN = Path("/proc/self/cgroup")  # the groups of this process, one a line
_ROOT = Path("/sys/fs/cgroup")


def allowed_cores(own: Path = _OWN, root: Path = _ROOT) -> float:
    """Cores whose time this process may take, of the strictest group; infinite without a quota.

    Args:
      own: the file that names the process's groups.
      root: the folder that holds all groups.
    """
    cores = math.inf
    for folder in _folders("cpu", own, root):
        # Version 2 has both numbers in one file; a quota of "max" or of -1 is none.
        quota = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(quota) == 2 and all(word.isdecimal() for word in quota):
            cores = min(cores, int(quota[0]) / int(quota[1]))
    return cores


def free_bytes(own: Path = _OWN, root: Path = _ROOT) -> float:
    """Bytes that this process may still take, of the strictest group; infinite without a limit.

    Files that the kernel holds in memory and can let go of count as free.
    """
    free = math.inf
    for folder in _folders("memory", own, root):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        if limit and used and limit[0].isdecimal():
            words = _words(folder / "memory.stat")
            held = dict(zip(words[::2], words[1::2], strict=False))
            files = held.get("total_inactive_file", held.get("inactive_file", "0"))
            free = min(free, max(0, int(limit[0]) - int(used[0]) + int(files)))
    return free


def _folders(controller: str, own: Path, root: Path) -> Iterator[Path]:
    """The process's group under this controller and all above it, whose limits hold, too."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Of version 2, whose line names no controller, beside version 1 or alone.
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
