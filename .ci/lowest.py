"""Prints the package's requirements pinned to their lower bounds, one a line."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in project["dependencies"] + extras["cli"] + extras["test"]:
    if match := re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement):
        print(f"{match[1]}=={match[2]}")
    elif not requirement.startswith("fedjax-sim["):
        raise SystemExit(f"pyproject.toml: {requirement!r} has no plain lower bound")
