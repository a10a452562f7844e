"""Sphinx extension: pages that are written when the site is built, under `_written/`.

The reference of all public names, from `dir(fedjax_sim)`; and the documents that lie outside
`docs/`, as the README and the benchmark's records, whose links are turned towards the site.
"""

import inspect
import os
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx

import fedjax_sim as fs
from fedjax_sim import algorithms

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
WRITTEN = DOCS / "_written"

# A document of the repository -> its page on the site.
DOCUMENTS = {
    "README.md": "readme",
    "README.zh-CN.md": "readme_zh",
    "ARCHITECTURE.md": "architecture",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    **{
        str(record.relative_to(ROOT)): f"records/{record.stem.lower()}"
        for record in sorted((ROOT / "benchmarks" / "records").glob("*.md"))
    },
}
# What pages link to -> where it is on the site.
_PLACES = {path: f"_written/{page}.md" for path, page in DOCUMENTS.items()} | {
    "docs": "index.md",
    "fedjax_sim/algorithms/global_model": "_written/api/algorithms.md",
}
_LINK = re.compile(r"\[([^\]\[]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(```.*?```)", re.S)

# The pages of the reference beside those of algorithms and of namespaces: a title, and the names.
_GROUPS = {
    "training": (
        "Rounds, runs and sweeps",
        "init make_round run simulate sweep Experiment LocalTraining FederatedData Cohort partial "
        "with_statistics",
    ),
    "measuring": (
        "Measuring, stopping, saving",
        "evaluate evaluator evaluate_clients client_statistics personal_params FineTuning of_state "
        "communication memory reaches patience any_of load save_params load_params",
    ),
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the hooks."""
    app.connect("builder-inited", _write)
    app.connect("source-read", _turn_links)
    return {"parallel_read_safe": True}


def _write(app: Sphinx) -> None:
    shutil.rmtree(WRITTEN, ignore_errors=True)
    for path, page in DOCUMENTS.items():
        target = WRITTEN / f"{page}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            turned((ROOT / path).read_text(encoding="utf-8"), path, f"_written/{page}.md"),
            encoding="utf-8",
        )
    records = [page for page in DOCUMENTS.values() if page.startswith("records/")]
    listing = "\n".join(["```{toctree}", *(page.split("/")[1] for page in records), "```"])
    (WRITTEN / "records" / "index.md").write_text(f"# Measurements\n\n{listing}\n")
    for picture in (ROOT / "benchmarks" / "records").glob("*.png"):
        shutil.copy(picture, WRITTEN / "records" / picture.name)
    api = WRITTEN / "api"
    api.mkdir()
    for page, text in reference().items():
        (api / f"{page}.md").write_text(text, encoding="utf-8")


def _turn_links(app: Sphinx, name: str, source: list[str]) -> None:
    if not name.startswith("_written/"):
        source[0] = turned(source[0], f"docs/{name}.md", f"{name}.md")


def turned(text: str, path: str, page: str) -> str:
    """The text of a document with its links as the site has them.

    Args:
      path: of the document in the repository.
      page: where its text stands on the site, below `docs/`.
    """

    def target(match: re.Match[str]) -> str:
        words, link, anchor = match.groups()
        if ":" in link or link.endswith(".png"):
            return match[0]
        linked = os.path.normpath(os.path.join(os.path.dirname(path), link))
        place = _PLACES.get(linked, linked.removeprefix("docs/"))
        if place == linked:  # a file that the site does not have: its name stands for it
            return words
        return f"[{words}]({os.path.relpath(place, os.path.dirname(page))}{anchor or ''})"

    parts = _FENCE.split(text)
    return "".join(
        part if index % 2 else _LINK.sub(target, part) for index, part in enumerate(parts)
    )


def reference() -> dict[str, str]:
    """The pages of the reference: every public name of `fedjax_sim` stands on one of them."""
    papers = [name for name in fs.__all__ if getattr(algorithms, name, None) is not None]
    modules = [name for name in fs.__all__ if isinstance(getattr(fs, name), ModuleType)]
    pages = {"algorithms": _page("Algorithms", [f"fedjax_sim.{name}" for name in papers])}
    named = {*papers, *modules}
    for page, (title, text) in _GROUPS.items():
        names = text.split()
        named |= {*names}
        pages[page] = _page(title, [f"fedjax_sim.{name}" for name in names])
    for name in modules:
        module = getattr(fs, name)
        members = [f"fedjax_sim.{name}.{member}" for member in public(module)]
        pages[name] = _page(f"fs.{name}", members, inspect.getdoc(module) or "")
    others = [f"fedjax_sim.{name}" for name in fs.__all__ if name not in named]
    pages["types"] = _page("Types and what else there is", others)
    order = ["algorithms", *_GROUPS, *modules, "types"]
    listing = "\n".join(["```{toctree}", *order, "```"])
    pages["index"] = (
        "# Reference\n\nEvery public name, as `dir(fs)` lists them after `import fedjax_sim as fs`."
        f"\n\n{listing}\n"
    )
    return pages


def public(module: ModuleType) -> list[str]:
    """What a namespace offers: names of the package's own that are no modules."""
    return [
        name
        for name in dir(module)
        if not name.startswith("_")
        and name not in fs.__all__
        and str(getattr(getattr(module, name), "__module__", "")).startswith("fedjax_sim")
    ]


def _page(title: str, names: list[str], words: str = "") -> str:
    """A page in MyST: a table of the names, and then each whole."""
    summary = "\n".join([".. autosummary::", "", *(f"   {name}" for name in names)])
    entries = "\n\n".join(map(_entry, names))
    return f"# {title}\n\n{words}\n\n```{{eval-rst}}\n{summary}\n\n{entries}\n```\n"


def _entry(name: str) -> str:
    path = name.split(".")[1:]
    value: Any = fs
    for part in path:
        value = getattr(value, part)
    if inspect.isclass(value):
        fields = re.findall(r"^  (\w+): ", inspect.getdoc(value) or "", re.M)
        return f".. autoclass:: {name}\n   :members:\n   :exclude-members: {', '.join(fields)}"
    if callable(value):
        return f".. autofunction:: {name}"
    return f".. autodata:: {name}"
