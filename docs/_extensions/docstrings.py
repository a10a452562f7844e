"""Sphinx extension: the package's docstrings as reStructuredText.

They are written to be read by `help`: an equation is an indented paragraph, and `*` and `|` are
themselves. Before napoleon reads their sections, equations become literal blocks, and what
reStructuredText would take for markup is escaped.
"""

import re
from collections.abc import Iterator
from typing import Any

from sphinx.application import Sphinx

_MARKUP = re.compile(r"([*|\\]|(?<=\w)_(?!\w))")


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the hooks; napoleon's own has priority 500."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}


def _process(app: Sphinx, kind: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line for paragraph in _paragraphs(lines) for line in _converted(paragraph)]


def _skip(app: Sphinx, kind: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Fields of a NamedTuple stand under "Attributes" already."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield paragraph
            paragraph = []


def _converted(paragraph: list[str]) -> list[str]:
    """One paragraph, with the empty line that ends it."""
    if paragraph[0].lstrip().startswith(">>>"):
        return [*paragraph, ""]
    if all(line.startswith("    ") for line in paragraph):
        return [".. code-block:: text", "", *paragraph, ""]
    if all(line.lstrip().startswith("|") for line in paragraph):
        return [".. code-block:: text", "", *(f"    {line}" for line in paragraph), ""]
    return [*_escaped("\n".join(paragraph)).split("\n"), ""]


def _escaped(text: str) -> str:
    """The text without markup, but for what stands in backticks."""
    parts = text.split("`")
    for index in range(0, len(parts), 2):
        part = _MARKUP.sub(r"\\\1", parts[index])
        # The plural of what stands in backticks would keep its markup from ending.
        parts[index] = f"\\ {part}" if index and part[:1].isalnum() else part
    return "`".join(parts)
