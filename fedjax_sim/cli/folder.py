"""What is saved in a results folder, in the command line's words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedjax_sim.core.files import SaveError, reason
from fedjax_sim.core.interrupted import InterruptedRun, LostProcessError
from fedjax_sim.results.folder import RUN, SWEEP, RunFolder


def saved(folder: Path) -> str:
    """How much of a run or a sweep `folder` holds, in words."""
    rounds, batches = (RunFolder(folder).numbers(kind) for kind in (RUN, SWEEP))
    if rounds:
        saved_parts = f"rounds 1 to {max(rounds)} are saved"
    elif batches:
        saved_parts = f"{len(batches)} batch{'es are' if len(batches) > 1 else ' is'} saved"
    else:
        return "nothing is saved"
    return f"{saved_parts}, and --resume goes on from there"


@contextmanager
def saying_what_is_saved(folder: Path) -> Iterator[None]:
    """Turns an error of the block's files into one line, which also says what the folder holds.

    Raises:
      SaveError: if the folder cannot be written; or for an OSError of where else the numbers of
        `fs.simulate` go, TensorBoard's files and the terminal.
      LostProcessError: the block's own.
    """
    try:
        yield
    except SaveError as error:
        raise SaveError(f"{error}; {saved(folder)}") from error
    except LostProcessError as error:
        raise LostProcessError(f"{error}; {saved(folder)}") from error
    except InterruptedRun as error:
        if not isinstance(error.__cause__, OSError):
            raise
        why = reason(error.__cause__)
        raise SaveError(f"a round was not told of: {why}; {saved(folder)}") from error
