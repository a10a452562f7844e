"""HTML of objects in a notebook, and a progress bar for terminals and notebooks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

_ROWS = 20  # rows of a table that are shown; the others are counted


def number(value: Any) -> str:
    """A value in a few characters.

    >>> number(0.123456), number(12345), number(None), number("adam")
    ('0.1235', '12,345', '', 'adam')
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def words(facts: Mapping[str, Any]) -> str:
    """Facts in one line.

    >>> words({"train_loss": 0.25, "b": 3})
    'train_loss 0.25, b 3'
    """
    return ", ".join(f"{name} {number(value)}" for name, value in facts.items())


def card(title: str, facts: Mapping[str, Any]) -> str:
    """A table in HTML with a line for each fact."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td>{escape(number(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{rows}</tbody></table>"


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in HTML of the first rows, and how many more there are.

    >>> table("a < b", [{"lr": 0.1}]).count("&lt;")
    1
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(number(row.get(name)))}</td>' for name in names)}</tr>"
        for row in rows[:_ROWS]
    )
    rows_left = f"<p>and {len(rows) - _ROWS:,} more rows</p>" if len(rows) > _ROWS else ""
    return (
        f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{rows_left}"
    )


@contextmanager
def progress_bar(total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
    """Yields a function of (done, text) that updates a tqdm bar, on standard error or in notebooks.

    Raises:
      ImportError: naming the extra, if tqdm is missing.
    """
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress needs tqdm: pip install fedjax-sim[notebook]") from error
    # tqdm's own rate is left out, because it counts compilation and earlier processes.
    form = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}{postfix}]"
    with tqdm(total=total, unit=unit, bar_format=form) as bar:

        def tell(done: int, says: str) -> None:
            bar.n = done
            bar.set_postfix_str(says, refresh=True)

        yield tell
