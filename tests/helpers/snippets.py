"""The snippets of a Markdown page, run one after another as they stand."""

import importlib.util
import re
from pathlib import Path

import jax

from tests.conftest import standard_promotion

ROOT = Path(__file__).parent.parent.parent


def blocks(text):
    """Its fenced Python."""
    return re.findall(r"```python\n(.*?)```", text, re.S)


def run(block, namespace):
    """Runs a block as in a session of a user, who has no strict settings."""
    with standard_promotion(), jax.numpy_rank_promotion("allow"):
        exec(block, namespace)


def can_run(block):
    """Whether what it needs of PyTorch, which the tests do not install, is there."""
    return "import torch" not in block or importlib.util.find_spec("torch") is not None


def readme():
    """What the code of README.md leaves behind, which pages of docs/ continue."""
    namespace = {}
    (block,) = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    run(block, namespace)
    return namespace
