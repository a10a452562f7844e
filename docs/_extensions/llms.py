"""Sphinx extension: `llms.txt` beside the first page, which tells a language model what is where.

The form is that of https://llmstxt.org: a title, a summary, and lists of links with a line each,
which are those of the first page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parent.parent


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the hook."""
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True}


def _write(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        index = (DOCS / "index.md").read_text(encoding="utf-8")
        (Path(app.outdir) / "llms.txt").write_text(text(index), encoding="utf-8")


def text(index: str) -> str:
    """The contents of `llms.txt`.

    Args:
      index: the first page as it is written: a title, a paragraph, and headings with lists.
    """
    page = re.sub(r"```.*?```\n?", "", index, flags=re.S).strip()
    title, _, rest = page.partition("\n\n")
    summary, _, lists = rest.partition("\n\n")
    links = re.sub(r"\]\(([\w-]+)\.md\)", r"](\1.html)", lists)
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(summary.split()))
    reference = (
        "## Reference\n\n- [Every public name](_written/api/index.html): signatures, equations, "
        "shapes, errors.\n"
    )
    return f"{title}\n\n> {words}\n\n{links.strip()}\n\n{reference}"
