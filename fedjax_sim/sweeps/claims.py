"""Who computes which batch, where several processes share a folder and nothing else.

A claim of batch b is a file `b.g`, which only one process can make because files are opened to be
created alone. Its owner touches it from time to time. Whoever sees that it is no longer touched
takes the batch over by making `b.(g + 1)`: claims are never removed while anybody works, so of two
that see the same one lost only one makes its successor. An owner that was only asleep computes on,
to the same bits, with checkpoints of its own. A claim that is given up is dated to 1970.
"""

import json
import os
import platform
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedjax_sim.core.files import SaveError, reason

BEAT_SECONDS = 15.0  # between two touches of a claim
# A claim untouched for so long is lost. File systems of a network may show a file's date a minute
# late (NFS, by default), and a machine may be suspended for a moment.
LOST_SECONDS = 180.0


class Claim:
    """A batch that this process has claimed; within it, a thread touches the file.

    Attributes:
      path: the file.
    """

    def __init__(self, path: Path, beat_seconds: float = BEAT_SECONDS) -> None:
        self.path, self._beat = path, beat_seconds
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> "Claim":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.set()
        self._thread.join()
        self.give_up()

    def give_up(self) -> None:
        """Lets others have the batch, which is complete, or is left as its checkpoint has it."""
        try:
            os.utime(self.path, (0, 0))
        except OSError:  # the folder is gone, or full: the claim ages as that of a killed process
            return

    @property
    def generation(self) -> int:
        """How many owners the batch had before."""
        return _parts(self.path)[1]

    def _touch(self) -> None:
        while not self._ends.wait(self._beat):
            with suppress(OSError):  # as in `give_up`; a file system of a network may come back
                os.utime(self.path)


class Claims:
    """The claims in a folder.

    Args:
      folder: is made with the first claim.
      shard: who claims, in words, for those who look into the folder.
      lost_seconds: after which a claim that is not touched may be taken over.
    """

    def __init__(
        self,
        folder: Path,
        shard: str = "",
        *,
        beat_seconds: float = BEAT_SECONDS,
        lost_seconds: float = LOST_SECONDS,
    ) -> None:
        self.folder, self.shard = folder, shard
        self._beat, self._lost = beat_seconds, lost_seconds

    def take(self, number: int) -> Claim | None:
        """Claims a batch that nobody has, or that was lost; None if another process has it.

        Raises:
          SaveError: if the claim cannot be written.
        """
        generation = 0
        if latest := self._latest().get(number):
            if self._is_alive(latest):
                return None
            generation = _parts(latest)[1] + 1
        path = self.folder / _name(number, generation)
        owner = {"shard": self.shard, "place": _place(), "pid": os.getpid()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("x") as file:
                json.dump(owner, file)
        except FileExistsError:
            return None
        except OSError as error:
            raise SaveError(f"{path} was not written: {reason(error)}") from error
        return Claim(path, self._beat)

    def alive(self) -> dict[int, str]:
        """Batch -> who computes it, in words, of those that are claimed and not lost."""
        claims = {b: path for b, path in self._latest().items() if self._is_alive(path)}
        owners = {number: _owner(path) for number, path in claims.items()}
        return {
            number: f"process {owner.get('pid')} of {str(owner.get('place')).split('/')[0]}"
            for number, owner in owners.items()
        }

    def _latest(self) -> dict[int, Path]:
        """Batch -> its claim of the highest generation."""
        try:
            paths = [p for p in self.folder.iterdir() if _is_claim(p.name)]
        except FileNotFoundError:
            return {}
        return {_parts(path)[0]: path for path in sorted(paths, key=_parts)}

    def _is_alive(self, path: Path) -> bool:
        owner = _owner(path)  # opened first, upon which a file system of a network looks anew
        if owner.get("place") == _place() and not _runs(owner.get("pid")):
            return False
        try:
            return self._now() - path.stat().st_mtime < self._lost
        except OSError:
            return False

    def _now(self) -> float:
        """The time by the clock that dates the files, which may be another machine's."""
        path = self.folder / f"now-{platform.node()}-{os.getpid()}-{threading.get_ident()}"
        try:
            path.touch()
            now = path.stat().st_mtime
            path.unlink()
        except OSError as error:
            raise SaveError(f"{path} was not written: {reason(error)}") from error
        return now


def _name(number: int, generation: int) -> str:
    return f"{number:06d}.{generation}"


def _parts(path: Path) -> tuple[int, int]:
    """The batch and the generation of a claim's file."""
    number, generation = path.name.split(".")
    return int(number), int(generation)


def _is_claim(name: str) -> bool:
    number, _, generation = name.partition(".")
    return number.isdecimal() and generation.isdecimal()


def _owner(path: Path) -> dict[str, Any]:
    """What its owner wrote; nothing if that was killed before it wrote."""
    try:
        owner: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return owner


def _place() -> str:
    """Where a process's number means that process: the machine, and its container on Linux.

    Machines may have one name, as copies of an image do, and all number their first namespace
    alike; the kernel draws an id whenever it starts.
    """
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()}/{start}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _runs(pid: Any) -> bool:
    """Whether a process of this machine runs; it counts as running where that is not known."""
    if os.name != "posix" or not isinstance(pid, int):  # Windows ends a process that is asked
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and its parent has not asked how."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state == "Z"
