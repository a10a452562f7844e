"""Writers of a run's numbers while it runs: to a CSV file, TensorBoard, Weights & Biases.

Each is for `fs.simulate(..., writers=[...])`, or anything that calls `write(round, values)` with
rounds counted from 1 and `close()` at the end. After a resume the rounds since the last checkpoint
are written again, with the same values; each writer's docstring says how it handles them.
"""

import csv as csv_files
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from fedjax_sim.core.files import check_writable, replace_file

_ROUND = "round"  # the first column


def csv(path: str | Path) -> "Csv":
    """One line a round: the round, then a column for each value by its name.

    A round that is written again replaces its line and all lines after it, so that a resumed run
    leaves the same file as one that was not interrupted; a run from round 1 starts the file anew.
    Each line is flushed when `write` returns, and half a line, of a run that was killed, is
    dropped. A value that first appears in a later round, as a metric that is not evaluated in every
    round, gets a new column: the file is replaced as a whole by a wider one. A missing value is an
    empty cell; NaN, of a run that diverged, is `nan`.

    Args:
      path: the file; its folder is made. It may hold what a `csv` writer wrote before.

    Raises:
      ValueError: if path holds anything else: it is left alone.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "run.csv"
    >>> writer = csv(path)
    >>> for round in (1, 2, 3, 2):
    ...     writer.write(round, {"train_loss": 1 / round})
    >>> writer.close()
    >>> path.read_text().split()
    ['round,train_loss', '1,1.0', '2,0.5']
    """
    return Csv(path)


class Csv:
    """See `csv`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: IO[bytes] | None = None
        self._columns: list[str] = []
        self._last = 0  # the last round written
        self._read()

    def write(self, round: int, values: Mapping[str, float]) -> None:
        if _ROUND in values:
            raise ValueError(f"values must not be named {_ROUND!r}, which is the first column")
        if self._file is None or round <= self._last:
            self._open(round)
        new = [name for name in values if name not in self._columns]
        if new:
            self._widen(new)
        assert self._file is not None
        row = {_ROUND: round, **values}
        self._file.write(_line([row.get(name, "") for name in self._columns]))
        self._file.flush()
        self._last = round

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> list[bytes]:
        """The file's whole lines, the header first; none if there is no file."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            del lines[-1]
        ours = _cells(lines[0])[0] == _ROUND if lines else self.path.stat().st_size == 0
        if not ours:
            raise ValueError(
                f"path must be a new file or one of this writer, whose first column is {_ROUND!r}; "
                f"got {self.path}, which holds something else"
            )
        return lines

    def _open(self, round: int) -> None:
        """Opens the file to write this round: the lines before it stay, byte for byte."""
        self.close()
        lines = self._read()
        kept_lines = lines[:1]
        for line in lines[1:]:
            if int(_cells(line)[0]) >= round:
                break
            kept_lines.append(line)
        if len(kept_lines) < 2:  # no round is left, so the new run may have other columns
            kept_lines = []
        self._columns = _cells(kept_lines[0]) if kept_lines else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        self._file.truncate(sum(map(len, kept_lines)))

    def _widen(self, new: list[str]) -> None:
        self.close()
        lines = self._read()
        columns = [*(self._columns or [_ROUND]), *new]
        empty = b"," * len(new)
        text = _line(columns) + b"".join(line.rstrip(b"\n") + empty + b"\n" for line in lines[1:])
        replace_file(self.path, lambda file: file.write(text))
        self._columns = columns
        self._file = self.path.open("ab")


def _cells(line: bytes) -> list[str]:
    return next(csv_files.reader([line.decode("utf-8", "replace")]), None) or [""]


def _line(cells: list[Any]) -> bytes:
    text = io.StringIO()
    csv_files.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def tensorboard(folder: str | Path) -> "TensorBoard":
    """Event files for TensorBoard, by tensorboardX (the `tensorboard` extra).

    Each value is a scalar of its name, at the step of its round; NaN, of a run that diverged, is
    left out, for tensorboardX would warn of each. A resumed run writes a new event file, which
    tells TensorBoard to drop from the older ones the steps from its own first round on.

    Args:
      folder: of this run, best in a folder that `tensorboard --logdir` is given.

    Raises:
      ImportError: naming the extra, if tensorboardX is missing.
      ValueError: if the folder cannot be written.
    """
    return TensorBoard(folder)


class TensorBoard:
    """See `tensorboard`."""

    def __init__(self, folder: str | Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "writers.tensorboard needs tensorboardX: pip install fedjax-sim[tensorboard]"
            ) from error
        self.folder = Path(folder)
        # Here, and not with the first round, for which earlier results may be removed.
        check_writable(self.folder, f"folder {folder}")
        self._make = SummaryWriter
        self._events: Any = None
        self._last = 0

    def write(self, round: int, values: Mapping[str, float]) -> None:
        if self._events is None or round <= self._last:
            self.close()
            # The suffix keeps files apart that are made within one second.
            self._events = self._make(
                str(self.folder), purge_step=round, filename_suffix=f".{round}"
            )
        for name, value in values.items():
            if not math.isnan(value):
                self._events.add_scalar(name, value, round)
        self._last = round

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


def wandb(
    project: str,
    name: str | None = None,
    *,
    configuration: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    mode: str = "offline",
    run_id: str | None = None,
) -> "Wandb":
    """A run of Weights & Biases (the `wandb` extra), begun with the first round written.

    Each value is logged by its name, at the step of its round. A resumed run is a run of its own,
    unless it is given the `run_id` of the first: the service then keeps what it has, and leaves
    out rounds written again.

    Args:
      project: its project.
      name: of the run, to be shown; None lets wandb choose.
      configuration: hyper-parameter -> value, shown beside the run.
      folder: where wandb keeps its files; None for its default, `wandb/` here.
      mode: "offline" writes files alone, for `wandb sync` later; "online" sends.
      run_id: a name unique in the project, the same after a resume.

    Raises:
      ValueError: for another mode.
      ImportError: naming the extra, if wandb is missing.
    """
    if mode not in ("offline", "online"):
        raise ValueError(f'mode must be "offline" or "online"; got {mode!r}')
    settings: dict[str, Any] = {"project": project, "name": name, "mode": mode}
    settings["config"] = dict(configuration or {})
    if folder is not None:
        settings["dir"] = str(folder)
    if run_id is not None:
        settings |= {"id": run_id, "resume": "allow"}
    return Wandb(settings)


class Wandb:
    """See `wandb`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("writers.wandb needs wandb: pip install fedjax-sim[wandb]") from error
        self._init, self._settings = wandb.init, dict(settings)
        self._run: Any = None

    def write(self, round: int, values: Mapping[str, float]) -> None:
        if self._run is None:
            self._run = self._init(**self._settings)
        self._run.log(dict(values), step=round)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
