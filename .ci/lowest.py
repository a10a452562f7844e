"""Prints the package's requirements pinned to their lower bounds, one a line."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def pinned(requirements: list[str]) -> list[str]:
    """Each at its lower bound; the package's own extras by what they hold."""
    pins = []
    for requirement in requirements:
        if match := re.fullmatch(r"fedjax-sim\[([\w,-]+)\]", requirement):
            for extra in match[1].split(","):
                pins += pinned(project["optional-dependencies"][extra])
        elif match := re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement):
            pins.append(f"{match[1]}=={match[2]}")
        else:
            raise SystemExit(f"pyproject.toml: {requirement!r} has no plain lower bound")
    return pins


print("\n".join(dict.fromkeys(pinned([*project["dependencies"], "fedjax-sim[test]"]))))
