"""Which shard of a sweep a process is, and where it begins."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Shard(NamedTuple):
    """Process i of n that share a sweep's folder.

    Attributes:
      number: 1 <= i <= n.
      shards: n.
    """

    number: int
    shards: int

    def __str__(self) -> str:
        return f"{self.number}/{self.shards}"

    def order(self, batches: Sequence[T]) -> list[T]:
        """The batches, its own part of them first: neighbours share a compiled program.

        >>> Shard(2, 3).order(range(7))
        [2, 3, 4, 5, 6, 0, 1]
        """
        first = (self.number - 1) * len(batches) // self.shards
        return [*batches[first:], *batches[:first]]


class _Scheduler(NamedTuple):
    """The variables by which a scheduler says which task of an array a process is.

    Attributes:
      task: the number of the task.
      first: the first number; a number itself where it is fixed.
      step: between two numbers; None for 1.
      tasks: how many; None if not told.
      last: the last number; None if not told.
    """

    task: str
    first: str | int
    step: str | None = None
    tasks: str | None = None
    last: str | None = None


_SCHEDULERS = (
    _Scheduler(
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_MIN",
        "SLURM_ARRAY_TASK_STEP",
        "SLURM_ARRAY_TASK_COUNT",
    ),
    _Scheduler("JOB_COMPLETION_INDEX", 0),
    _Scheduler("PBS_ARRAY_INDEX", 0),
    _Scheduler("SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_STEPSIZE", None, "SGE_TASK_LAST"),
    _Scheduler("LSB_JOBINDEX", 1, "LSB_JOBINDEX_STEP", None, "LSB_JOBINDEX_END"),
)


def shard_of(
    shard: str | Sequence[int] | None, environment: Mapping[str, str] = os.environ
) -> Shard | None:
    """The shard that is meant; None for None.

    Args:
      shard: "i/n" or (i, n), of 1 to n; "auto" for what the scheduler says, "auto/n" for one that
        does not say how many there are.

    Raises:
      ValueError: for what is none of these, or is outside 1 to n; where no scheduler says.

    >>> shard_of("3/16"), shard_of((1, 4))
    (Shard(number=3, shards=16), Shard(number=1, shards=4))
    >>> shard_of("auto", {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MIN": "0",
    ...                   "SLURM_ARRAY_TASK_COUNT": "8"})
    Shard(number=5, shards=8)
    """
    if shard is None:
        return None
    given = shard
    if isinstance(shard, str):
        if match := re.fullmatch(r"auto(?:/([1-9][0-9]{0,5}))?", shard):
            return _from_scheduler(int(match[1] or 0), environment)
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
        numbers: Sequence[int] = (int(match[1]), int(match[2])) if match else ()
    else:
        is_pair = isinstance(shard, Sequence) and all(type(number) is int for number in shard)
        numbers = shard if is_pair else ()
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise ValueError(
            f'shard must be "i/n" with 1 <= i <= n, as "3/16", or "auto"; got {given!r}'
        )
    return Shard(*numbers)


def _from_scheduler(shards: int, environment: Mapping[str, str]) -> Shard:
    """The shard by the variables of the scheduler that started this process.

    Raises:
      ValueError: if there are none, or they are no numbers, or do not tell how many tasks there
        are and `shards` is 0.
    """

    def number(name: str | int | None, otherwise: int) -> int:
        if not isinstance(name, str):
            return otherwise if name is None else name
        text = environment.get(name)
        if text is None:
            return otherwise
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise ValueError(f"shard auto reads {name}, which must be a number; got {text!r}")
        return int(text)

    for scheduler in _SCHEDULERS:
        task = environment.get(scheduler.task)
        # SGE says "undefined", and LSF 0, to a job that is no array.
        if task is None or task == "undefined" or (task, scheduler.first) == ("0", 1):
            continue
        first, step = number(scheduler.first, 0), max(1, number(scheduler.step, 1))
        index = (number(scheduler.task, 0) - first) // step
        tasks = number(scheduler.tasks, 0)
        if scheduler.last is not None and scheduler.last in environment:
            tasks = (number(scheduler.last, 0) - first) // step + 1
        tasks = shards or tasks
        if not tasks:
            raise ValueError(
                f"shard auto reads {scheduler.task}, beside which nothing says how many tasks "
                'there are; give "auto/n", as "auto/16"'
            )
        # Numbers of an irregular array (1,5,7) wrap around. Two shards may then begin at one
        # place, which costs nothing: what each computes is decided by claims.
        return Shard(index % tasks + 1, tasks)
    names = ", ".join(scheduler.task for scheduler in _SCHEDULERS)
    raise ValueError(f'shard auto needs one of {names} in the environment; give "i/n", as "3/16"')
